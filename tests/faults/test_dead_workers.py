"""A data worker or a rank that dies or hangs: the run ends with one line, nothing is left of it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fixtures.forked import Ended, Forked, add_callback, xlm

LIMIT = 30.0
"""Seconds until the run must have ended."""


class Beats:
    """A folder where each rank notes its last step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def callback(self) -> Any:
        """The callback that notes."""
        from lightning.pytorch import Callback

        folder = self.folder

        class Beat(Callback):
            def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
                (folder / f"step{trainer.global_rank}").write_text(str(trainer.global_step))

        return Beat()

    def step(self, rank: int = 0) -> int:
        """Steps that a rank has made."""
        file = self.folder / f"step{rank}"
        return int(file.read_text() or 0) if file.exists() else 0


@pytest.fixture
def beats(tmp_path: Path) -> Beats:
    return Beats(tmp_path)


@pytest.fixture
def start(small_text_job: Callable[[str], list[str]], tmp_path: Path, beats: Beats) -> Callable:
    """Start a training without an end."""
    from whalesong.core.families import family_of

    family_of("TextLMModel").load_class()

    def run(*overrides: str, observe: Callable[[], None] = lambda: None) -> Forked:
        def all_observe() -> None:
            add_callback(beats.callback())
            observe()

        arguments = [
            *small_text_job("arlm"),
            "trainer.max_steps=1000000",
            "trainer.enable_model_summary=false",
            *overrides,
        ]
        return Forked(xlm(arguments, observe=all_observe), log=tmp_path / "log.txt")

    return run


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def living(group: int) -> list[int]:
    """Processes of a group that have not ended."""
    found = subprocess.run(["pgrep", "-g", str(group)], capture_output=True, text=True, check=False)
    states = {int(pid): state(int(pid)) for pid in found.stdout.split()}
    return [pid for pid in states if states[pid] not in ("", "Z")]


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def end_of(process: Forked) -> Ended:
    """Wait for the end of a run, and that nothing of it is left."""
    ended = process.wait(timeout=LIMIT)
    deadline = time.monotonic() + LIMIT - ended.seconds
    while left := living(process.pid):
        assert time.monotonic() < max(deadline, time.monotonic() + 1), f"left: {left}"
        time.sleep(0.05)
    return ended


def cause_lines(output: str) -> list[str]:
    """What the end of a run says."""
    assert "Traceback" not in output, output[-3000:]
    lines = [line.strip("\0 ") for line in output.splitlines()]  # torch writes a zero byte
    return [line for line in lines if line.startswith("Error: ")]


WORKERS = ["datamodule.train_ds.num_workers=2", "exp_manager=null", "trainer.limit_val_batches=0"]


@pytest.mark.parametrize(
    ("number", "pattern"),
    [
        (signal.SIGKILL, r"`data\.train_ds`: data worker (\d+) was ended by SIGKILL"),
        (signal.SIGSEGV, r"`data\.train_ds`: data worker (\d+) was ended by SIGSEGV"),
        (signal.SIGSTOP, r"`data\.train_ds`: the data workers gave no batch for 25 s"),
    ],
)
def test_a_worker_that_dies_or_hangs(
    start: Callable, beats: Beats, survival: Callable, number: int, pattern: str
) -> None:
    process = start(*WORKERS)
    process.wait_until(lambda: beats.step() > 20, timeout=60)
    victim = children(process.pid)[0]
    os.kill(victim, number)
    begin = time.monotonic()
    ended = end_of(process)
    seconds = time.monotonic() - begin
    lines = cause_lines(ended.output)
    survival("F3", detail=f"worker {signal.Signals(number).name}: {seconds:.0f} s")
    assert ended.code not in (0, -9) and seconds < LIMIT
    assert len(lines) == 1 and (match := re.search(pattern, lines[0])), ended.output[-2000:]
    assert not match.groups() or int(match[1]) == victim


def plant(error: Exception) -> None:
    """Let the collator fail in every worker, as a bug of its own would."""
    from whalesong.models.arlm.collator import ArlmSeq2SeqCollator

    def fail(self: Any, examples: Any) -> Any:
        raise error

    ArlmSeq2SeqCollator.__call__ = fail


@pytest.mark.parametrize(
    ("error", "pattern"),
    [
        (
            KeyError("answer"),
            r"data worker \d+ failed with KeyError: 'answer' \(.*, line \d+, in fail",
        ),
        (MemoryError(), r"data worker \d+ failed with MemoryError: "),
        (
            OSError(28, "No space left on device"),
            r"data worker \d+ failed with OSError: \[Errno 28\]",
        ),
    ],
    ids=["bug", "memory", "no space"],
)
def test_a_collator_that_fails_in_a_worker(
    start: Callable, survival: Callable, error: Exception, pattern: str
) -> None:
    ended = end_of(start(*WORKERS, observe=lambda: plant(error)))
    lines = cause_lines(ended.output)
    survival("F3", detail="bug in a worker")
    assert ended.code == 2
    assert len(lines) == 1 and re.search(r"`data\.train_ds`: " + pattern, lines[0]), ended.output


def test_a_worker_of_validation_dies(start: Callable, beats: Beats, survival: Callable) -> None:
    def die(self: Any, examples: Any) -> Any:
        from torch.utils.data import get_worker_info

        assert get_worker_info() is None or os.kill(os.getpid(), signal.SIGKILL)
        return [[0]] * len(examples)

    def observe() -> None:
        from whalesong.models.arlm.collator import ArlmSeq2SeqPredCollator

        ArlmSeq2SeqPredCollator.prompts = die

    overrides = [word for word in WORKERS if "limit_val" not in word]
    overrides += ["datamodule.train_ds.num_workers=0", "datamodule.validation_ds.num_workers=1"]
    ended = end_of(start(*overrides, observe=observe))
    lines = cause_lines(ended.output)
    survival("F3", detail="worker of validation")
    assert ended.code == 2
    assert len(lines) == 1 and "`data.validation_ds.datasets.validation`: data worker" in lines[0]


@dataclass
class Rank:
    """A forked rank with what the launcher asks of the process that it has started."""

    process: Forked

    @property
    def pid(self) -> int:
        return self.process.pid

    def poll(self) -> int | None:
        ended = self.process.poll()
        return None if ended is None else ended.code

    def kill(self) -> None:
        self.process.send(signal.SIGKILL)

    def wait(self) -> int:
        return self.process.wait(timeout=LIMIT).code


def two_ranks(log: Path) -> Callable[[], None]:
    """Let the launcher fork the second rank, instead of starting a python that imports it all."""

    def observe() -> None:
        from whalesong.cli import main
        from whalesong.core.training.ranks import WatchedLauncher

        def fork(self: Any) -> None:
            environment = self.cluster_environment
            os.environ.update(
                MASTER_ADDR=environment.main_address, MASTER_PORT=str(environment.main_port),
                NODE_RANK="0", LOCAL_RANK="0", WORLD_SIZE="2",
            )  # fmt: skip

            def second() -> None:
                os.environ["LOCAL_RANK"] = "1"
                os.setpgid(0, os.getppid())
                main(sys.argv[1:])

            self.procs = [Rank(Forked(second, log=log))]

        WatchedLauncher._call_children_scripts = fork

    return observe


RANKS = ["trainer.devices=2", "trainer.strategy=ddp", "datamodule.train_ds.num_workers=1"]


@pytest.mark.parametrize(
    ("rank", "number", "pattern"),
    [
        (1, signal.SIGKILL, r"rank 1 \(process \d+\) has ended by SIGKILL"),
        (1, signal.SIGSTOP, r"rank 1 \(process \d+\) has been stopped for 15 s"),
        (0, signal.SIGKILL, r"rank 0 \(process \d+\) is gone"),
        (0, signal.SIGSTOP, r"rank 0 \(process \d+\) has been stopped for 15 s"),
    ],
)
def test_a_rank_that_dies_or_hangs(
    start: Callable,
    beats: Beats,
    survival: Callable,
    tmp_path: Path,
    rank: int,
    number: int,
    pattern: str,
) -> None:
    logs = [f"exp_manager.explicit_log_dir={tmp_path / 'logs'}", "exp_manager.seconds_to_sleep=0"]
    logs += ["exp_manager.resume_if_exists=true", "trainer.val_check_interval=50"]
    second = tmp_path / "second.txt"
    process = start(*RANKS, *logs, observe=two_ranks(second))
    saved = tmp_path / "logs" / "checkpoints"
    process.wait_until(lambda: bool(list(saved.glob("*last.ckpt"))), timeout=100)
    reached = beats.step(1)
    ranks = [process.pid, *(pid for pid in children(process.pid) if children(pid))]
    begin = time.monotonic()
    os.kill(ranks[rank], number)
    survivors = [pid for pid in living(process.pid) if pid != ranks[rank]]
    while [pid for pid in survivors if state(pid) not in ("", "Z")]:
        assert time.monotonic() - begin < LIMIT, process.log.read_text()[-2000:]
        process.poll()
        time.sleep(0.1)
    seconds = time.monotonic() - begin
    code = process.wait(timeout=5).code
    output = (process.log if rank == 1 else second).read_text(errors="replace")
    lines = cause_lines(output)
    survival("F3", detail=f"rank {rank} {signal.Signals(number).name}: {seconds:.0f} s")
    assert len(lines) == 1 and re.search(pattern, lines[0]), output[-2000:]
    assert code == (2 if rank == 1 else -9) and not living(process.pid) and reached
    (tmp_path / "step0").unlink()
    again = start(*RANKS, *logs, f"trainer.max_steps={reached + 60}", observe=two_ranks(second))
    assert again.wait(timeout=60).code == 0 and beats.step(0) == reached + 60


def test_a_rank_with_bad_data_ends_both(
    start: Callable, survival: Callable, tmp_path: Path
) -> None:
    from whalesong.core.errors import DataError

    second = tmp_path / "second.txt"
    fork = two_ranks(second)

    def observe() -> None:
        fork()
        from whalesong.models.arlm.collator import ArlmSeq2SeqCollator

        collate = ArlmSeq2SeqCollator.__call__

        def fail(self: Any, examples: Any) -> Any:
            if os.environ.get("LOCAL_RANK") == "1":
                raise DataError("cut seven: is bad.")
            return collate(self, examples)

        ArlmSeq2SeqCollator.__call__ = fail

    overrides = ["datamodule.train_ds.num_workers=0", "exp_manager=null"]
    ended = end_of(start(*RANKS, *overrides, observe=observe))
    lines, own = cause_lines(ended.output), cause_lines(second.read_text())
    survival("F3", detail=f"bad data on one rank: {ended.seconds:.0f} s")
    assert ended.code == 2 and own == ["Error: cut seven: is bad."]
    assert len(lines) == 1 and re.search(r"rank 1 .* has ended with exit code 2", lines[0])
