"""Files and folders that are either wholly old or wholly new, whatever kills the writer."""

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from whalesong.core.errors import DataError, UserError

UNFINISHED_SUFFIX = ".writing"
"""Ending of the temporary files of `atomic_write`; readers of checkpoints do not look at it."""

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MAX_STEM = 200
_PAGE = 4096
_TEMPORARY = re.compile(rf"\.(?P<stem>.+)\.[0-9a-f]{{8}}{re.escape(UNFINISHED_SUFFIX)}\Z")


class Sink:
    """A write-only binary file that counts its bytes and remembers the first failure.

    The failure is kept because `torch.save` replaces it by an error of its own.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = 0
        self.failure: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write all of `data`; returns the number of bytes."""
        try:
            count = self._file.write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise
        self.size += count
        return count

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        try:
            self._file.flush()
        except OSError as error:
            self.failure = self.failure or error
            raise


@contextmanager
def atomic_write(
    path: str | Path, *, need: int = 0, error: type[UserError] = UserError
) -> Iterator[tuple[Sink, Path]]:
    """Write `path` through a temporary file beside it; the old file stays whole until the end.

    Yields the sink to write to and the path of the temporary file. When the block ends, the
    file is flushed to the disk, renamed onto `path`, and the folder is flushed; when it raises,
    the temporary file is removed.

    Args:
        path: the file to write; its folder is created when missing.
        need: bytes that will be written; refused beforehand when the disk has less left.
        error: class of the one-line error raised when the disk is full or `path` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise error(f"{path}: is a folder, so no file can be written there.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if need > _free(path):
        raise error(_full_disk(path, need))
    remove_stale(path.parent, of=path)
    file, temporary = _new_temporary(path)
    try:
        with file:
            sink = Sink(file)
            try:
                yield sink, temporary
                sink.flush()
                os.fsync(file.fileno())
            except Exception as caught:
                failure = sink.failure or caught
                if isinstance(failure, OSError) and failure.errno in _NO_SPACE:
                    raise error(_full_disk(path, max(need, sink.size))) from caught
                raise
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Give an empty folder to write in, which becomes `folder` when the block ends without error.

    The work happens in a hidden sibling, so that a killed run leaves nothing under the final
    name; the next run for the same name clears what it left.

    Raises:
        DataError: if `folder` exists and is not an empty folder.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(f"The output folder must be new or empty, but {folder} is not.")
    partial = _partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a path to write at, which replaces `path` when the block ends without error."""
    path = Path(path).absolute()
    partial = _partial_path(path)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        os.replace(partial, path)
    except Exception as caught:
        if _free(path) < _PAGE:  # libraries in C say nothing of a cause
            raise UserError(_full_disk(path, _PAGE)) from caught
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def full_disk_named(folder: str | Path | None = None) -> Iterator[None]:
    """Turn what any library's write raises on a full disk into one sentence.

    Args:
        folder: where the block writes, when it is known; an error often does not tell.

    Raises:
        UserError: names the file or folder, and what is free there.
    """
    try:
        yield
    except OSError as caught:
        if caught.errno not in _NO_SPACE:
            raise
        path = Path(caught.filename or folder or ".").absolute()
        home = path if path.is_dir() else path.parent
        free = _megabytes(shutil.disk_usage(home).free)
        raise UserError(
            f"{path}: cannot be written, because {home} has {free} free (or a quota or size limit "
            "is reached); make room and start again."
        ) from caught


def remove_stale(folder: str | Path, *, of: Path | None = None) -> list[Path]:
    """Delete the temporary files that killed processes left in `folder`; returns their paths.

    A file that a living process is writing is locked, and stays.

    Args:
        folder: where to look.
        of: the file that they would have become; any by default.
    """
    removed = []
    for path in sorted(Path(folder).glob(f".*{UNFINISHED_SUFFIX}")):
        match = _TEMPORARY.match(path.name)
        if match is None or (of is not None and match["stem"] != of.name[:_MAX_STEM]):
            continue
        with suppress(OSError), open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            removed.append(path)
    return removed


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to the disk; without it a rename may be lost in a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems refuse to flush a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _new_temporary(path: Path) -> tuple[BinaryIO, Path]:
    """A new file beside `path`, locked: that tells it from the remains of a killed process."""
    while True:
        name = f".{path.name[:_MAX_STEM]}.{secrets.token_hex(4)}{UNFINISHED_SUFFIX}"
        temporary = path.with_name(name)
        file = open(temporary, "xb")
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if temporary.exists():  # else another writer took it for remains before it was locked
            return file, temporary
        file.close()


def _free(path: Path) -> int:
    return shutil.disk_usage(path.parent).free


def _full_disk(path: Path, need: int) -> str:
    old = "the old file is untouched" if path.exists() else "nothing was written"
    return (
        f"{path}: needs {_megabytes(need)} but {path.parent} has {_megabytes(_free(path))} free "
        f"(or a quota or size limit is reached); {old}."
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _partial_path(path: Path) -> Path:
    # The suffix stays, because writers such as NeMo's pick the format by it.
    return path.with_name(f".partial-{path.name}")
