"""Directory-based discovery: folders with an `xlm_models.json`."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whalesong.core.external.layout import absolute, model_in_folder
from whalesong.core.external.model import ExternalModel

PATH_VARIABLE = "XLM_MODELS_PATH"
JSON_FILE = "xlm_models.json"
_FOLDER = "xlm-models"


@dataclass
class Findings:
    """What one place of the search gave.

    Attributes:
        models: in the order in which they were found; the same one may come twice.
        repeated: names that one json file has more than once, with their locations.
        searched: a line for each place.
        problems: a sentence for each place that could not be read.
    """

    models: list[ExternalModel] = field(default_factory=list)
    repeated: dict[str, tuple[str, ...]] = field(default_factory=dict)
    searched: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def in_directories(folder: Path, environ: Mapping[str, str]) -> Findings:
    """The models that the json files of the search folders name."""
    findings = Findings()
    for place, source in _search_folders(folder, environ):
        _read(place, source, findings)
    return findings


def _search_folders(folder: Path, environ: Mapping[str, str]) -> Iterator[tuple[Path, str | None]]:
    """The folders, each once, with the variable that asks for it."""
    given = [entry for entry in environ.get(PATH_VARIABLE, "").split(":") if entry.strip()]
    places = [(folder, None), (folder / _FOLDER, None)]
    places += [(absolute(entry.strip(), folder=folder), PATH_VARIABLE) for entry in given]
    seen: set[Path] = set()
    for place, source in places:
        if place.resolve() not in seen:
            seen.add(place.resolve())
            yield place, source


def _read(place: Path, source: str | None, findings: Findings) -> None:
    """Add what one search folder holds; a folder that a variable names has to be one."""
    file = place / JSON_FILE
    if not os.path.isfile(file):  # a folder that may not be read has none
        lack = "is not there" if place.is_dir() else "is not there, nor is the folder"
        findings.searched.append(f"{file} {lack}")
        if source is not None:
            findings.problems.append(f"{source} names {place}, but {file} does not exist.")
        return
    try:
        entries = _entries(file)
    except ValueError as error:
        findings.searched.append(f"{file} cannot be read")
        findings.problems.append(f"{file} {error}.")
        return
    findings.searched.append(f"{file}: {', '.join(dict(entries)) or 'empty'}")
    _add(file, entries, findings)


def _add(file: Path, entries: list[tuple[str, Any]], findings: Findings) -> None:
    names = [name for name, _ in entries]
    for name, value in entries:
        model = _model(name, value, file)
        findings.models.append(model)
        if names.count(name) > 1:
            findings.repeated[name] = (*findings.repeated.get(name, ()), model.location)


def _model(name: str, value: Any, file: Path) -> ExternalModel:
    model = ExternalModel(name, file.parent, None, None, "directory", str(file))
    if not isinstance(value, str) or "\0" in value:
        return model.broken(f"its value must be a path, but is {json.dumps(value):.60}")
    try:
        return model_in_folder(name, absolute(value, folder=file.parent), found_by=str(file))
    except OSError as error:
        return model.broken(f"its folder cannot be read ({error})")


def _entries(file: Path) -> list[tuple[str, Any]]:
    """The pairs of a json file, repeated names included.

    Raises:
        ValueError: the rest of a sentence that begins with the file.
    """
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not valid JSON, line {error.lineno}: {error.msg}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot be read ({error})") from error
    if not isinstance(content, _Pairs):
        raise ValueError('must hold one object, {"name": "path"}')
    return list(content)


class _Pairs(list):
    """The pairs of a JSON object, which a list of the file cannot be mistaken for."""
