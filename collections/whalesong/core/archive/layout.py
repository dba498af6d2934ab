"""The `.nemo` format: names, limits, tar headers, errors.

An archive is a plain uncompressed tar of regular files with flat names:
`model_config.yaml`, `model_weights.safetensors`, any artifacts, and at the end `manifest.json`
with size and sha256 of each member. Every byte of it is determined by its content.
"""

import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from whalesong.core.errors import ArchiveError, ConfigError
from whalesong.core.printable import one_line

CONFIG = "model_config.yaml"
WEIGHTS = "model_weights.safetensors"
LEGACY_WEIGHTS = "model_weights.ckpt"
MANIFEST = "manifest.json"
RESERVED = (CONFIG, WEIGHTS, LEGACY_WEIGHTS, MANIFEST)

BLOCK = 512
RECORD = 20 * BLOCK
MAX_MEMBERS = 1000
MAX_CONFIG = 1024**2
MAX_MANIFEST = 1024**2
MAX_JSON = 64 * 1024**2

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,98}\Z", re.ASCII)
_CODE_SUFFIXES = (
    *(".py", ".pyc", ".so", ".dll", ".dylib", ".sh", ".pkl", ".pickle"),
    *(".pt", ".pth", ".bin", ".ckpt", ".nemo", ".zip", ".tar", ".gz"),
)


@dataclass(frozen=True)
class Member:
    """One file of an archive: `size` bytes from `offset`; `header` is its tar header."""

    name: str
    offset: int
    size: int
    header: bytes


@contextmanager
def blame(name: object) -> Iterator[None]:
    """Put `name` in front of the one line of an error raised inside, as an ArchiveError."""
    try:
        yield
    except (ArchiveError, ConfigError) as error:
        raise ArchiveError(f"{name}: {one_line(error).rstrip('.')}.") from error


def check_name(name: str) -> None:
    """Refuse a member name that is no flat file name, or a file that could hold code.

    Raises:
        ArchiveError: "name: rule", without the archive.
    """
    if not _NAME.match(name):
        raise ArchiveError(f"{name!r:.80}: member names are flat, of letters, digits, `._+-`")
    if name.lower().endswith(_CODE_SUFFIXES):
        raise ArchiveError(f"{name}: files of this kind may hold code and are not allowed")


def header(name: str, size: int) -> bytes:
    """The tar header of a member; the same for the same name and size."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(format=tarfile.GNU_FORMAT, encoding="ascii", errors="strict")


def padding(size: int, *, unit: int = BLOCK) -> int:
    """Zero bytes that follow `size` bytes up to a multiple of `unit`."""
    return -size % unit


def archive_size(sizes: Iterable[int]) -> int:
    """Bytes of an archive with members of these sizes."""
    size = sum(BLOCK + size + padding(size) for size in sizes) + 2 * BLOCK
    return size + padding(size, unit=RECORD)
