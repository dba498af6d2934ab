"""Outputs that are either whole or absent, even when the writer is killed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from whalesong.core.errors import DataError


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
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give a path to write at, which replaces `path` when the block ends without error."""
    path = Path(path).absolute()
    partial = _partial_path(path)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _partial_path(path: Path) -> Path:
    # The suffix stays, because writers such as NeMo's pick the format by it.
    return path.with_name(f".partial-{path.name}")
