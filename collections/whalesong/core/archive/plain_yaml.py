"""YAML of plain data: no aliases, no tags, no interpolations, limited depth."""

import math
import re
from typing import Any

import yaml

from whalesong.core.archive.layout import MAX_CONFIG
from whalesong.core.errors import ArchiveError
from whalesong.core.printable import one_line

_MAX_DEPTH = 40
_MAX_EVENTS = 100_000
_MAX_NUMBER = 400


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Safe loader that also refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if not isinstance(key, str | int):
                raise ArchiveError(f"{key!r:.40}: keys are strings")
        if len(set(keys)) != len(keys):
            twice = next(key for position, key in enumerate(keys) if key in keys[:position])
            raise ArchiveError(f"{twice!r:.40}: is given twice")
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Safe dumper that writes an object in full wherever it occurs."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump(config: dict[str, Any]) -> bytes:
    """YAML text of plain data, keys in the order given.

    Raises:
        ArchiveError: "key: rule" for anything that is no plain data.
    """
    check_plain(config)
    text = yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=False)
    if len(text) > MAX_CONFIG:
        raise ArchiveError(f"is {len(text)} bytes, more than {MAX_CONFIG}")
    return text.encode("ascii")


def load(content: bytes) -> dict[str, Any]:
    """Plain data from YAML text that nobody vouches for.

    Raises:
        ArchiveError: "key: rule", without the name of the archive.
    """
    try:
        text = content.decode("utf-8")
        _check_events(text)
        config = yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of the safe loader
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        if isinstance(error, ArchiveError):
            raise
        raise ArchiveError(f"is no valid YAML ({one_line(error)[:200]})") from error
    if not isinstance(config, dict):
        raise ArchiveError("must hold a mapping")
    check_plain(config)
    return config


def _check_events(text: str) -> None:
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ArchiveError(f"line {event.start_mark.line + 1}: aliases are not allowed")
        if getattr(event, "tag", None):
            raise ArchiveError(f"line {event.start_mark.line + 1}: tags are not allowed")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent):
            _check_scalar(event)
        if depth > _MAX_DEPTH or count > _MAX_EVENTS:
            raise ArchiveError(f"line {event.start_mark.line + 1}: nested too deep or too long")


def _check_scalar(event: yaml.ScalarEvent) -> None:
    if event.style or len(event.value) <= _MAX_NUMBER:
        return
    if event.value[0] in "+-.0123456789":
        raise ArchiveError(f"line {event.start_mark.line + 1}: a number is too long")


def check_plain(value: Any, path: str = "", depth: int = 0) -> None:
    """Refuse what is no nested dict, list, str, bool, int, finite or infinite float, or None.

    Raises:
        ArchiveError: "key: rule".
    """
    if depth > _MAX_DEPTH:
        raise ArchiveError(f"{path[:60]}: nested deeper than {_MAX_DEPTH} levels")
    if type(value) is dict:
        for key, item in value.items():
            if not isinstance(key, str | int) or "${" in str(key):
                raise ArchiveError(f"{path}.{key!r:.40}: keys are plain strings")
            check_plain(item, f"{path}.{key}" if path else str(key), depth + 1)
    elif type(value) is list:
        for index, item in enumerate(value):
            check_plain(item, f"{path}[{index}]", depth + 1)
    else:
        _check_leaf(value, path)


def _check_leaf(value: Any, path: str) -> None:
    if type(value) not in (str, bool, int, float, type(None)):
        raise ArchiveError(f"{path}: must be plain data, but is a {type(value).__name__}")
    if isinstance(value, str) and "${" in value:
        raise ArchiveError(f"{path}: interpolations (`${{`) are not allowed")
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
        raise ArchiveError(f"{path}: holds a character that cannot be encoded")
    if isinstance(value, float) and math.isnan(value):
        raise ArchiveError(f"{path}: is not a number (NaN)")
