"""Job types: the built-in ones, and the commands that models bring."""

from typing import TYPE_CHECKING, Any, get_args

from whalesong.core.config.job import JobType
from whalesong.core.config.schema_errors import near
from whalesong.core.errors import ConfigError
from whalesong.core.external.activation import activate
from whalesong.core.external.composition import ComposedJob
from whalesong.core.external.model import Command
from whalesong.core.external.registry import Registry
from whalesong.core.external.source import lookup_problem
from whalesong.core.external.yaml_files import commands_of, unreadable_files
from whalesong.core.instantiate import import_named, unable_to_find

if TYPE_CHECKING:
    from omegaconf import DictConfig

BUILT_IN: tuple[str, ...] = get_args(JobType)
"""The job types of `xlm` itself."""


def command_of(job_type: Any, registry: Registry) -> Command | None:
    """The command that a job type means; None for a built-in one.

    Raises:
        ConfigError: there is no such job type, or two models bring it.
    """
    commands = registry.commands()
    if not isinstance(job_type, str) or job_type in BUILT_IN:
        return None
    if job_type in commands:
        return registry.command(job_type)
    known = [*BUILT_IN, *sorted(set(commands) - set(BUILT_IN))]
    error = ConfigError(
        f"`job_type` must be one of {', '.join(known)}, but is '{job_type}'"
        f" instead{near(job_type, known)}"
    )
    for model in registry.external():
        for problem in unreadable_files(model):
            error.add_note(f"{problem} (model {model.name})")
    raise error


def refuse_taken_names(job: ComposedJob) -> None:
    """Refuse a model in use that gives a command the name of a built-in job type.

    Raises:
        ConfigError: naming file and command.
    """
    for name in job.used:
        for command in commands_of(job.registry.models[name]):
            if command.name in BUILT_IN:
                raise ConfigError(
                    f"{command.file}: the command `{command.name}` has the name of a built-in job"
                    " type; rename it."
                )


def run(command: Command, cfg: "DictConfig", registry: Registry) -> None:
    """Import the function of a command and call it with the composed config.

    Raises:
        ConfigError: the function is not there.
        ModelNotFoundError: the model of the command is broken.
    """
    model = registry.get(command.model)
    activate(model)
    is_own = command.target.partition(".")[0] == model.name
    path, folder = str(command.file), model.import_path
    if problem := lookup_problem(command.target, package=model.package if is_own else None):
        raise unable_to_find(command.target, problem, path=path, import_path=folder)
    function = import_named(command.target, path=path, import_path=folder)
    if not callable(function):
        raise ConfigError(f"{command.file}: `{command.target}` is no function.")
    function(cfg)
