"""Errors that a user can act on: one sentence with the name, the rule and the value.

What else helps, such as places that were searched and what to do next, are notes of the error
(`BaseException.add_note`); commands print them below the sentence.
"""

from typing import ClassVar


class UserError(ValueError):
    """Something a user gave is wrong; commands print its one line without a traceback."""

    title: ClassVar[str] = "Error"
    """What commands print in front of the sentence."""
    exit_code: ClassVar[int] = 2
    """With what commands end."""


class ConfigError(UserError):
    """A configuration breaks its schema; the message names the YAML path."""


class ConfigNotFoundError(ConfigError):
    """A YAML file that a command or a defaults list names is in none of the config folders."""

    title = "hydra.errors.ConfigCompositionException"

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.name = name
        """The file without ending, such as "model/my_model"."""


class ModelNotFoundError(UserError):
    """A model of that name is not there, or cannot be used; the notes say where was searched."""

    exit_code = 3


class ExternalModelConflictError(UserError):
    """Two models of the same name; both locations follow, one a line."""

    title = "ExternalModelConflictError"
    exit_code = 3

    def __init__(self, name: str, locations: tuple[str, ...]) -> None:
        places = "".join(f"\n  {location}" for location in locations)
        super().__init__(f"Duplicate model name: {name}{places}")


class DataError(UserError):
    """A file, shard, cut or text cannot be used; the message names it."""


class ArchiveError(UserError):
    """A `.nemo` archive is damaged, unsafe or of another class; the message names member or key."""


class CheckpointError(UserError):
    """A checkpoint cannot be written, read or resumed from; the message names the file."""
