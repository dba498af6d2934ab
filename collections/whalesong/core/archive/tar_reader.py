"""Finding the members of a tar without trusting it."""

import os
from collections.abc import Iterator

from whalesong.core.archive.layout import BLOCK, CONFIG, MAX_MEMBERS, RECORD, Member
from whalesong.core.errors import ArchiveError

_MAX_EXTENDED = 4096
_MAX_HEADERS = 2 * MAX_MEMBERS + 2
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd", b"PK": "zip"}
_KINDS = {
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "character device",
    b"4": "block device",
    b"5": "folder",
    b"6": "fifo",
    b"S": "sparse file",
    b"L": "long name",
    b"K": "long link name",
    b"g": "global extended header",
    b"x": "extended header",
}
_EXTENDED_KEYS = {"mtime", "atime", "ctime", "size"}


def read_members(descriptor: int, size: int) -> list[Member]:
    """Headers of all members, in order; nothing of their content is read.

    Only regular files with flat names pass. A leading `./` and what NeMo's own writer adds
    (the entry of the folder itself, extended headers with times) are tolerated, so
    `Member.header` tells the exact bytes for archives that promise more.

    Args:
        descriptor: open file.
        size: bytes of the file.

    Raises:
        ArchiveError: "member: rule" or a rule, without the name of the archive.
    """
    members: list[Member] = []
    names: set[str] = set()
    for member in _entries(descriptor, size):
        if member.name.lower() in names:
            raise ArchiveError(f"{member.name}: is there twice")
        names.add(member.name.lower())
        members.append(member)
        if len(members) > MAX_MEMBERS:
            raise ArchiveError(f"has more than {MAX_MEMBERS} members")
    if CONFIG not in names:
        raise ArchiveError(f"{CONFIG}: is missing")
    return members


def _entries(descriptor: int, size: int) -> Iterator[Member]:
    position, count, extended = 0, 0, {}
    while (block := os.pread(descriptor, BLOCK, position)) != bytes(BLOCK):
        if len(block) < BLOCK:
            raise ArchiveError(_not_whole(descriptor, position))
        _check_header(descriptor, block, position)
        length = int(extended.pop("size", _number(block[124:136])))
        kind, name = block[156:157], _name(block)
        begin = position + BLOCK
        position = begin + length + -length % BLOCK
        if length < 0 or position > size:
            raise ArchiveError(f"{name}: ends behind the end of the file")
        if (count := count + 1) > _MAX_HEADERS:
            raise ArchiveError(f"has more than {MAX_MEMBERS} members")
        if kind == b"x":
            extended = _extended(descriptor, begin, length)
        elif kind == b"5" and name in ("", ".") and not length:
            extended = {}
        elif kind in (b"0", b"\0"):
            extended = {}
            yield Member(_flat(name), begin, length, block)
        else:
            raise ArchiveError(f"{name[:80]}: is a {_KINDS.get(kind, 'special file')}, not a file")
    _check_end(descriptor, position, size)


def _check_header(descriptor: int, block: bytes, position: int) -> None:
    if block[257:262] != b"ustar" or _number(block[148:156]) != _checksum(block):
        if position == 0:
            raise ArchiveError(_no_tar(block))
        raise ArchiveError(f"the tar header at byte {position} is damaged")


def _no_tar(block: bytes) -> str:
    for start, name in _COMPRESSED.items():
        if block.startswith(start):
            return f"is compressed ({name}), but must be a plain tar"
    return "is not a tar file"


def _not_whole(descriptor: int, position: int) -> str:
    if position == 0:
        return "is empty or shorter than a tar header"
    return f"is cut off at byte {os.fstat(descriptor).st_size}"


def _checksum(block: bytes) -> int:
    return sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")


def _number(field: bytes) -> int:
    """A number of a tar header: octal text, or binary when too large for it."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.split(b"\0", 1)[0].strip()
    if not all(0x30 <= digit <= 0x37 for digit in text):
        return -1
    return int(text, 8) if text else 0


def _name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0].decode("utf-8", errors="backslashreplace")
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    if prefix:
        name = f"{prefix.decode('utf-8', errors='backslashreplace')}/{name}"
    return name.removeprefix("./").removesuffix("/") if name != "." else name


def _flat(name: str) -> str:
    if not name or name in (".", "..") or not name.isprintable() or set(name) & set("/\\"):
        raise ArchiveError(f"{name!r:.80}: member names must be flat")
    return name


def _extended(descriptor: int, begin: int, length: int) -> dict[str, str]:
    """Records of an extended header; only times and a size, which NeMo's writer makes."""
    if length > _MAX_EXTENDED:
        raise ArchiveError(f"an extended header has {length} bytes")
    rest, found = os.pread(descriptor, length, begin), {}
    while rest:
        number = rest.partition(b" ")[0]
        count = int(number) if number.isdigit() and len(number) < 5 else 0
        if not len(number) + 1 < count <= len(rest):
            raise ArchiveError("an extended header is damaged")
        key, equals, value = rest[len(number) + 1 : count - 1].partition(b"=")
        if not equals or key.decode("ascii", "replace") not in _EXTENDED_KEYS:
            raise ArchiveError(f"an extended header sets {key[:40]!r}, which is not allowed")
        if key == b"size" and not (value.isdigit() and len(value) < 19):
            raise ArchiveError("an extended header has an invalid size")
        found[key.decode("ascii")] = value.decode("ascii", "replace")
        rest = rest[count:]
    return found


def _check_end(descriptor: int, position: int, size: int) -> None:
    """The two zero blocks, filled up to a record; nothing may hide behind them."""
    rest = os.pread(descriptor, 2 * RECORD, position)
    if len(rest) < 2 * BLOCK or any(rest):
        raise ArchiveError("does not end as a tar does")
    if position + len(rest) != size:
        raise ArchiveError("has bytes behind its end")
