"""A signal or a time limit stops a training without loss, whatever it is doing just then."""

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fixtures.forked import Ended, add_callback, run_forked, xlm
from fixtures.light_training import Beginning, OnStep
from fixtures.stopped import (
    LONG,
    STEPS,
    VALIDATE_EVERY,
    SignalAt,
    archive,
    observe,
    send_in,
    stop,
    training,
)


@pytest.fixture(scope="module")
def job(small_text_job: Callable[[str], list[str]]) -> Callable[..., list[str]]:
    """`job(logs, "key=value")`: arguments of a training of eight steps."""
    return partial(training, small_text_job("arlm"))


@pytest.fixture(scope="module")
def whole(
    job: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., bytes]:
    """`whole("key=value")`: the archive of a training with these overrides that nobody stops."""
    archives: dict[tuple[str, ...], bytes] = {}

    def train(*overrides: str) -> bytes:
        if overrides not in archives:
            logs = tmp_path_factory.mktemp("whole")
            done = run_forked(xlm(job(logs, *overrides)), log=logs / "log", timeout=120)
            assert done.code == 0, done.output
            archives[overrides] = archive(logs)
        return archives[overrides]

    return train


def command_in(stopped: Ended) -> list[str]:
    """The command that a stopped one has printed."""
    (line,) = [line for line in stopped.output.splitlines() if line.startswith("Stopped ")]
    return shlex.split(line.partition("To go on: ")[2])


def go_on(stopped: Ended, logs: Path) -> Ended:
    """Do what a stopped command has printed: it begins at the step at which that one ended."""
    command = command_in(stopped)
    assert command[:3] == [sys.executable, "-m", "whalesong.cli"]
    begin = logs.with_name("begin")
    done = run_forked(
        xlm(command[3:], observe=observe(Beginning(begin))),
        log=logs.with_name("resumed.log"),
        timeout=120,
    )
    assert done.code == 0, done.output
    assert f" at step {begin.read_text()};" in stopped.output
    return done


IN_TRAINING = {
    "in a step": (SignalAt("on_before_backward", signal.SIGTERM), []),
    "in the optimizer's step": (SignalAt("on_before_optimizer_step", signal.SIGINT), []),
    "within accumulated batches": (
        SignalAt("on_train_batch_start", signal.SIGTERM),
        ["trainer.accumulate_grad_batches=3", "trainer.max_steps=6"],
    ),
    "in validation": (SignalAt("on_validation_batch_start", signal.SIGINT), []),
    "in the last validation": (
        SignalAt("on_validation_batch_start", signal.SIGTERM, step=STEPS),
        [],
    ),
    "at the end of validation": (SignalAt("on_validation_end", signal.SIGTERM), []),
    "with a moving average, in validation": (
        SignalAt("on_validation_batch_end", signal.SIGTERM),
        ["exp_manager.ema.enable=true"],
    ),
    "between pseudo-epochs": (
        SignalAt("on_train_epoch_end", signal.SIGTERM),
        ["trainer.limit_train_batches=3", "trainer.val_check_interval=3"],
    ),
    "at the begin of a pseudo-epoch": (
        SignalAt("on_train_epoch_start", signal.SIGTERM),
        ["trainer.limit_train_batches=3", "trainer.val_check_interval=3"],
    ),
    "SIGTERM behind Ctrl-C": (SignalAt("on_before_backward", signal.SIGINT, signal.SIGTERM), []),
    "SIGUSR1": (SignalAt("on_before_backward", signal.SIGUSR1), []),
    "SIGHUP": (SignalAt("on_before_backward", signal.SIGHUP), []),
}


@pytest.mark.parametrize("phase", IN_TRAINING)
def test_a_signal_in_training(
    phase: str,
    job: Callable[..., list[str]],
    whole: Callable[..., bytes],
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    callback, overrides = IN_TRAINING[phase]
    logs = tmp_path / "logs"
    stopped, seconds = stop(job(logs, *overrides), tmp_path, observe(callback))
    assert stopped.code == 128 + callback.numbers[0], stopped.output
    go_on(stopped, logs)
    assert archive(logs) == whole(*overrides)
    survival("F2", detail=f"{phase} {seconds:.1f} s")


def test_a_signal_in_a_long_generation(
    job: Callable[..., list[str]],
    whole: Callable[..., bytes],
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    def prepare() -> None:
        place = "whalesong.core.language_model"
        send_in(place, "checked_predictions", signal.SIGTERM, lasting=LONG)

    stopped, seconds = stop(job(tmp_path / "logs"), tmp_path, prepare)
    assert stopped.code == 143
    go_on(stopped, tmp_path / "logs")
    assert archive(tmp_path / "logs") == whole()
    survival("F2", detail=f"in generation {seconds:.1f} s")


def test_a_signal_in_a_save(
    job: Callable[..., list[str]],
    whole: Callable[..., bytes],
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    def prepare() -> None:
        send_in("whalesong.core.checkpoint", "unsafe_globals", signal.SIGTERM)

    stopped, _ = stop(job(tmp_path / "logs"), tmp_path, prepare)
    assert stopped.code == 143 and f"at step {VALIDATE_EVERY};" in stopped.output
    go_on(stopped, tmp_path / "logs")
    assert archive(tmp_path / "logs") == whole()
    survival("F2", detail="in a save")


def test_a_signal_while_waiting_for_data_workers(
    job: Callable[..., list[str]],
    whole: Callable[..., bytes],
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    def prepare() -> None:
        from whalesong.data.loader import StepDataset

        load, loaded = StepDataset.__getitem__, []

        def slow(dataset: StepDataset, step: Any) -> Any:
            loaded.append(step)
            if len(loaded) == 6 and not Path("sent").exists():
                time.sleep(LONG)
            return load(dataset, step)

        StepDataset.__getitem__ = slow
        add_callback(SignalAt("on_train_batch_end", signal.SIGINT, step=3, after=1.0))

    workers = ["datamodule.train_ds.num_workers=1", "datamodule.train_ds.worker_timeout=50"]
    # The checkpoint is there at once, but torch waits five seconds for a worker to end by itself.
    stopped, seconds = stop(job(tmp_path / "logs", *workers), tmp_path, prepare, within=20.0)
    assert stopped.code == 130
    go_on(stopped, tmp_path / "logs")
    assert archive(tmp_path / "logs") == whole()
    survival("F2", detail=f"waiting for data {seconds:.1f} s")


def test_a_signal_in_the_last_saves_is_no_stop(
    job: Callable[..., list[str]],
    whole: Callable[..., bytes],
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    callback = SignalAt("on_train_end", signal.SIGTERM, step=STEPS)
    done, _ = stop(job(tmp_path / "logs"), tmp_path, observe(callback))
    assert done.code == 0 and "Trained." in done.output
    assert archive(tmp_path / "logs") == whole()
    survival("F2", detail="in the last save: done")


def test_a_second_ctrl_c_leaves_at_once(
    job: Callable[..., list[str]], tmp_path: Path, survival: Callable[..., None]
) -> None:
    callback = SignalAt("on_before_backward", signal.SIGINT, signal.SIGINT)
    stopped, _ = stop(job(tmp_path / "logs"), tmp_path, observe(callback))
    assert stopped.code == 130 and "Stopped at once at step " in stopped.output
    assert not list(tmp_path.rglob("*.ckpt"))
    survival("F2", detail="second Ctrl-C")


def test_the_time_limit_of_a_run(
    job: Callable[..., list[str]],
    whole: Callable[..., bytes],
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    slow = OnStep(on_before_backward=lambda trainer: trainer.global_step == 3 and time.sleep(5.0))
    logs = tmp_path / "logs"
    stopped = run_forked(
        xlm(job(logs, "exp_manager.max_time_per_run=00:00:00:05"), observe=observe(slow)),
        log=tmp_path / "log",
        timeout=120,
    )
    assert stopped.code == 0 and "Stopped by the time limit at step " in stopped.output
    assert not list(logs.rglob("*.nemo"))
    go_on(stopped, logs)
    assert archive(logs) == whole()
    survival("F2", detail="max_time_per_run")


def test_the_time_limit_of_the_trainer_ends_the_training(
    job: Callable[..., list[str]],
    whole: Callable[..., bytes],
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    logs = tmp_path / "logs"
    slow = OnStep(on_before_backward=lambda trainer: trainer.global_step == 2 and time.sleep(3.0))
    limited = job(logs, "trainer.max_time=00:00:00:03", "exp_manager.resume_if_exists=true")
    ended = run_forked(xlm(limited, observe=observe(slow)), log=tmp_path / "log", timeout=120)
    assert ended.code == 0 and "Trained." in ended.output
    assert 0 < len(archive(logs)) and archive(logs) != whole()
    longer = [word.replace("00:03", "09:00") for word in limited]
    done = run_forked(xlm(longer), log=tmp_path / "log", timeout=120)
    assert done.code == 0, done.output
    assert archive(logs) == whole()
    survival("F2", detail="max_time")


def test_the_printed_command_works_in_a_shell(
    job: Callable[..., list[str]], whole: Callable[..., bytes], tmp_path: Path
) -> None:
    callback = SignalAt("on_before_backward", signal.SIGTERM)
    stopped, _ = stop(job(tmp_path / "logs"), tmp_path, observe(callback))
    (line,) = [line for line in stopped.output.splitlines() if "To go on: " in line]
    command = line.partition("To go on: ")[2]
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert archive(tmp_path / "logs") == whole()
