"""Configuration and weights of NeMo's own `.nemo` files, read without running or unpacking them."""

import io
import pickle
import re
import tarfile
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

CONFIG = "model_config.yaml"
WEIGHTS = "model_weights.ckpt"

_MAX_CONFIG = 1024**2
_MAX_MEMBERS = 1000
_MAX_RATIO = 20
_MAX_DEPTH = 40
_CLASS_KEYS = ("target", "cls", "class_path")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_nemo(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights on the CPU; other members are not looked at.

    Weights are read with `weights_only=True`, whatever the environment says. Files that claim more
    than they hold, and configurations with aliases or tags, are refused.

    Raises:
        ValueError: one sentence: it is no such file, is damaged, or holds more than data.
    """
    try:
        with tarfile.open(path) as archive:
            members = _members(archive, limit=_MAX_RATIO * Path(path).stat().st_size)
            config = _config(archive.extractfile(members[CONFIG]).read())
            return config, _weights(archive.extractfile(members[WEIGHTS]))
    except KeyError as error:
        raise ValueError(f"'{path}' must be a `.nemo` file, but holds no {error}.") from error
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, yaml.YAMLError) as error:
        raise ValueError(f"'{path}' must be a `.nemo` file, but is not: {_line(error)}.") from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"'{path}' must be a `.nemo` file of data only, but {WEIGHTS} {_reason(error)}."
        ) from error
    except (ValueError, RuntimeError, RecursionError) as error:
        raise ValueError(
            f"'{path}' must be a `.nemo` file that is whole and safe, but is not: {_line(error)}."
        ) from error


def check_classes(section: Any, allowed: Collection[str], *, path: str) -> None:
    """Refuse a section that names another class, or says how to build one, at any depth.

    Args:
        section: nested dicts and lists.
        allowed: exact names that `_target_` may have.
        path: of the section, for the error.

    Raises:
        ValueError: one sentence that names the key.
    """
    for place, key, value in _walk(section, path, 0):
        if isinstance(value, str) and "${" in value:
            raise ValueError(f"`{place}`: interpolations (`${{`) are not allowed here.")
        if key == "_target_":
            if not isinstance(value, str) or value not in allowed:
                raise ValueError(f"`{place}`: '{value!s:.120}' is not an allowed class.")
        elif re.fullmatch(r"_[a-z]+_", key) or (key in _CLASS_KEYS and "." in str(value)):
            raise ValueError(f"`{place}`: the key `{key}` is not allowed here.")


def _walk(node: Any, path: str, depth: int) -> Iterator[tuple[str, str, Any]]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"`{path[:80]}`: nested deeper than {_MAX_DEPTH} levels.")
    if isinstance(node, Mapping):
        items = [(f"{path}.{key}", str(key), value) for key, value in node.items()]
    else:
        items = [(f"{path}[{n}]", str(n), value) for n, value in enumerate(node)]
    for place, key, value in items:
        yield place, key, value
        if isinstance(value, Mapping | list | tuple):
            yield from _walk(value, place, depth + 1)


def _members(archive: tarfile.TarFile, *, limit: int) -> dict[str, tarfile.TarInfo]:
    """The regular files by name; each is looked at before what follows it is read."""
    found: dict[str, tarfile.TarInfo] = {}
    for count, member in enumerate(archive):
        name = member.name.removeprefix("./")
        if count >= _MAX_MEMBERS or member.offset_data + member.size > limit:
            raise ValueError(f"{name[:80]!r}: claims more than the file can hold")
        if member.isreg() and member.sparse is None:
            if name in found:
                raise ValueError(f"{name[:80]!r}: is there twice")
            found[name] = member
    return found


def _config(content: bytes) -> dict[str, Any]:
    if len(content) > _MAX_CONFIG:
        raise ValueError(f"{CONFIG}: is {len(content)} bytes, more than {_MAX_CONFIG}")
    for event in yaml.parse(content, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{CONFIG}: aliases are not allowed")
    config = yaml.load(content, Loader=_LOADER)  # noqa: S506 - the safe loader
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG}: must hold a mapping")
    return config


def _weights(file: io.BufferedReader) -> dict[str, Tensor]:
    size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as stored:
        entries = stored.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError(f"{WEIGHTS}: is compressed")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError(f"{WEIGHTS}: claims entries larger than the file")
        if (broken := stored.testzip()) is not None:
            raise ValueError(f"{WEIGHTS}: is damaged: entry '{broken[:80]}' has a wrong checksum")
    file.seek(0)
    weights = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        raise ValueError(f"{WEIGHTS}: holds more than tensors by name")
    return dict(weights)


def _reason(error: Exception) -> str:
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f"refers to '{found.group(1)[:120]}'" if found else "holds more than data"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
