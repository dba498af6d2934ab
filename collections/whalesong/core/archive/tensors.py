"""The safetensors member: written as a stream, read as a memory map.

The format is that of the `safetensors` library (8 bytes length, JSON header, data); it is
handled here because the library neither writes into nor reads from the middle of a file.
"""

import json
import mmap
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from whalesong.core.errors import ArchiveError

MAX_HEADER = 6 * 1024**2
_ALIGNMENT = 8

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_CHUNK = 16 * 1024**2


class TensorStream:
    """Named tensors as the bytes of a safetensors file.

    Tensors that share all their memory (tied embeddings) are stored once; `aliases` maps the
    other names to the stored one. The order is by item size, then name, so that the data are
    aligned and the bytes do not depend on the order given.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.aliases: dict[str, str] = {}
        self._tensors: list[tuple[str, Tensor]] = []
        first: dict[tuple, str] = {}
        for name in sorted(tensors):
            _check_plain(name, tensors[name])
            stored = first.setdefault(_memory(name, tensors[name]), name)
            if stored == name:
                self._tensors.append((name, tensors[name].detach()))
            else:
                self.aliases[name] = stored
        self._tensors.sort(key=lambda pair: (-pair[1].element_size(), pair[0]))
        self._header = self._build_header()
        self.size = len(self._header) + sum(_bytes_of(tensor) for _, tensor in self._tensors)

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The file in pieces of at most 16 MiB; a tensor on another device is moved alone."""
        yield self._header
        for _, tensor in self._tensors:
            flat = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
            data = memoryview(flat.numpy())
            for start in range(0, len(data), _CHUNK):
                yield data[start : start + _CHUNK]

    def _build_header(self) -> bytes:
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, tensor in self._tensors:
            end = offset + _bytes_of(tensor)
            entries[name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=True).encode("ascii")
        text += b" " * (-len(text) % _ALIGNMENT)
        if len(text) > MAX_HEADER:
            raise ArchiveError(f"a header of {len(text)} bytes is more than {MAX_HEADER}")
        return struct.pack("<Q", len(text)) + text


def read_header(head: bytes, size: int) -> dict[str, dict[str, Any]]:
    """Entries of a safetensors header, each checked against the size of the member.

    Args:
        head: first bytes of the member, at least the whole header.
        size: bytes of the member.

    Returns:
        For each tensor `dtype`, `shape` and `data_offsets` from the begin of the member.

    Raises:
        ArchiveError: "tensor: rule", without the name of the archive.
    """
    begin = 8 + header_length(head, size)
    try:
        entries = json.loads(head[8:begin].decode("utf-8"))
        entries.pop("__metadata__", None)
        checked = {name: _checked_entry(name, entry) for name, entry in entries.items()}
    except ArchiveError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ArchiveError("the header is no valid safetensors header") from error
    _check_layout(checked, size - begin)
    for entry in checked.values():
        entry["data_offsets"] = [begin + offset for offset in entry["data_offsets"]]
    return checked


def header_length(head: bytes, size: int) -> int:
    """Length of the JSON header, refused when it cannot be true."""
    if len(head) < 8:
        raise ArchiveError("is shorter than a safetensors header")
    length = struct.unpack("<Q", head[:8])[0]
    if length > min(MAX_HEADER, size - 8):
        raise ArchiveError(f"claims a header of {length} bytes")
    return length


def map_tensors(
    memory: mmap.mmap, offset: int, entries: Mapping[str, Mapping[str, Any]]
) -> dict[str, Tensor]:
    """Tensors over a private memory map; pages are read when they are used.

    Args:
        memory: map of the whole archive with `ACCESS_COPY`, so that writing stays in memory.
        offset: begin of the member in it.
        entries: from `read_header`.
    """
    tensors = {}
    for name, entry in entries.items():
        dtype, (begin, end) = _DTYPES[entry["dtype"]], entry["data_offsets"]
        if begin == end:
            tensors[name] = torch.empty(entry["shape"], dtype=dtype)
            continue
        data = torch.frombuffer(memory, dtype=torch.uint8, count=end - begin, offset=offset + begin)
        if (offset + begin) % dtype.itemsize:
            data = data.clone()
        tensors[name] = data.view(dtype).reshape(entry["shape"])
    return tensors


def _check_plain(name: str, tensor: Tensor) -> None:
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        raise ArchiveError(f"{name!r:.80}: must be a tensor, but is a {type(tensor).__name__}")
    if name == "__metadata__":
        raise ArchiveError(f"{name}: is a reserved name")
    if type(tensor) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer):
        raise ArchiveError(f"{name}: is a {type(tensor).__name__}; gather it to a plain tensor")
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or _lazy(tensor):
        raise ArchiveError(f"{name}: must be a dense tensor with data")
    if tensor.dtype not in _NAMES:
        raise ArchiveError(f"{name}: tensors of {tensor.dtype} cannot be stored")


def _lazy(tensor: Tensor) -> bool:
    """Whether the values differ from the memory by a pending conjugation or negation."""
    return tensor.is_conj() or tensor.is_neg()


def _memory(name: str, tensor: Tensor) -> tuple:
    """The same for tensors that are the same memory; empty tensors are never the same."""
    if not tensor.numel():
        return (name,)
    place = (tensor.device, tensor.data_ptr(), tensor.dtype)
    return (*place, tuple(tensor.shape), tensor.stride())


def _bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _checked_entry(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    numbers = [*shape, begin, end]
    if dtype not in _DTYPES or any(type(n) is not int or not 0 <= n < 2**60 for n in numbers):
        raise ArchiveError(f"{name[:80]}: has an invalid type, shape or place")
    count = 1
    for length in shape:
        count *= length
    if end - begin != count * _DTYPES[dtype].itemsize:
        raise ArchiveError(f"{name[:80]}: has a size that does not fit its shape")
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def _check_layout(entries: Mapping[str, Mapping[str, Any]], size: int) -> None:
    """The tensors must fill the data one after the other: no overlap, no gap, no hidden bytes."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        if begin != position or end > size:
            raise ArchiveError(f"{name[:80]}: does not begin where the one before ends")
        position = end
    if position != size:
        raise ArchiveError(f"{size - position} bytes belong to no tensor")
