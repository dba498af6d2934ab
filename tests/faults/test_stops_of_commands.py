"""Signals outside of the steps of one training process: before them, in use, with two ranks."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from fixtures.forked import Ended, Forked, add_callback, run_forked, xlm
from fixtures.stopped import LONG, SignalAt, archive, send_in, stop, training


@pytest.fixture(scope="module")
def job(small_text_job: Callable[[str], list[str]]) -> Callable[..., list[str]]:
    """`job(logs, "key=value")`: arguments of a training of eight steps."""
    return partial(training, small_text_job("arlm"))


BEFORE = {
    "while a model is built": ("build_trainer", signal.SIGTERM),
    "while logs are set up": ("start_exp_manager", signal.SIGINT),
    "before the first step": (SignalAt("on_fit_start", signal.SIGTERM, step=0), signal.SIGTERM),
    "in the sanity check": (
        SignalAt("on_sanity_check_start", signal.SIGINT, step=0),
        signal.SIGINT,
    ),
}


@pytest.mark.parametrize("phase", BEFORE)
def test_a_signal_before_the_first_step(
    phase: str, job: Callable[..., list[str]], tmp_path: Path, survival: Callable[..., None]
) -> None:
    place, number = BEFORE[phase]

    def prepare() -> None:
        if isinstance(place, str):
            send_in("whalesong.core.training.trainer", place, number)
        else:
            add_callback(place)

    arguments = job(tmp_path / "logs", "trainer.num_sanity_val_steps=2")
    stopped, _ = stop(arguments, tmp_path, prepare)
    assert stopped.code == 128 + number
    assert f"Stopped by {signal.Signals(number).name}" in stopped.output
    assert not list(tmp_path.rglob("*.ckpt")) and not list(tmp_path.rglob("*-unfinished"))
    survival("F2", detail=phase)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_during_imports(
    number: int,
    code: int,
    job: Callable[..., list[str]],
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    command = [sys.executable, "-m", "whalesong.cli", *job(tmp_path / "logs")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        _, output = process.communicate(timeout=60)
    assert (process.returncode, output) == (code, f"Stopped by {signal.Signals(number).name}.\n")
    survival("F2", detail="during imports")


@pytest.mark.parametrize("job_type", ["eval", "predict"])
def test_a_signal_in_use_leaves_no_file(
    job_type: str,
    job: Callable[..., list[str]],
    tmp_path: Path,
    survival: Callable[..., None],
    small_text_job: Callable[[str], list[str]],
) -> None:
    done = run_forked(xlm(job(tmp_path / "logs")), log=tmp_path / "log", timeout=120)
    assert done.code == 0, done.output
    (path,) = tmp_path.rglob("*.nemo")
    arguments = [f"job_type={job_type}", f"{job_type}.ckpt_path={path}"]
    arguments += [f"{job_type}.output_file={tmp_path}/out/x.jsonl"]
    if job_type == "eval":
        arguments += small_text_job("arlm")[1:]
    else:
        arguments += ["predict.prompts=[0 1 1 2 0 3 0 2]"]

    def prepare() -> None:
        place = "whalesong.textlm.textlm_model"
        send_in(place, "checked_predictions", signal.SIGINT, lasting=LONG)

    stopped, _ = stop(arguments, tmp_path, prepare)
    assert stopped.code == 130 and stopped.output.endswith("Stopped by SIGINT.\n")
    assert not list((tmp_path / "out").glob("**/*"))
    survival("F2", detail=f"in {job_type}")


@pytest.mark.parametrize("to_all", [False, True], ids=["one rank", "all ranks"])
def test_a_signal_with_two_ranks(
    to_all: bool,
    job: Callable[..., list[str]],
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    """Two processes as torchrun starts them, one of which is sent the signal, or both."""
    two = ["trainer.devices=2", "trainer.strategy=ddp"]
    whole, logs = tmp_path / "whole", tmp_path / "logs"
    for ended in in_ranks(job(whole, *two), tmp_path, lambda rank: None):
        assert ended.code == 0, ended.output

    def prepare(rank: int) -> None:
        if to_all or rank == 1:
            add_callback(SignalAt("on_before_backward", signal.SIGTERM))

    stopped = in_ranks(job(logs, *two), tmp_path, prepare)
    assert [ended.code for ended in stopped] == [143, 143], stopped[0].output
    assert "Stopped by SIGTERM at step 4; " in stopped[0].output
    assert "Stopped by" not in stopped[1].output
    assert "start it in the same way again, with exp_manager.resume" in stopped[0].output
    resumed = job(logs, *two, "exp_manager.resume_if_exists=true")
    for ended in in_ranks(resumed, tmp_path, lambda rank: None):
        assert ended.code == 0, ended.output
    assert archive(logs) == archive(whole)
    survival("F2", detail="two ranks")


def in_ranks(arguments: list[str], folder: Path, prepare: Callable[[int], None]) -> list[Ended]:
    """Run a command in two ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def become(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "x"}
        prepare(rank)

    ranks = [
        Forked(
            xlm(arguments, observe=partial(become, rank)), log=folder / f"rank{rank}", cwd=folder
        )
        for rank in range(2)
    ]
    return [rank.wait(180) for rank in ranks]
