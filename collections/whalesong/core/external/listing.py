"""The table of `xlm job_type=list`: each model, where it is, what it brings, what is wrong."""

from collections.abc import Iterator

from whalesong.core.external.jobs import BUILT_IN
from whalesong.core.external.model import ExternalModel
from whalesong.core.external.registry import Registry
from whalesong.core.external.yaml_files import commands_of, configs_of, unreadable_files

_GROUPS = ("model", "model_type", "datamodule", "experiment")


def listing(registry: Registry) -> str:
    """The table as text."""
    models = [*registry.models.values(), *registry.rivals]
    rows = [("NAME", "ORIGIN", "LOCATION"), *map(_row, models)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = []
    for row, model in zip(rows, [None, *models], strict=True):
        lines.append(f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}")
        if model is not None:
            lines += [f"{'':{widths[0]}}  {line}" for line in _details(model, registry)]
    return "\n".join([*lines, "", *_ending(registry)])


def _row(model: ExternalModel) -> tuple[str, str, str]:
    return model.name, model.origin, model.location


def _details(model: ExternalModel, registry: Registry) -> Iterator[str]:
    if model.problem is not None:
        yield f"BROKEN: {model.problem}"
    if model.name in registry.conflicts:
        yield "CONFLICT: another model has the same name"
    for group in _GROUPS:
        if names := configs_of(model, group):
            yield f"{group}: {', '.join(names)}"
    commands = [
        f"{c.name} (refused: a built-in job type)" if c.name in BUILT_IN else c.name
        for c in commands_of(model)
    ]
    if commands:
        yield f"commands: {', '.join(commands)}"
    for problem in unreadable_files(model):
        yield f"BROKEN YAML: {problem}"


def _ending(registry: Registry) -> Iterator[str]:
    yield "Searched:"
    yield from (f"  - {line}" for line in registry.searched)
    if registry.problems:
        yield "Could not read:"
        yield from (f"  - {problem}" for problem in registry.problems)
    external = [m for m in registry.external() if m.problem is None]
    names = [model.name for model in external if model.name not in registry.conflicts]
    name = names[0] if names else "arlm"
    yield f"Next: xlm job_type=train model={name} model_type={name} debug=overfit"
    if not registry.external():
        yield "      xlm-scaffold my_awesome_model writes a model of your own"
