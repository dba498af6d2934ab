"""The entry of a model in `xlm_models.json`; the rest of the file stays as it is."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whalesong.core.errors import DataError

FILE_NAME = "xlm_models.json"


@dataclass(frozen=True)
class Registration:
    """The json file of a folder, and its text with the new entry."""

    path: Path
    text: str
    is_new: bool


def registration(folder: Path, name: str) -> Registration:
    """Read the folder's `xlm_models.json`, if there is one, and add `name` to its text.

    Raises:
        DataError: it is broken, cannot be written, or has the name already.
    """
    path = folder / FILE_NAME
    if not os.path.lexists(path):
        return Registration(path, json.dumps({name: name}, indent=2) + "\n", is_new=True)
    text = _read(path)
    models = _parsed(path, text)
    if name in models:
        raise DataError(f"{path}: has a model '{name}' already, at {models[name]!r}.")
    extended = _extended(text, name, is_empty=not models)
    if _parsed(path, extended) != {**models, name: name}:
        raise AssertionError(f"the text of {path} was not extended by one entry")
    return Registration(path, extended, is_new=False)


def _read(path: Path) -> str:
    """The text, line ends as they are."""
    if not path.is_file():
        raise DataError(f"{path}: is no file, so the model cannot be registered there.")
    if not (path.stat().st_mode & 0o222 and os.access(path, os.W_OK)):
        raise DataError(f"{path}: is read-only, so the model cannot be registered there.")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 at byte {error.start}.") from error


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text, object_pairs_hook=_refusing_duplicates)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: must hold an object of names and paths, but does not.")
    return content


def _refusing_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        duplicate = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the name '{duplicate}' stands there twice")
    return dict(pairs)


def _extended(text: str, name: str, *, is_empty: bool) -> str:
    """The text of a JSON object with one entry more, written as the ones before it are."""
    before, brace, after = text.rpartition("}")
    entry = json.dumps(name) + ": " + json.dumps(name)
    end = "\r\n" if "\r\n" in text else "\n"
    if is_empty:
        return f"{before.rstrip()}{end}  {entry}{end}{brace}{after}"
    body = before.rstrip()
    indent = re.match(r"\s*", body.rpartition("\n")[2])[0] if "\n" in body else ""
    between = f",{end}{indent}" if "\n" in body else ", "
    return f"{body}{between}{entry}{before[len(body) :]}{brace}{after}"
