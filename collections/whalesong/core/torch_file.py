"""Reading `torch.save` files without executing what they hold."""

import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import torch
from torch import Tensor

from whalesong.core.printable import one_line

_MAX_PICKLE = 64 * 1024**2
_MAX_ENTRIES = 1_000_000
_MAX_DEPTH = 100


class TorchFileError(ValueError):
    """The file is damaged or holds more than data; the message is a reason without a file name."""

    def __init__(self, reason: str) -> None:
        super().__init__(one_line(reason))


def check_torch_file(file: BinaryIO) -> None:
    """Refuse what is no whole zip archive of stored entries with a right CRC each.

    Args:
        file: seekable binary file; its position is moved.

    Raises:
        TorchFileError: with the reason.
    """
    _entry_sizes(file)


def load_torch_file(
    file: BinaryIO, *, map_location: str | torch.device | Callable | dict | None = "cpu"
) -> Any:
    """Check the file, then read it with `weights_only=True`: containers, numbers and tensors only.

    Raises:
        TorchFileError: with the reason.
    """
    sizes = _entry_sizes(file)
    file.seek(0)
    try:
        content = torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise TorchFileError(_unpickling_reason(error)) from error
    except Exception as error:
        raise TorchFileError(f"cannot be read ({_reason(error)})") from error
    for name, tensor in named_tensors(content):
        _check_tensor(name, tensor, sizes)
    return content


def unsafe_globals(path: str | os.PathLike) -> list[str]:
    """Names that a file written by `torch.save` refers to and `weights_only=True` would refuse."""
    return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))


def named_tensors(content: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested containers, each with its dotted path, in their order.

    A container that is there twice is visited once: a file may nest references without end.

    Raises:
        TorchFileError: nested deeper than 100 levels.
    """
    pending, seen = [(name, content, 0)], set()
    while pending:
        name, value, depth = pending.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, dict | list | tuple | set) and id(value) not in seen:
            if depth > _MAX_DEPTH:
                raise TorchFileError(f"is nested deeper than {_MAX_DEPTH} levels")
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            dot = "." if name else ""
            pending += [(f"{name}{dot}{key}", item, depth + 1) for key, item in items][::-1]


def _entry_sizes(file: BinaryIO) -> set[int]:
    file_size = file.seek(0, os.SEEK_END)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _check_entries(entries, file_size)
            if (broken := archive.testzip()) is not None:
                raise TorchFileError(f"is damaged: entry '{broken}' has a wrong checksum")
    except TorchFileError:
        raise
    except Exception as error:
        raise TorchFileError(f"is no whole zip archive ({_reason(error)})") from error
    return {entry.file_size for entry in entries}


def _check_entries(entries: list[zipfile.ZipInfo], file_size: int) -> None:
    if len(entries) > _MAX_ENTRIES:
        raise TorchFileError(f"has {len(entries)} entries, more than {_MAX_ENTRIES}")
    if len({entry.filename for entry in entries}) != len(entries):
        raise TorchFileError("names an entry twice")
    if sum(entry.file_size for entry in entries) > file_size:
        raise TorchFileError("claims entries larger than the file")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise TorchFileError(f"entry '{entry.filename}' is compressed or encrypted")
        if entry.filename.endswith(".pkl") and entry.file_size > _MAX_PICKLE:
            raise TorchFileError(f"entry '{entry.filename}' is larger than {_MAX_PICKLE} bytes")


def _check_tensor(name: str, tensor: Tensor, sizes: set[int]) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise TorchFileError(f"'{name}' is not a plain dense tensor")
    stored = tensor.untyped_storage().nbytes()
    # A declared size beyond the stored entry would read memory that is not the file's.
    if stored and stored not in sizes:
        raise TorchFileError(f"'{name}' claims {stored} bytes, which no entry of the file has")
    if tensor.numel() * tensor.element_size() > stored:
        raise TorchFileError(f"'{name}' claims more elements than are stored")


def _unpickling_reason(error: Exception) -> str:
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        name = found.group(1)[:120]
        return f"refers to '{name}'; only numbers, strings, containers and tensors are read"
    return "holds more than numbers, strings, containers and tensors"


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
