"""Errors that a user can act on: one sentence with the name, the rule and the value."""


class UserError(ValueError):
    """Something a user gave is wrong; commands print its one line without a traceback."""


class ConfigError(UserError):
    """A configuration breaks its schema; the message names the YAML path."""


class DataError(UserError):
    """A file, shard, cut or text cannot be used; the message names it."""


class ArchiveError(UserError):
    """A `.nemo` archive is damaged, unsafe or of another class; the message names member or key."""


class CheckpointError(UserError):
    """A checkpoint cannot be written, read or resumed from; the message names the file."""
