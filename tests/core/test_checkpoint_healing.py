"""A killed run's folder is put in order: one `*last.ckpt`, the newest whole file, nothing lost.

The situations are those that a SIGKILL inside NeMo's save leaves (saves at 4, 8, 12; killed in
the one at 12), for both of its naming habits.
"""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from whalesong.core.checkpoint import AtomicCheckpointIO, heal_checkpoints
from whalesong.core.errors import CheckpointError
from whalesong.core.healing import wait_for_healing

IO = AtomicCheckpointIO()


def save(folder: Path, name: str, step: int) -> Path:
    path = folder / f"{name}.ckpt"
    IO.save_checkpoint({"global_step": step, "state_dict": {"x": torch.full((300,), step)}}, path)
    return path


def torso(folder: Path, name: str, step: int) -> Path:
    path = save(folder, name, step)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def marker(folder: Path, name: str) -> None:
    (folder / f"{name}-unfinished").touch()


def steps_8(folder: Path) -> None:
    for step in (4, 8):
        save(folder, f"step={step}", step)
    save(folder, "step=8-last", 8)


def marker_only(folder: Path) -> None:
    steps_8(folder)
    save(folder, "step=12", 12)
    marker(folder, "step=12-last")


def stale_temporary(folder: Path) -> None:
    marker_only(folder)
    (folder / ".step=12-last.ckpt.0a1b2c3d.writing").write_bytes(b"half")


def half_moved(folder: Path) -> None:
    marker_only(folder)
    torso(folder, "step=12-last", 12)


def written_but_marked(folder: Path) -> None:
    marker_only(folder)
    save(folder, "step=12-last", 12)


def both_lasts(folder: Path) -> None:
    steps_8(folder)
    save(folder, "step=12", 12)
    save(folder, "step=12-last", 12)


def deleting_the_old(folder: Path) -> None:
    both_lasts(folder)
    marker(folder, "step=8-last")


def old_deleted(folder: Path) -> None:
    deleting_the_old(folder)
    (folder / "step=8-last.ckpt").unlink()


def torso_of_top_k(folder: Path) -> None:
    steps_8(folder)
    torso(folder, "step=12", 12)
    marker(folder, "step=12")


def constant_name_marked(folder: Path) -> None:
    save(folder, "model-last", 8)
    marker(folder, "model-last")


def constant_name_torso(folder: Path) -> None:
    save(folder, "model", 8)
    torso(folder, "model-last", 12)
    marker(folder, "model-last")


def top_k_is_newer(folder: Path) -> None:
    save(folder, "model-last", 8)
    save(folder, "model", 12)


def first_last(folder: Path) -> None:
    save(folder, "step=4", 4)
    marker(folder, "step=4-last")


def in_order(folder: Path) -> None:
    steps_8(folder)


@pytest.mark.parametrize(
    ("situation", "step"),
    [
        (marker_only, 12),
        (stale_temporary, 12),
        (half_moved, 12),
        (written_but_marked, 12),
        (both_lasts, 12),
        (deleting_the_old, 12),
        (old_deleted, 12),
        (torso_of_top_k, 8),
        (constant_name_marked, 8),
        (constant_name_torso, 8),
        (top_k_is_newer, 12),
        (first_last, 4),
        (in_order, 8),
    ],
)
def test_every_kill_point_leaves_one_last_the_newest(
    tmp_path: Path, situation: Callable[[Path], None], step: int
) -> None:
    situation(tmp_path)
    before = whole_steps(tmp_path)
    done = heal_checkpoints(tmp_path)
    assert bool(done) == (situation is not in_order)
    (last,) = tmp_path.glob("*last.ckpt")
    assert IO.load_checkpoint(last)["global_step"] == step
    assert not list(tmp_path.glob("*-unfinished")) and not list(tmp_path.glob(".*"))
    assert whole_steps(tmp_path) == before
    assert heal_checkpoints(tmp_path) == []


def whole_steps(folder: Path) -> set[int]:
    """Steps that some file of the folder still holds, whatever its name."""
    found = set()
    for path in folder.glob("*.ckpt*"):
        try:
            found.add(IO.load_checkpoint(path)["global_step"])
        except CheckpointError:
            continue
    return found


def test_the_lines_tell_what_was_done(tmp_path: Path) -> None:
    half_moved(tmp_path)
    assert [line.split(": ")[0] for line in heal_checkpoints(tmp_path)] == [
        "renamed step=12-last.ckpt to step=12-last.ckpt.broken",
        "removed marker step=12-last-unfinished",
        "renamed step=8-last.ckpt to step=8-last.ckpt.superseded",
        "linked step=12.ckpt, the newest whole checkpoint, as step=12-last.ckpt",
    ]


def test_the_order_is_of_steps_not_of_times(tmp_path: Path) -> None:
    newest, older = save(tmp_path, "step=12", 12), save(tmp_path, "step=8-last", 8)
    os.utime(newest, (1, 1))
    os.utime(older, (10**9, 10**9))
    heal_checkpoints(tmp_path)
    (last,) = tmp_path.glob("*last.ckpt")
    assert last.samefile(newest)


def test_files_without_a_step_are_ordered_by_time(tmp_path: Path) -> None:
    for second, name in enumerate(("a", "b", "c-last")):
        torch.save({"x": 1}, tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (1000 - second, 1000 - second))
    heal_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.glob("*last.ckpt")] == ["a-last.ckpt"]


def test_averaged_weights_are_never_resumed_from(tmp_path: Path) -> None:
    save(tmp_path, "step=8-last", 8)
    save(tmp_path, "step=12-last-EMA", 12)
    assert heal_checkpoints(tmp_path) == []


def test_only_the_latest_superseded_file_is_kept(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        save(tmp_path, f"step={step}-last", step)
        heal_checkpoints(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["step=12-last.ckpt", "step=8-last.ckpt.superseded"]


def test_earlier_broken_files_are_kept(tmp_path: Path) -> None:
    for _ in range(2):
        torso(tmp_path, "a", 1)
        heal_checkpoints(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a.ckpt.broken", "a.ckpt.broken2"]


def test_other_files_of_the_user_stay(tmp_path: Path) -> None:
    both_lasts(tmp_path)
    for name in ("notes.txt", ".hidden", "x.nemo", "events.writing"):
        (tmp_path / name).write_text("mine")
    heal_checkpoints(tmp_path)
    for name in ("notes.txt", ".hidden", "x.nemo", "events.writing"):
        assert (tmp_path / name).read_text() == "mine"


def sharded(folder: Path, name: str, step: int) -> Path:
    """The files of Lightning's ModelParallelStrategy."""
    path = folder / name
    path.mkdir()
    for file in (".metadata", "__0_0.distcp"):
        (path / file).write_bytes(b"x")
    torch.save({"global_step": step}, path / "meta.pt")
    return path


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_sharded_checkpoints_in_order_stay_as_they_are(tmp_path: Path) -> None:
    sharded(tmp_path, "step=4.ckpt", 4)
    sharded(tmp_path, "step=8-last.ckpt", 8)
    before = content(tmp_path)
    assert heal_checkpoints(tmp_path) == [] and content(tmp_path) == before


def test_an_unfinished_sharded_checkpoint_is_set_aside_whole(tmp_path: Path) -> None:
    sharded(tmp_path, "step=8-last.ckpt", 8)
    path = sharded(tmp_path, "step=12-last.ckpt", 12)
    (tmp_path / "step=16-last.ckpt").mkdir()
    marker(tmp_path, "step=12-last")
    before = content(path)
    assert heal_checkpoints(tmp_path) == [
        "renamed unfinished folder step=12-last.ckpt to step=12-last.ckpt.broken",
        "renamed step=16-last.ckpt to step=16-last.ckpt.broken: it lacks its metadata",
    ]
    assert content(tmp_path / "step=12-last.ckpt.broken") == before
    assert [path.name for path in tmp_path.glob("*last.ckpt")] == ["step=8-last.ckpt"]


def test_of_several_sharded_ones_the_newest_is_the_last(tmp_path: Path) -> None:
    for step in (4, 8):
        sharded(tmp_path, f"step={step}-last.ckpt", step)
    newest = content(sharded(tmp_path, "step=12.ckpt", 12))
    heal_checkpoints(tmp_path)
    (last,) = tmp_path.glob("*last.ckpt")
    assert last.name == "step=12-last.ckpt" and content(last) == newest
    assert heal_checkpoints(tmp_path) == []


def test_a_file_being_written_stays(tmp_path: Path) -> None:
    from whalesong.core.atomic import atomic_write

    save(tmp_path, "a-last", 1)
    with atomic_write(tmp_path / "b.ckpt") as (sink, temporary):
        sink.write(b"x")
        assert heal_checkpoints(tmp_path) == [] and temporary.exists()


def test_a_missing_folder_is_in_order(tmp_path: Path) -> None:
    assert heal_checkpoints(tmp_path / "none") == []


def test_a_link_to_a_missing_file_is_set_aside(tmp_path: Path) -> None:
    save(tmp_path, "a", 3)
    (tmp_path / "last.ckpt").symlink_to(tmp_path / "gone.ckpt")
    heal_checkpoints(tmp_path)
    (last,) = tmp_path.glob("*last.ckpt")
    assert IO.load_checkpoint(last)["global_step"] == 3


@pytest.mark.slow
def test_nemo_resumes_from_what_is_left(tmp_path: Path) -> None:
    from nemo.utils.exp_manager import check_resume

    class Trainer:
        """The one attribute that NeMo sets."""

        ckpt_path: str | None = None

    situations = (marker_only, half_moved, both_lasts, constant_name_marked, first_last)
    for situation in situations:
        folder = tmp_path / "log" / "checkpoints"
        folder.mkdir(parents=True)
        situation(folder)
        heal_checkpoints(folder)
        trainer = Trainer()
        check_resume(trainer, str(folder.parent), resume_if_exists=True)
        assert trainer.ckpt_path == str(next(folder.glob("*last.ckpt")))
        shutil.rmtree(folder)


@pytest.mark.parametrize("situation", [marker_only, half_moved, both_lasts, top_k_is_newer])
def test_another_rank_waits_until_the_first_one_has_healed(
    tmp_path: Path, situation: Callable[[Path], None]
) -> None:
    situation(tmp_path)
    with pytest.raises(CheckpointError, match="has not put it in order within 0.1 s"):
        wait_for_healing(tmp_path, seconds=0.1)
    healer = threading.Timer(0.3, heal_checkpoints, [tmp_path])
    healer.start()
    wait_for_healing(tmp_path, seconds=60)
    (last,) = tmp_path.glob("*last.ckpt")
    assert IO.load_checkpoint(last)["global_step"] == 12
    healer.join()


@pytest.mark.parametrize("situation", [in_order, lambda folder: None])
def test_nobody_waits_for_a_folder_in_order(
    tmp_path: Path, situation: Callable[[Path], None]
) -> None:
    situation(tmp_path)
    wait_for_healing(tmp_path, seconds=0)
    wait_for_healing(tmp_path / "missing", seconds=0)


def test_a_torso_alone_is_waited_for(tmp_path: Path) -> None:
    torso(tmp_path, "step=4-last", 4)
    with pytest.raises(CheckpointError, match="has not put it in order"):
        wait_for_healing(tmp_path, seconds=0)
    heal_checkpoints(tmp_path)
    wait_for_healing(tmp_path, seconds=0)
