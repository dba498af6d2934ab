"""A resumed run does first what the one before it had left to do."""

from pathlib import Path
from typing import Any

import pytest
from fixtures.light_training import OnStep, train_light

from whalesong.core.config.trainer import ExpManagerConfig
from whalesong.core.training.trainer import time_limit

EVERY_STEP: dict[str, Any] = {
    "filename": "{step}",
    "monitor": "step",
    "mode": "max",
    "save_top_k": 1,
    "every_n_train_steps": 1,
    "every_n_epochs": None,
}


def archive(logs: Path) -> Path:
    (path,) = (logs / "checkpoints").glob("*.nemo")
    return path


@pytest.mark.parametrize("ema", [False, True])
def test_a_training_that_was_done_but_for_its_archive_gets_it(tmp_path: Path, ema: bool) -> None:
    train_light(tmp_path, max_steps=4, checkpoints=EVERY_STEP, ema=ema)
    whole = archive(tmp_path).read_bytes()
    archive(tmp_path).unlink()
    train_light(tmp_path, max_steps=4, checkpoints=EVERY_STEP, ema=ema)
    assert archive(tmp_path).read_bytes() == whole


def test_a_finished_training_is_left_alone(tmp_path: Path) -> None:
    train_light(tmp_path, max_steps=4, checkpoints=EVERY_STEP)
    before = archive(tmp_path).stat().st_mtime_ns
    train_light(tmp_path, max_steps=4, checkpoints=EVERY_STEP)
    assert archive(tmp_path).stat().st_mtime_ns == before


@pytest.mark.parametrize(("max_steps", "expected"), [(4, [4]), (6, [4, 6])])
def test_an_interrupted_validation_is_done_again(
    tmp_path: Path, max_steps: int, expected: list[int]
) -> None:
    def interrupt(trainer: Any) -> None:
        if trainer.global_step == 4:
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        callback = OnStep(on_validation_start=interrupt)
        train_light(tmp_path, max_steps=max_steps, checkpoints=EVERY_STEP, callbacks=[callback])
    validated: list[int] = []
    callback = OnStep(on_validation_end=lambda trainer: validated.append(trainer.global_step))
    train_light(tmp_path, max_steps=max_steps, checkpoints=EVERY_STEP, callbacks=[callback])
    assert validated == expected


def test_the_checkpoint_resumed_from_makes_room_for_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    train_light(tmp_path, max_steps=2, checkpoints=EVERY_STEP)
    (folder / "step=2-last.ckpt").rename(folder / "another-last.ckpt")
    train_light(tmp_path, max_steps=4, checkpoints=EVERY_STEP)
    assert [path.name for path in folder.glob("*last.ckpt")] == ["step=4-last.ckpt"]


def test_checkpoints_in_a_folder_of_their_own_are_healed_as_well(tmp_path: Path) -> None:
    checkpoints = {**EVERY_STEP, "dirpath": str(tmp_path / "own")}
    train_light(tmp_path / "logs", max_steps=2, checkpoints=checkpoints)
    (tmp_path / "own" / "step=2-last-unfinished").touch()
    train_light(tmp_path / "logs", max_steps=4, checkpoints=checkpoints)
    assert [path.name for path in (tmp_path / "own").glob("*last.ckpt")] == ["step=4-last.ckpt"]


def test_the_time_limit_of_a_run_is_read() -> None:
    assert time_limit(None) is None and time_limit(ExpManagerConfig()) is None
    assert time_limit(ExpManagerConfig(max_time_per_run="01:02:03:04")) == 93784.0
