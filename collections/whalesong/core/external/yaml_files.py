"""What the YAML of a model names: its configs, its classes, its commands. Nothing is imported."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from whalesong.core.external.model import Command, ExternalModel

COMMANDS_FILE = "commands.yaml"


def configs_of(model: ExternalModel, group: str) -> list[str]:
    """The names of the files in a config group of a model."""
    folders = [folder / group for folder in model.config_folders]
    files = [file.relative_to(folder) for folder in folders for file in folder.rglob("*.yaml")]
    names = {str(file.with_suffix("")) for file in files}
    return sorted(name for name in names if model.origin != "core" or _is_of(name, model.name))


def targets_of(model: ExternalModel) -> set[str]:
    """All classes that the YAML of a model names as `_target_`."""
    found = {target for _, content in _contents(model) for target in _targets(content)}
    return {target for target in found if "." in target and "${" not in target}


def commands_of(model: ExternalModel) -> list[Command]:
    """The commands that a model brings; an entry that is no `name: dotted.function` is left out."""
    found: dict[str, Command] = {}
    for folder in model.config_folders if model.origin != "core" else []:
        file = folder / COMMANDS_FILE
        content = _content(file) if file.is_file() else None
        for name, target in content.items() if isinstance(content, dict) else ():
            if isinstance(name, str) and isinstance(target, str) and "." in target:
                found.setdefault(name, Command(name, target, model.name, file))
    return list(found.values())


def unreadable_files(model: ExternalModel) -> list[str]:
    """A sentence for each YAML file of a model that is not valid."""
    if model.origin == "core":
        return []
    return [content.text for _, content in _contents(model) if isinstance(content, _Broken)]


class _Broken:
    """Stands for the content of a file that is not valid YAML."""

    def __init__(self, text: str) -> None:
        self.text = text


def _contents(model: ExternalModel) -> Iterator[tuple[Path, Any]]:
    files = {file for folder in model.config_folders for file in folder.rglob("*.y*ml")}
    for file in sorted(files):
        yield file, _content(file)


def _content(file: Path) -> Any:
    """The content of a YAML file, read again only when it has changed."""
    found = file.stat()
    return _parsed(file, found.st_mtime_ns, found.st_size)


@functools.lru_cache(maxsize=512)
def _parsed(file: Path, changed: int, size: int) -> Any:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}," if mark else ""
        problem = getattr(error, "problem", None) or "syntax error"
        return _Broken(f"{file}{line} is not valid YAML: {problem}")
    except (OSError, UnicodeDecodeError) as error:
        return _Broken(f"{file} cannot be read ({error})")


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "_target_" and isinstance(value, str):
                yield value
            yield from _targets(value)
    elif isinstance(node, list):
        for item in node:
            yield from _targets(item)


def _is_of(config: str, model: str) -> bool:
    """Whether a file of the common folder `conf/` belongs to a core model."""
    return config == model or config.endswith(f"_{model}")
