"""Putting the checkpoint folder of a killed run in order, so that it resumes without a human."""

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from whalesong.core.atomic import remove_stale, sync_folder
from whalesong.core.errors import CheckpointError
from whalesong.core.torch_file import TorchFileError, check_torch_file

MARKER = "-unfinished"
"""NeMo's callback puts `<name without .ckpt>-unfinished` beside a file it writes or deletes."""

_LAST = "last.ckpt"
_SHARD_INDEX, _SHARD_META = ".metadata", "meta.pt"
_POLL = 0.2


@dataclass(frozen=True)
class _Candidate:
    """A whole checkpoint, file or folder, and how far its training had come."""

    path: Path
    step: int
    modified: int

    @property
    def is_last(self) -> bool:
        return self.path.name.endswith(_LAST)

    def rank(self) -> tuple[int, int, bool, int]:
        """Sorts by step; of one step the `*last.ckpt`; files without a step by their time."""
        return (self.step, self.modified if self.step < 0 else 0, self.is_last, self.modified)


def heal_checkpoints(folder: str | Path) -> list[str]:
    """Leave one `*last.ckpt` in `folder`, the newest whole one; call it before exp_manager.

    A run killed inside a save leaves NeMo's markers, torsos, several `*last.ckpt` or none; then
    exp_manager refuses to resume, starts over, or loses an interval. Here

    - each checkpoint file is tested by its checksums; a damaged one gets the ending `.broken`;
    - a folder (sharded checkpoint) with a marker or without its metadata gets it too;
    - an older `*last.ckpt` gets the ending `.superseded`, in place of the one of an earlier call,
      or goes when the same file has another name;
    - when the newest is no `*last.ckpt`, a file gets such a second name, a folder a new name;
    - markers and remains of our own killed saves go. Nothing else is touched.

    In a distributed job only rank 0 may call it; the others call `wait_for_healing`.

    Args:
        folder: the checkpoint folder (`<log_dir>/checkpoints`); a missing one is no error.

    Returns:
        One line for each thing done; none when the folder was in order.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return []
    done = [f"removed {path.name}, the remains of a killed save" for path in remove_stale(folder)]
    done += _set_aside_folders(folder)
    whole, lines = _test_checkpoints(folder)
    done += lines + _remove_markers(folder)
    candidates = [_candidate(path) for path in whole if not path.name.endswith("-EMA.ckpt")]
    if candidates:
        done += _keep_one_last(candidates)
    if done:
        sync_folder(folder)
    return done


def wait_for_healing(folder: str | Path, *, seconds: float = 1800.0) -> None:
    """Wait until `heal_checkpoints` of the first rank is done; for ranks that start beside it.

    Raises:
        CheckpointError: the folder is not in order after that time.
    """
    deadline = time.monotonic() + seconds
    while not _is_in_order(Path(folder)):
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"{folder}: the first rank has not put it in order within {seconds:g} s."
            )
        time.sleep(_POLL)


def _is_in_order(folder: Path) -> bool:
    """Whether healing would leave the same checkpoint to resume from; few bytes are read."""
    try:
        if any(folder.glob(f"*{MARKER}")):
            return False
        names = [p for p in folder.glob("*.ckpt") if not p.name.endswith("-EMA.ckpt")]
        candidates = [_candidate(path) for path in names]
        if any(c.step < 0 and _damage(c.path) is not None for c in candidates):
            return False
    except FileNotFoundError:  # it was renamed just now
        return False
    lasts = [candidate for candidate in candidates if candidate.is_last]
    return not candidates or lasts == [max(candidates, key=_Candidate.rank)]


def _set_aside_folders(folder: Path) -> list[str]:
    """Rename the sharded checkpoints that carry a marker: their shards may be of two saves."""
    done = []
    for path in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        marker = folder / (path.name.removesuffix(".ckpt") + MARKER)
        if marker.is_file():
            aside = _set_aside(path, ".broken")
            marker.unlink()
            done.append(f"renamed unfinished folder {path.name} to {aside.name}")
    return done


def _test_checkpoints(folder: Path) -> tuple[list[Path], list[str]]:
    """Whole checkpoints of `folder`, and what was done with the others."""
    whole, done = [], []
    for path in sorted(folder.glob("*.ckpt")):
        if (reason := _damage(path)) is None:
            whole.append(path)
        else:
            aside = _set_aside(path, ".broken")
            done.append(f"renamed {path.name} to {aside.name}: it {reason}")
    return whole, done


def _damage(path: Path) -> str | None:
    if path.is_dir() and not (path / _SHARD_INDEX).is_file():
        return "lacks its metadata"
    try:
        with open(_main_file(path), "rb") as file:
            check_torch_file(file)
    except TorchFileError as error:
        return str(error)
    except FileNotFoundError:
        return "lacks its metadata" if path.is_dir() else "is a link to a missing file"
    return None


def _main_file(path: Path) -> Path:
    """The `torch.save` file of a checkpoint; Lightning writes it last into a sharded one."""
    return path / _SHARD_META if path.is_dir() else path


def _remove_markers(folder: Path) -> list[str]:
    done = []
    for marker in sorted(folder.glob(f"*{MARKER}")):
        if marker.is_file():
            marker.unlink()
            done.append(f"removed marker {marker.name}")
    return done


def _candidate(path: Path) -> _Candidate:
    return _Candidate(path, _global_step(path), path.stat().st_mtime_ns)


def _global_step(path: Path) -> int:
    """Training step of a checkpoint without reading its tensors; -1 when it cannot be told."""
    try:
        file = _main_file(path)
        content = torch.load(file, map_location="meta", weights_only=True, mmap=True)
        return int(content["global_step"])
    except Exception:
        return -1


def _keep_one_last(candidates: list[_Candidate]) -> list[str]:
    newest = max(candidates, key=_Candidate.rank)
    done = []
    for old in candidates:
        if old is newest or not old.is_last:
            continue
        if _has_other_name(old.path):
            old.path.unlink()
            done.append(f"removed {old.path.name}, another name of an older checkpoint")
        else:
            done += _remove_superseded(old.path.parent)
            aside = _set_aside(old.path, ".superseded")
            done.append(f"renamed {old.path.name} to {aside.name}: a newer one is whole")
    if not newest.is_last:
        target = newest.path.with_name(f"{newest.path.stem}-{_LAST}")
        how = _rename_or_link(newest.path, target)
        done.append(f"{how} {newest.path.name}, the newest whole checkpoint, as {target.name}")
    return done


def _has_other_name(path: Path) -> bool:
    return path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1)


def _remove_superseded(folder: Path) -> list[str]:
    """Keep one `.superseded` at most: a run that is often killed must not fill the disk."""
    done = []
    for path in sorted(folder.glob(f"*{_LAST}.superseded")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        done.append(f"removed {path.name}, superseded earlier")
    return done


def _rename_or_link(source: Path, target: Path) -> str:
    """Make `target` the name of a folder, or a second name of a file; returns what was done."""
    if source.is_dir():
        source.rename(target)
        return "renamed"
    try:
        os.link(source.resolve(), target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
        return "copied"
    return "linked"


def _set_aside(path: Path, ending: str) -> Path:
    """Rename `path` by a new ending, without replacing an earlier one."""
    number, aside = 2, path.with_name(path.name + ending)
    while aside.exists():
        number, aside = number + 1, path.with_name(f"{path.name}{ending}{number}")
    path.rename(aside)
    return aside
