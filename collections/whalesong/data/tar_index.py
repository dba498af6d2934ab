"""Random access into tar files: an index of their members, and references to them.

A reference is a string `path#offset+size`; it travels in a cut in place of the audio and is
resolved in a worker.
"""

import os
import re
import tarfile
from array import array
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache

from whalesong.core.errors import DataError
from whalesong.data.faults import cause

REFERENCE = re.compile(r"#\d+\+\d+$")


@dataclass(frozen=True, eq=False)
class TarIndex:
    """Where the members of a tar file lie."""

    path: str
    names: list[str]
    """Member names in the order of the file."""
    offsets: array
    """First byte of each member's data."""
    sizes: array
    """Bytes of each member's data."""
    damage: str | None
    """Why the file ends before its end mark; None when it is whole."""

    def __len__(self) -> int:
        return len(self.names)

    def reference(self, position: int) -> str:
        """The reference of a member."""
        return f"{self.path}#{self.offsets[position]}+{self.sizes[position]}"

    @cached_property
    def positions(self) -> dict[str, int]:
        """Name -> position, without the names that occur twice."""
        return _unique_positions(self.names)

    @cached_property
    def items(self) -> list[str]:
        """Names without extension of complete shar items: pairs (data, metadata) of members."""
        return [name.rpartition(".")[0] for name in self.names[: len(self) // 2 * 2 : 2]]

    @cached_property
    def item_positions(self) -> dict[str, int]:
        """Item -> its position, without the items that occur twice."""
        return _unique_positions(self.items)


def _unique_positions(names: list[str]) -> dict[str, int]:
    counts = Counter(names)
    return {name: position for position, name in enumerate(names) if counts[name] == 1}


def index_tar(path: str | os.PathLike[str]) -> TarIndex:
    """Index a tar file once in this process.

    What is readable of a damaged file is indexed; `damage` tells that it is.

    Raises:
        DataError: the file is missing or is no plain tar file.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    return _index_tar(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _index_tar(path: str, size: int, modified: int) -> TarIndex:
    names: list[str] = []
    offsets, sizes = array("q"), array("q")
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # tarfile would keep them all
                if not member.isfile():
                    continue
                if member.offset_data + member.size > size:
                    return TarIndex(path, names, offsets, sizes, f"ends inside {member.name}")
                names.append(member.name)
                offsets.append(member.offset_data)
                sizes.append(member.size)
            damage = None if _has_end_mark(path, tar.offset) else "ends without an end mark"
    except (tarfile.TarError, OSError, EOFError) as error:
        if not names:
            raise DataError(f"{path}: is no readable tar file ({cause(error)}).") from error
        damage = cause(error)
    return TarIndex(path, names, offsets, sizes, damage)


def _has_end_mark(path: str, offset: int) -> bool:
    """Whether a block of zeros follows the last member."""
    with open(path, "rb") as file:
        for start in (offset - tarfile.BLOCKSIZE, offset):
            file.seek(max(start, 0))
            if file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE):
                return True
    return False


def is_reference(source: object) -> bool:
    """Whether a string points into a tar file."""
    return isinstance(source, str) and REFERENCE.search(source) is not None


def read_reference(reference: str) -> bytes:
    """Read the bytes that a reference points to; a DataError names the file."""
    path, place = reference.rsplit("#", 1)
    offset, size = (int(number) for number in place.split("+"))
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    if len(data) < size:
        raise DataError(f"{path}: ends before byte {offset + size}.")
    return data
