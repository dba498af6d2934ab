"""The models that were found, by name; what is wrong with one shows when it is asked for."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from whalesong.core.config.schema_errors import near
from whalesong.core.errors import (
    ConfigError,
    ExternalModelConflictError,
    ModelNotFoundError,
    UserError,
)
from whalesong.core.external.directories import Findings
from whalesong.core.external.model import Command, ExternalModel
from whalesong.core.external.yaml_files import commands_of

CHECKS = (
    "the model is listed in xlm_models.json (directory-based), in `.`, xlm-models/ or a folder of"
    " XLM_MODELS_PATH",
    "or it is installed and listed in XLM_MODELS_PACKAGES (package-based)",
    "the directory structure is right: my_model/my_model/ and my_model/configs/",
    "__init__.py exists in the Python package",
)
"""What to look at when a model is not found."""


@dataclass
class Registry:
    """All models by name, broken ones included.

    Attributes:
        models: the first finding of each name.
        conflicts: names that two places claim, with all locations.
        rivals: the findings of such names behind the first one.
        searched: a line for each place of the search.
        problems: a sentence for each place that could not be read.
    """

    models: dict[str, ExternalModel] = field(default_factory=dict)
    conflicts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rivals: list[ExternalModel] = field(default_factory=list)
    searched: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, findings: Findings) -> None:
        """Take in what a search gave; the same place found again is the same model."""
        for model in findings.models:
            self._add(model)
        for name, locations in findings.repeated.items():
            others = [line for line in self.conflicts.get(name, ()) if line not in locations]
            self.conflicts[name] = (*others, *locations)
        self.searched += findings.searched
        self.problems += findings.problems

    def get(self, name: str) -> ExternalModel:
        """The model of that name.

        Raises:
            ModelNotFoundError: there is none, or it is broken.
            ExternalModelConflictError: there are two.
        """
        self.check_conflict(name)
        model = self.models.get(name)
        if model is None:
            raise self.not_found(name)
        if model.problem is not None:
            raise _broken(model)
        return model

    def check_conflict(self, name: str) -> None:
        """Refuse a name that two places claim.

        Raises:
            ExternalModelConflictError: naming them.
        """
        if name in self.conflicts:
            raise ExternalModelConflictError(name, self.conflicts[name])

    def not_found(self, name: str, *, source: str | Path | None = None) -> ModelNotFoundError:
        """The error of a model that is nowhere, with what was searched and what to check."""
        sentence = f"No module named '{name}'"
        if source is not None:
            sentence = (
                f"{source}: {sentence}, the model that wrote it; make it known by an"
                " xlm_models.json, XLM_MODELS_PATH or XLM_MODELS_PACKAGES."
            )
        error = ModelNotFoundError(sentence)
        error.add_note(f"Known models: {', '.join(self.models)}{near(name, self.models)}")
        self.explain(error, checks=CHECKS)
        return error

    def explain(self, error: UserError, *, checks: Iterable[str]) -> None:
        """Add to an error what was searched for models, and what to check."""
        error.add_note("Searched:\n" + _listed(self.searched))
        if self.problems:
            error.add_note("Could not read:\n" + _listed(self.problems))
        error.add_note("Check:\n" + _listed(checks))
        error.add_note("Next: xlm job_type=list shows each model, where it is and what is wrong.")

    def external(self) -> list[ExternalModel]:
        """All findings but the core models."""
        return [m for m in [*self.models.values(), *self.rivals] if m.origin != "core"]

    def config_roots(self) -> list[Path]:
        """The config folders of external models, broken ones included, in order of discovery."""
        folders = [folder for model in self.external() for folder in model.config_folders]
        return list(dict.fromkeys(folder.resolve() for folder in folders))

    def owner_of(self, file: Path) -> ExternalModel | None:
        """The external model to which a config file belongs."""
        for model in self.external():
            if any(file.is_relative_to(folder.resolve()) for folder in model.config_folders):
                return model
        return None

    def commands(self) -> dict[str, Command]:
        """All commands of external models by name; of a name that comes twice, the first."""
        return {command.name: command for command in reversed(self._commands())}

    def command(self, name: str) -> Command:
        """One command, which must be one model's only.

        Raises:
            ConfigError: two models bring it.
        """
        found = [command for command in self._commands() if command.name == name]
        if len(found) > 1:
            places = "".join(f"\n  {command.file} ({command.target})" for command in found)
            raise ConfigError(f"The command `{name}` stands in two places; rename one:{places}")
        return found[0]

    def _commands(self) -> list[Command]:
        commands = [command for model in self.external() for command in commands_of(model)]
        return list({(c.file.resolve(), c.name): c for c in commands}.values())

    def _add(self, model: ExternalModel) -> None:
        first = self.models.setdefault(model.name, model)
        if first.place == model.place:
            if first.problem and not model.problem and first.origin != "core":
                self.models[model.name] = model
            return
        if model.import_path is None and model.origin in ("package", "entry point"):
            self.problems.append(f"{model.found_by} names {model.name}, but {model.problem}.")
            return
        locations = self.conflicts.get(model.name, (first.location,))
        self.conflicts[model.name] = tuple(dict.fromkeys((*locations, model.location)))
        self.rivals.append(model)


def _broken(model: ExternalModel) -> ModelNotFoundError:
    """The error of a model that was found, but cannot be used."""
    if model.import_path is None:
        error = ModelNotFoundError(f"No module named '{model.name}'")
    else:
        error = ModelNotFoundError(f"The model '{model.name}' cannot be used")
    error.add_note(f"Named by {model.found_by}, but {model.problem}.")
    error.add_note("Check:\n" + _listed(CHECKS))
    error.add_note("Next: xlm job_type=list shows each model, where it is and what is wrong.")
    return error


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"  - {line}" for line in lines)
