"""JSON artifacts: no request for remote code."""

import json
from typing import Any

from whalesong.core.archive.layout import MAX_JSON
from whalesong.core.errors import ArchiveError
from whalesong.core.instantiate import REMOTE_CODE_RULE, asks_for_remote_code

_OBJECT = object()


def check_json(name: str, content: bytes) -> None:
    """Refuse a JSON file that asks a library to run code from elsewhere, at any depth.

    Objects are checked while they are parsed and then dropped, since a tokenizer has a million.

    Raises:
        ArchiveError: "name: key: rule".
    """
    if len(content) > MAX_JSON:
        raise ArchiveError(f"{name}: is {len(content)} bytes, more than {MAX_JSON}")
    try:
        json.loads(content.decode("utf-8"), object_pairs_hook=_check_object)
    except ArchiveError as error:
        raise ArchiveError(f"{name}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{name}: is no valid JSON ({str(error)[:120]})") from error


def _check_object(pairs: list[tuple[str, Any]]) -> object:
    for key, value in pairs:
        if asks_for_remote_code(key, value):
            raise ArchiveError(f"`{key}`: {REMOTE_CODE_RULE}")
    return _OBJECT
