"""One stream of batches for a rank, in plan order, that can begin anywhere.

The plan runs in the main process; workers get lists of examples and read, decode and collate.
"""

import atexit
import os
import signal
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from threading import Timer
from typing import Any

import torch
from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader

from whalesong.core.errors import DataError, UserError
from whalesong.data.loading import Outcome, StepDataset, check_temporary_folder, init_worker
from whalesong.data.plan import BatchPlan
from whalesong.data.steps import Position, Step, plan_steps

HISTORY = 1024
"""Steps that are remembered, with their place in the plan and the ids of their examples."""


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

    def ids_of(self, number: int) -> tuple[str, ...]:
        """Ids of the examples in a batch that was delivered; nothing that was left out.

        Args:
            number: of the batch since the begin of training; with `repeat_first_epoch` since the
                begin of the pass. Of more than `HISTORY` batches ago nothing is known.
        """
        outcome = self._outcomes.get(number)
        return () if outcome is None else outcome.ids

    def state_dict(self, *, waiting: int = 0) -> dict[str, int]:
        """How many batches this rank has consumed, and the place in the plan after them.

        Args:
            waiting: the last ones that do not count yet.
        """
        consumed = self._next_wanted() - waiting
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
        self._workers_hung = False
        self._number = number  # of the next batch of the stream
        self._delivered = number  # number of the next batch that was not delivered
        self._kept: deque[Delivery] = deque()
        self._outcomes: dict[int, Outcome] = {}

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
            raise self._error(outcome)
        number = self._number
        self._number += 1
        self._outcomes[number] = outcome
        self._outcomes.pop(number - HISTORY, None)
        return Delivery(number, batch, outcome.ends_epoch)

    def _error(self, outcome: Outcome) -> DataError:
        if outcome.details is None:
            return DataError(outcome.error)
        error = DataError(f"`{self.plan.path}`: {outcome.error}")
        error.__cause__ = RuntimeError(outcome.details)
        return error

    def _open(self) -> Iterator[tuple[Any, Outcome]]:
        """Start the workers at batch `self._number`."""
        if self.num_workers:
            check_temporary_folder(self.plan.path)
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
                worker_init_fn=partial(init_worker, parent=os.getpid()),
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
        if (outcome := self._outcomes.get(consumed - 1)) is not None:
            return outcome.after
        number, position = self._origin if consumed >= self._origin[0] else (0, Position())
        for step in islice(self._steps(position), consumed - number):
            position = step.after
        return position

    def _next_of(self, stream: Iterator[tuple[Any, Outcome]]) -> tuple[Any, Outcome]:
        try:
            if not self.num_workers or not self.worker_timeout:
                return next(stream)
            # A worker that hangs while it hands a batch over is beyond the loader's own timeout.
            alarm = Timer(self.worker_timeout + 1, self._end_hanging_workers, [stream])
            alarm.daemon = True
            alarm.start()
            try:
                return next(stream)
            finally:
                alarm.cancel()
        except StopIteration:
            raise
        except Exception as error:
            self.explain(error)
            self.close()
            raise

    def explain(self, error: BaseException) -> None:
        """Close the loader if its workers are what an error comes from.

        Raises:
            DataError: one line on what has happened to them.
        """
        if isinstance(error, UserError) or not isinstance(error, Exception):
            return
        if not self.num_workers or self._stream is None:
            return
        if reason := self._worker_failure(self._stream, error):
            _kill_workers(self._stream)  # none of them is waited for
            self.close()
            raise DataError(reason) from error

    def _end_hanging_workers(self, stream: Any) -> None:
        self._workers_hung = True
        _kill_workers(stream)

    def _worker_failure(self, stream: Any, error: BaseException) -> str | None:
        """One line on why the workers fail; None if they do not."""
        if self._workers_hung or "DataLoader timed out" in str(error):
            seconds = f"{self.worker_timeout:.0f} s (`worker_timeout`)"
            return f"`{self.plan.path}`: the data workers gave no batch for {seconds}."
        for worker in stream._workers:
            worker.join(timeout=0.1)
            if worker.exitcode is not None and worker.exitcode != 0:
                code = worker.exitcode
                how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
                how += " (out of memory?)" if -code == signal.SIGKILL else ""
                return f"`{self.plan.path}`: data worker {worker.pid} was ended {how}."
        return None


def _until_epoch_end(steps: Iterator[Step]) -> Iterator[Step]:
    for step in steps:
        yield step
        if step.ends_epoch:
            return


def _kill_workers(stream: Any) -> None:
    if stream._worker_pids_set:  # torch would take their deaths for failures
        _remove_worker_pids(id(stream))
        stream._worker_pids_set = False
    for worker in stream._workers:
        worker.kill()


def _close(reference: weakref.ref[BatchLoader]) -> None:
    if (loader := reference()) is not None:
        loader.close()


def _unchanged(value: Any) -> Any:
    return value
