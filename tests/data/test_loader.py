"""Laws of the loader: the same batches whoever loads them, wherever the stream begins."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from whalesong.core.errors import ConfigError, DataError
from whalesong.data.loader import BatchLoader

KEYS = {"batch_size": 5, "use_bucketing": True, "num_buckets": 2}


def stream(loader, count):
    """The first batches of an endless loader."""
    batches = list(islice(iter(loader), count))
    loader.close()
    return batches


@pytest.fixture
def plan(plan_of, corpus):
    return plan_of(shar_path=str(corpus), **KEYS)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_change_nothing(plan, collator, num_workers):
    alone = BatchLoader(plan, collator, infinite=True)
    many = BatchLoader(plan, collator, infinite=True, num_workers=num_workers)
    assert stream(many, 14) == stream(alone, 14)


def test_audio_belongs_to_its_cut(plan, collator):
    for batch in stream(BatchLoader(plan, collator, infinite=True), 6):
        assert batch["firsts"] == [int(id[3:]) / 1000 for id in batch["ids"]]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_stream_of_one(plan, collator, world_size):
    single = stream(BatchLoader(plan, collator, infinite=True), 12)
    for rank in range(world_size):
        loader = BatchLoader(plan, collator, infinite=True, rank=rank, world_size=world_size)
        expected = single[rank::world_size]
        assert stream(loader, len(expected)) == expected, "augmentation is equal, too"


@pytest.mark.parametrize("batch_size", [24, 9, 5, 4, 1])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_finite_epoch_has_as_many_steps_on_every_rank(
    plan_of, corpus, collator, world_size, batch_size
):
    plan = plan_of(shar_path=str(corpus), batch_size=batch_size)
    loaders = [
        BatchLoader(plan, collator, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for _ in range(2):
        epochs = [list(loader) for loader in loaders]
        assert len({len(epoch) for epoch in epochs}) == 1
        seen = Counter(id for epoch in epochs for batch in epoch for id in batch["ids"])
        assert seen == Counter(f"utt{i}" for i in range(24))


def test_the_next_iter_is_the_next_epoch(plan, collator):
    loader = BatchLoader(plan, collator)
    epochs = [list(loader), list(loader)]
    endless = stream(BatchLoader(plan, collator, infinite=True), sum(map(len, epochs)))
    assert epochs[0] != epochs[1] and epochs[0] + epochs[1] == endless


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("infinite", [True, False])
def test_a_stream_begun_anywhere_is_the_tail_of_the_whole(plan, collator, infinite, num_workers):
    def epochs(loader, count):
        return [batch for _ in range(3) for batch in islice(iter(loader), count)]

    whole = epochs(BatchLoader(plan, collator, infinite=infinite), 20)
    counter = [0]
    for consumed in (0, 1, 4, 5, 6, 10, 13):
        loader = BatchLoader(
            plan, collator, infinite=infinite, num_workers=num_workers, consumed=lambda: counter[0]
        )
        counter[0] = consumed
        tail = []
        while len(tail) < len(whole) - consumed and len(tail) < 4:
            for batch in loader:
                counter[0] += 1
                tail.append(batch)
                if len(tail) == 4:
                    break
        assert tail == whole[consumed : consumed + len(tail)]
        loader.close()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_saved_place_is_the_same_for_any_number_of_ranks(plan, collator, world_size):
    single = stream(BatchLoader(plan, collator, infinite=True), 20)
    pair = BatchLoader(plan, collator, infinite=True, rank=1, world_size=2)
    list(islice(iter(pair), 4))
    state = pair.state_dict()
    alone = BatchLoader(plan, collator, infinite=True, consumed=lambda: 8).state_dict()
    assert state == {**alone, "consumed": 4}
    for rank in range(world_size):
        loader = BatchLoader(plan, collator, infinite=True, rank=rank, world_size=world_size)
        loader.load_state_dict(state)
        assert stream(loader, 3) == single[8 + rank :: world_size][:3]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pseudo_epochs_with_a_prefetching_trainer_lose_nothing(plan, collator, num_workers):
    whole = stream(BatchLoader(plan, collator, infinite=True), 21)
    consumed, trained = [0], []
    loader = BatchLoader(
        plan, collator, infinite=True, num_workers=num_workers, consumed=lambda: consumed[0]
    )
    for _ in range(3):
        batches = iter(loader)
        ahead = next(batches)
        for _ in range(7):
            batch, ahead = ahead, next(batches)
            trained.append(batch)
            consumed[0] += 1
    loader.close()
    assert trained == whole


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_loader_knows_what_was_in_a_batch(plan, collator, num_workers):
    loader = BatchLoader(plan, collator, infinite=True, num_workers=num_workers)
    loader.load_state_dict({"consumed": 7, "epoch": 0, "batch": 2})
    batches = list(islice(iter(loader), 5))
    assert [list(loader.ids_of(7 + k)) for k in range(5)] == [batch["ids"] for batch in batches]
    assert loader.ids_of(6) == loader.ids_of(100) == ()
    loader.close()


def test_what_was_left_out_was_not_in_the_batch(plan_of, corpus, collator):
    class Picky(type(collator)):
        """Refuses a cut, and collates no second one."""

        def load(self, example):
            if example.id == "utt1":
                raise DataError("utt1: refused")
            return super().load(example)

        def __call__(self, loaded):
            if any(id == "utt2" for id, _ in loaded):
                raise DataError("utt2: refused")
            return super().__call__(loaded)

    plan = plan_of(shar_path=str(corpus), batch_size=5, shuffle=False, on_bad_cut="skip")
    loader = BatchLoader(plan, Picky())
    next(iter(loader))
    assert loader.ids_of(0) == ("utt0", "utt3", "utt4")


def test_batches_that_wait_for_a_step_are_not_in_a_saved_place(plan, collator):
    loader = BatchLoader(plan, collator, infinite=True)
    whole = stream(loader, 9)
    again = BatchLoader(plan, collator, infinite=True)
    list(islice(iter(again), 5))
    again.load_state_dict(state := again.state_dict(waiting=2))
    assert state["consumed"] == 3 and stream(again, 4) == whole[3:7]


def test_a_validation_loader_repeats_its_pass(plan_of, corpus, collator):
    plan = plan_of(shar_path=str(corpus), batch_size=5, shuffle=False)
    loader = BatchLoader(plan, collator, repeat_first_epoch=True)
    first = list(loader)
    next(iter(loader))  # a sanity check that stops early
    assert list(loader) == first
    assert [id for batch in first for id in batch["ids"]] == [f"utt{i}" for i in range(24)]


def test_the_random_state_of_the_process_is_left_alone(plan, collator):
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    expected = float(torch.rand(())), random.random(), float(np.random.rand())
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    stream(BatchLoader(plan, collator, infinite=True), 3)
    stream(BatchLoader(plan, collator, infinite=True, num_workers=1), 1)
    assert (float(torch.rand(())), random.random(), float(np.random.rand())) == expected


def test_drop_last_that_leaves_no_batch_is_said(plan_of, corpus, collator):
    plan = plan_of(shar_path=str(corpus), batch_size=100, drop_last=True)
    with pytest.raises(DataError, match="`drop_last` leaves no batch"):
        next(iter(BatchLoader(plan, collator)))


class Troubled:
    """A collator that gets into trouble at the fourth batch."""

    def __init__(self, trouble, folder):
        self.trouble, self.folder = trouble, folder

    def load(self, example):
        with open(self.folder / "seen", "a") as file:
            file.write("x")
        if (self.folder / "seen").stat().st_size > 12:
            self.trouble()
        return example.id

    def __call__(self, loaded):
        return loaded


def sleep_long():
    time.sleep(100)


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def raise_bug():
    raise ZeroDivisionError("a bug in a collator")


def test_a_killed_worker_is_one_line(plan_of, corpus, tmp_path):
    plan = plan_of(shar_path=str(corpus), batch_size=4)
    loader = BatchLoader(plan, Troubled(kill_self, tmp_path), num_workers=1, infinite=True)
    begin = time.monotonic()
    with pytest.raises((DataError, RuntimeError), match=r"worker .*(SIGKILL|Killed)") as caught:
        list(islice(iter(loader), 20))
    assert time.monotonic() - begin < 20
    assert "\n" not in str(caught.value).strip()


def test_a_hanging_worker_is_one_line(plan_of, corpus, tmp_path):
    plan = plan_of(shar_path=str(corpus), batch_size=4)
    loader = BatchLoader(plan, Troubled(sleep_long, tmp_path), num_workers=1, worker_timeout=1)
    begin = time.monotonic()
    with pytest.raises(DataError, match=r"the data workers gave no batch for 1 s"):
        list(loader)
    assert time.monotonic() - begin < 20


def test_a_temporary_folder_too_deep_for_sockets_is_one_line(plan, collator, tmp_path, monkeypatch):
    folder = tmp_path / ("deep" * 20)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(ConfigError, match=r"num_workers` needs a temporary folder \(TMPDIR\)"):
        next(iter(BatchLoader(plan, collator, num_workers=1)))
    next(iter(BatchLoader(plan, collator)))


def test_a_signal_to_all_processes_is_left_to_the_parent(plan, collator):
    """Workers go on after SIGTERM and SIGINT: the parent may have a checkpoint to write."""
    loader = BatchLoader(plan, collator, infinite=True, num_workers=1)
    batches = iter(loader)
    next(batches)
    [worker] = loader._stream._workers
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker.pid, number)
    assert len(list(islice(batches, 8))) == 8 and worker.is_alive()
    loader.close()
    assert not worker.is_alive()


def test_a_bug_keeps_its_traceback(plan_of, corpus, tmp_path):
    plan = plan_of(shar_path=str(corpus), batch_size=4)
    with pytest.raises(ZeroDivisionError, match="a bug in a collator"):
        list(BatchLoader(plan, Troubled(raise_bug, tmp_path)))


def test_a_bug_in_a_worker_is_one_line_with_the_traceback_as_its_cause(plan_of, corpus, tmp_path):
    plan = plan_of(shar_path=str(corpus), batch_size=4)
    place = r"ZeroDivisionError: a bug in a collator \(.*test_loader\.py, line \d+, in raise_bug\)"
    with pytest.raises(DataError, match=rf"`data\.train_ds`: data worker \d+ .* {place}") as caught:
        list(BatchLoader(plan, Troubled(raise_bug, tmp_path), num_workers=1))
    assert "Traceback" in str(caught.value.__cause__)


PARENT = """
import sys
from pathlib import Path
from whalesong.data.config import DatasetConfig
from whalesong.data.loader import BatchLoader
from whalesong.data.plan import make_plan

class Collator:
    def load(self, example): return example.id
    def __call__(self, loaded): return loaded

plan = make_plan(DatasetConfig(shar_path=sys.argv[1], batch_size=2), path="data")
loader = BatchLoader(plan, Collator(), num_workers=2, infinite=True)
next(iter(loader))
print(*[worker.pid for worker in loader._stream._workers], flush=True)
if sys.argv[2] == "wait":
    sys.stdin.read()
"""


def test_workers_end_with_their_parent(corpus):
    """One parent is killed, the other one comes to its end in the middle of the stream."""
    command = [sys.executable, "-W", "ignore", "-c", PARENT, str(corpus)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    parents = [subprocess.Popen([*command, end], **pipes, text=True) for end in ("wait", "exit")]
    workers = [int(pid) for parent in parents for pid in parent.stdout.readline().split()]
    parents[0].kill()
    for parent in parents:
        parent.wait(timeout=20)
        assert parent.stderr.read() == ""
        for pipe in (parent.stdin, parent.stdout, parent.stderr):
            pipe.close()
    assert len(workers) == 4 and parents[1].returncode == 0
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
