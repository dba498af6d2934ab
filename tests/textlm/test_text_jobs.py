"""Jobs of text models in one process: train, go on, stop at a goal, combine debug modes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from whalesong.core.config.compose import compose
from whalesong.core.errors import ConfigError


@pytest.fixture
def train(
    small_text_job: Callable[[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """`train("arlm", "trainer.max_steps=3")`: a training of `job_name=job` in an empty folder."""
    from whalesong.experiment import run

    monkeypatch.chdir(tmp_path)

    def job(name: str, *overrides: str) -> Any:
        arguments = [*small_text_job(name), "job_name=job", "trainer.max_steps=4", *overrides]
        run(compose("config", overrides=arguments))

    return job


def checkpoints(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.ckpt")}


def test_runs_of_one_name_keep_apart_until_one_is_resumed(
    train: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("arlm", "trainer.val_check_interval=2")
    first = tmp_path / "logs" / "job" / "version_0" / "checkpoints"
    assert checkpoints(first) == {"step-2.ckpt", "step-4.ckpt", "step-4-last.ckpt"}
    kept = {path: path.read_bytes() for path in first.iterdir()}
    train("arlm", "trainer.val_check_interval=2")
    assert {path: path.read_bytes() for path in first.iterdir()} == kept
    second = tmp_path / "logs" / "job" / "version_1" / "checkpoints"
    train("arlm", "trainer.val_check_interval=2", "trainer.max_steps=6", "resume=true")
    assert "step-6-last.ckpt" in checkpoints(second)
    assert not any("=" in name for name in checkpoints(tmp_path))
    assert {path.parent for path in (tmp_path / "logs").rglob("*.nemo")} == {first, second}
    assert "xlm job_type=eval" in capsys.readouterr().out


def test_training_stops_once_every_goal_is_reached(
    train: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    goals = "stop_at={val_exact_match: 0.0, val_of_another_family: 1.0}"
    train("arlm", goals, "trainer.max_steps=9", "trainer.val_check_interval=3")
    assert "Stopped at step 3: val_exact_match 0 reached." in capsys.readouterr().out
    assert "step-3-last.ckpt" in checkpoints(tmp_path)


def test_a_goal_that_is_not_reached_stops_nothing(
    train: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("arlm", "stop_at={val_exact_match: 1.0}", "trainer.val_check_interval=2")
    assert "Stopped" not in capsys.readouterr().out
    assert "step-4-last.ckpt" in checkpoints(tmp_path)


def test_a_request_needs_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from whalesong.experiment import run

    monkeypatch.chdir(tmp_path)
    job = ["job_type=predict", "experiment=text_arlm", "predict.num_samples=1"]
    with pytest.raises(ConfigError, match="`predict.ckpt_path` is mandatory"):
        run(compose("config", overrides=job))
