"""JSON artifacts: no request for remote code, no class to be built."""

import json
from typing import Any

from whalesong.core.archive.layout import CONFIG, MAX_JSON
from whalesong.core.archive.sizes import is_too_large, largest
from whalesong.core.errors import ArchiveError
from whalesong.core.instantiate import REMOTE_CODE_RULE, asks_for_remote_code, names_class

_OBJECT = object()
_NAMES_CLASSES = "codec.json"


def check_json(name: str, content: bytes) -> None:
    """Refuse a JSON file that asks a library to run code from elsewhere, at any depth.

    Objects are checked while they are parsed and then dropped, since a tokenizer has a million.
    The description of a codec alone may name classes, which its builder checks.

    Raises:
        ArchiveError: "name: key: rule".
    """
    if len(content) > MAX_JSON:
        raise ArchiveError(f"{name}: is {len(content)} bytes, more than {MAX_JSON}")
    check = _check_object if name.endswith(_NAMES_CLASSES) else _check_plain_object
    try:
        found = json.loads(content.decode("utf-8"), object_pairs_hook=check)
    except ArchiveError as error:
        raise ArchiveError(f"{name}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{name}: is no valid JSON ({str(error)[:120]})") from error
    if found is not _OBJECT:
        raise ArchiveError(f"{name}: must hold an object")


def _check_object(pairs: list[tuple[str, Any]]) -> object:
    for key, value in pairs:
        if asks_for_remote_code(key, value):
            raise ArchiveError(f"`{key}`: {REMOTE_CODE_RULE}")
        if is_too_large(key, value):
            raise ArchiveError(f"`{key}`: must be at most {largest(key)}, but is {value}")
        if isinstance(value, str) and "${" in value:
            raise ArchiveError(f"`{key}`: interpolations (`${{`) are not allowed")
    return _OBJECT


def _check_plain_object(pairs: list[tuple[str, Any]]) -> object:
    for key, value in pairs:
        if names_class(key, value):
            raise ArchiveError(f"`{key}`: only {CONFIG} may name classes to be built")
    return _check_object(pairs)
