"""Writing an archive: atomically, and the same bytes for the same content."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from whalesong.core.archive import layout, plain_yaml
from whalesong.core.archive.json_member import check_json
from whalesong.core.archive.manifest import (
    FORMAT,
    FORMAT_VERSION,
    KINDS,
    manifest_bytes,
    writer_version,
)
from whalesong.core.archive.tensors import TensorStream
from whalesong.core.atomic import Sink, atomic_write
from whalesong.core.errors import ArchiveError
from whalesong.core.instantiate import refuse_remote_code

_CHUNK = 16 * 1024**2


def write_archive(
    path: str | Path,
    *,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    files: Mapping[str, Path | str | bytes] | None = None,
    kind: str = "whole",
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a self-contained `.nemo`; an old file at `path` stays whole until the end.

    The same content gives the same bytes (keys of `config` in the same order).

    Args:
        path: the archive.
        config: plain data with the class name as `target`; stored as `model_config.yaml`.
        tensors: the weights; tied ones are stored once.
        files: artifacts by flat member name, as bytes or as the path to copy from.
        kind: "whole", or "slim" when `tensors` lacks the frozen parts.
        metadata: plain data for the manifest, such as fingerprints of the frozen parts.

    Raises:
        ArchiveError: one line: something cannot be stored, or the disk is full.
    """
    path = Path(path)
    with layout.blame(path):
        members, manifest = _members(dict(config), tensors, files or {})
        manifest |= _description(kind, dict(metadata or {}))
    need = layout.archive_size([size for _, size, _ in members] + [layout.MAX_MANIFEST])
    with atomic_write(path, need=need, error=ArchiveError) as (sink, _):
        for name, size, chunks in members:
            manifest["members"][name] = _write_member(sink, path, name, size, chunks)
        content = manifest_bytes(manifest)
        if len(content) > layout.MAX_MANIFEST:
            raise ArchiveError(f"{path}: {layout.MANIFEST}: is larger than {layout.MAX_MANIFEST}.")
        _write_member(sink, path, layout.MANIFEST, len(content), iter([content]))
        _write_zeros(sink, 2 * layout.BLOCK)
        _write_zeros(sink, layout.padding(sink.size, unit=layout.RECORD))


_Members = list[tuple[str, int, Iterator[bytes | memoryview]]]


def _members(
    config: dict[str, Any], tensors: Mapping[str, Tensor], files: Mapping[str, Path | str | bytes]
) -> tuple[_Members, dict[str, Any]]:
    """What to write, in order, and the manifest without its digests."""
    target = config.get("target")
    if not isinstance(target, str):
        raise ArchiveError(f"{layout.CONFIG}: `target` must name the class of the model")
    with layout.blame(layout.CONFIG):
        refuse_remote_code(config)
        text = plain_yaml.dump(config)
    with layout.blame(layout.WEIGHTS):
        stream = TensorStream(tensors)
    members: _Members = [
        (layout.CONFIG, len(text), iter([text])),
        (layout.WEIGHTS, stream.size, stream.chunks()),
    ]
    for name in sorted(files):
        members.append(_file_member(name, files[name]))
    if len(members) >= layout.MAX_MEMBERS:
        raise ArchiveError(f"{len(members)} files are more than {layout.MAX_MEMBERS}")
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "writer": writer_version(),
        "target": target,
        "aliases": stream.aliases,
        "members": {},
    }
    return members, manifest


def _description(kind: str, metadata: dict[str, Any]) -> dict[str, Any]:
    if kind not in KINDS:
        raise ArchiveError(f"`kind` must be one of {', '.join(KINDS)}, but is {kind!r:.40}")
    with layout.blame("metadata"):
        plain_yaml.check_plain(metadata)
    return {"kind": kind, "metadata": metadata}


def _file_member(
    name: str, content: Path | str | bytes
) -> tuple[str, int, Iterator[bytes | memoryview]]:
    if name in layout.RESERVED:
        raise ArchiveError(f"{name}: is a reserved name")
    layout.check_name(name)
    if isinstance(content, bytes):
        data: bytes | None = content
    else:
        data = _read_json(name, Path(content))
    if data is None:
        return name, Path(content).stat().st_size, _read_chunks(Path(content))
    if name.endswith(".json"):
        check_json(name, data)
    return name, len(data), iter([data])


def _read_json(name: str, path: Path) -> bytes | None:
    """The content of a JSON file; None for another file, which is copied piece by piece."""
    if not path.is_file():
        raise ArchiveError(f"{name}: {path} is not a file")
    return path.read_bytes() if name.endswith(".json") else None


def _read_chunks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _write_member(
    sink: Sink, path: Path, name: str, size: int, chunks: Iterator[bytes | memoryview]
) -> dict[str, Any]:
    """Write one member; returns its entry in the manifest."""
    sink.write(layout.header(name, size))
    digest, begin = hashlib.sha256(), sink.size
    for chunk in chunks:
        digest.update(chunk)
        sink.write(chunk)
    if sink.size - begin != size:
        raise ArchiveError(f"{path}: {name}: changed while it was written.")
    _write_zeros(sink, layout.padding(size))
    return {"sha256": digest.hexdigest(), "size": size}


def _write_zeros(sink: Sink, count: int) -> None:
    sink.write(bytes(count))
