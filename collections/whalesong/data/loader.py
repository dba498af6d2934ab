"""One stream of batches for a rank, in plan order, that can begin anywhere.

The plan runs in the main process; workers get lists of examples and read, decode and collate.
"""

import atexit
import ctypes
import os
import signal
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from whalesong.core.errors import DataError, UserError
from whalesong.core.seeding import seeded
from whalesong.data.faults import OnBadCut, cause
from whalesong.data.plan import BatchPlan
from whalesong.data.steps import Position, Step, plan_steps

HISTORY = 1024
"""Steps whose place in the plan is remembered; a trainer prefetches a few."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A loaded batch and where it stands."""

    number: int
    batch: Any
    ends_epoch: bool


class BatchLoader:
    """An iterable of batches for a Lightning trainer.

    Every `iter` goes on in the same stream. What was fetched but not consumed (a trainer prefetches
    one and `limit_train_batches` cuts) is delivered again: no batch is lost or doubled.
    """

    def __init__(
        self,
        plan: BatchPlan,
        collator: Any,
        *,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        infinite: bool = False,
        repeat_first_epoch: bool = False,
        consumed: Callable[[], int] | None = None,
        epoch_is_over: Callable[[], bool] = lambda: False,
        worker_timeout: float = 30.0,
        pin_memory: bool = False,
    ) -> None:
        """Nothing is read before the first `iter`.

        Args:
            collator: `load(example)` reads one example, `__call__(loaded)` makes the batch, also
                of no examples. A `DataError` in them is treated as `plan.faults` says.
            infinite: epochs follow each other without an end; else `iter` ends with the epoch.
            repeat_first_epoch: every `iter` is one pass over epoch 0, for validation.
            consumed: number of batches this rank has been trained on; without it, what was
                delivered counts as consumed.
            epoch_is_over: asked at the begin of a pass, which yields nothing if so; for a trainer
                that resumes at the end of an epoch.
            worker_timeout: seconds without a batch after which workers count as hanging.
        """
        self.plan = plan
        self.collator = collator
        self.rank, self.world_size = rank, world_size
        self.num_workers = num_workers
        self.infinite = infinite
        self.repeat_first_epoch = repeat_first_epoch
        self.worker_timeout = worker_timeout
        self.pin_memory = pin_memory
        self._consumed = consumed
        self._epoch_is_over = epoch_is_over
        self._origin = (0, Position())
        self._reset(0)

    def __iter__(self) -> Iterator[Any]:
        """Go on at the first batch that has not been consumed."""
        if self.repeat_first_epoch:
            self.close()
            self._origin = (0, Position())
            self._reset(0)
        elif not self._can_deliver(begin := self._next_wanted()):
            self.close()
            self._reset(begin)
        return self._deliver()

    @property
    def epoch(self) -> int:
        """How many passes over the data are consumed."""
        return self._position(self._next_wanted()).epoch

    def state_dict(self) -> dict[str, int]:
        """How many batches this rank has consumed, and the place in the plan after them."""
        consumed = self._next_wanted()
        position = Position() if self.repeat_first_epoch else self._position(consumed)
        return {"consumed": consumed, "epoch": position.epoch, "batch": position.batch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on at a place in the plan; the number of ranks may be another one."""
        self.close()
        self._origin = (state_dict["consumed"], Position(state_dict["epoch"], state_dict["batch"]))
        self._reset(state_dict["consumed"])

    def close(self) -> None:
        """Stop the workers and log what was left out."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        self._kept.clear()
        if self.num_workers:
            stream._shutdown_workers()
            for worker in stream._workers:
                worker.kill()  # one that hangs; the others have ended
        self.plan.faults.log_total(self.plan.path)

    def _reset(self, number: int) -> None:
        self._stream: Iterator[tuple[Any, Outcome]] | None = None
        self._number = number  # of the next batch of the stream
        self._delivered = number  # number of the next batch that was not delivered
        self._kept: deque[Delivery] = deque()
        self._after: dict[int, Position] = {}

    def _next_wanted(self) -> int:
        return self._delivered if self._consumed is None else self._consumed()

    def _can_deliver(self, begin: int) -> bool:
        """Whether batch `begin` is kept, or the next one of the stream."""
        first = self._kept[0].number if self._kept else self._number
        return self._stream is not None and first <= begin <= self._number

    def _deliver(self) -> Iterator[Any]:
        if self._epoch_is_over():
            return
        begin = self._next_wanted()
        for kept in [kept for kept in self._kept if kept.number >= begin]:
            yield kept.batch
            if kept.ends_epoch:
                return
        while True:
            delivery = self._fetch()
            self._delivered = self._number
            self._kept.append(delivery)
            done = self._next_wanted()
            while self._kept and self._kept[0].number < done:
                self._kept.popleft()
            yield delivery.batch
            if delivery.ends_epoch:
                break
        if self.repeat_first_epoch:
            self.close()  # no idle workers between validations

    def _fetch(self) -> Delivery:
        """Take the next batch of the stream."""
        if self._stream is None:
            self._stream = self._open()
            # Before multiprocessing's own exit function, which would kill the workers.
            atexit.register(_close, weakref.ref(self))
        batch, outcome = self._next_of(self._stream)
        for message in outcome.left_out:
            self.plan.faults.report(message)
        if outcome.error is not None:
            self.close()
            raise DataError(outcome.error)
        number = self._number
        self._number += 1
        self._after[self._number] = outcome.after
        self._after.pop(self._number - HISTORY, None)
        return Delivery(number, batch, outcome.ends_epoch)

    def _open(self) -> Iterator[tuple[Any, "Outcome"]]:
        """Start the workers at batch `self._number`."""
        number, position = self._origin
        if self._number < number:  # a new run with an old loader
            number, position = self._origin = (0, Position())
        steps = islice(self._steps(position), self._number - number, None)
        return iter(
            DataLoader(
                StepDataset(self.collator, self.plan.faults.on_bad_cut),
                sampler=_until_epoch_end(steps) if self.repeat_first_epoch else steps,
                batch_size=None,
                collate_fn=_unchanged,
                num_workers=self.num_workers,
                worker_init_fn=partial(_init_worker, parent=os.getpid()),
                timeout=self.worker_timeout if self.num_workers else 0,
                pin_memory=self.pin_memory and torch.cuda.is_available(),
                generator=torch.Generator(),  # the global one is left as it is
            )
        )

    def _steps(self, position: Position) -> Iterator[Step]:
        return plan_steps(
            self.plan,
            rank=self.rank,
            world_size=self.world_size,
            start=position,
            infinite=self.infinite,
        )

    def _position(self, consumed: int) -> Position:
        """The place after a number of batches; one that is not remembered is found by walking."""
        if consumed in self._after:
            return self._after[consumed]
        number, position = self._origin if consumed >= self._origin[0] else (0, Position())
        for step in islice(self._steps(position), consumed - number):
            position = step.after
        return position

    def _next_of(self, stream: Iterator[tuple[Any, "Outcome"]]) -> tuple[Any, "Outcome"]:
        try:
            return next(stream)
        except StopIteration:
            raise
        except Exception as error:
            reason = self._worker_failure(stream, error)
            self.close()
            if reason is None:
                raise
            raise DataError(reason) from None

    def _worker_failure(self, stream: Any, error: Exception) -> str | None:
        """One line on why the workers fail; None if the error is one of the code they run."""
        if not self.num_workers:
            return None
        if "DataLoader timed out" in str(error):
            seconds = f"{self.worker_timeout:.0f} s (`worker_timeout`)"
            return f"`{self.plan.path}`: the data workers gave no batch for {seconds}."
        for worker in stream._workers:
            worker.join(timeout=0.1)
            if worker.exitcode is not None and worker.exitcode != 0:
                code = worker.exitcode
                how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
                return f"`{self.plan.path}`: data worker {worker.pid} was ended {how}."
        return None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a worker says about a step beside its batch."""

    after: Position
    ends_epoch: bool
    left_out: tuple[str, ...] = ()
    error: str | None = None


class StepDataset(Dataset):
    """Loads a step: the index of this map-style dataset is the step itself."""

    def __init__(self, collator: Any, on_bad_cut: OnBadCut) -> None:
        self.collator = collator
        self.on_bad_cut = on_bad_cut

    def __getitem__(self, step: Step) -> tuple[Any, Outcome]:
        """The batch of a step, made with random numbers of its own."""
        left_out: list[str] = []
        try:
            with seeded(step.seed):
                batch = self._collate(self._load(step.examples, left_out), left_out)
        except UserError as error:
            return None, Outcome(step.after, step.ends_epoch, tuple(left_out), str(error))
        return batch, Outcome(step.after, step.ends_epoch, tuple(left_out))

    def _load(self, examples: list[Any], left_out: list[str]) -> list[Any]:
        return list(self._good(self.collator.load, examples, left_out))

    def _collate(self, loaded: list[Any], left_out: list[str]) -> Any:
        try:
            return self.collator(loaded)
        except DataError:
            if self.on_bad_cut == "raise" or len(loaded) == 0:
                raise
        # Find the examples that cannot be collated on their own.
        good = list(self._good(lambda one: (self.collator([one]), one)[1], loaded, left_out))
        if len(good) == len(loaded):
            raise DataError(f"{len(loaded)} examples that are each good make no batch.")
        return self.collator(good)

    def _good(
        self, function: Callable[[Any], Any], items: list[Any], left_out: list[str]
    ) -> Iterator[Any]:
        for item in items:
            try:
                yield function(item)
            except DataError as error:
                if self.on_bad_cut == "raise":
                    raise
                left_out.append(cause(error, limit=500))


def _until_epoch_end(steps: Iterator[Step]) -> Iterator[Step]:
    for step in steps:
        yield step
        if step.ends_epoch:
            return


def _close(reference: weakref.ref[BatchLoader]) -> None:
    if (loader := reference()) is not None:
        loader.close()


def _unchanged(value: Any) -> Any:
    return value


def _init_worker(worker: int, *, parent: int) -> None:
    """A worker ends with its parent, and leaves it to answer signals sent to all processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        parent_death_signal = 1
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before it could be tied to this process
            os._exit(1)
