"""What a data worker does: a step of the plan becomes a batch, or one line on why it does not."""

import ctypes
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.utils.data import Dataset, get_worker_info

from whalesong.core.errors import ConfigError, DataError, UserError
from whalesong.core.seeding import seeded
from whalesong.data.conversation import located
from whalesong.data.faults import OnBadCut, cause
from whalesong.data.steps import Position, Step

MOST_OF_TEMPORARY_PATH = 75
"""Of the 107 bytes of a socket's path, 32 are `/pymp-XXXXXXXX/listener-XXXXXXXX`."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a worker says about a step beside its batch."""

    after: Position
    ends_epoch: bool
    ids: tuple[str, ...] = ()
    """Of the examples in the batch."""
    left_out: tuple[str, ...] = ()
    error: str | None = None
    details: str | None = None
    """The traceback of an error that is none of the data's."""


class StepDataset(Dataset):
    """Loads a step: the index of this map-style dataset is the step itself."""

    def __init__(self, collator: Any, on_bad_cut: OnBadCut) -> None:
        self.collator = collator
        self.on_bad_cut = on_bad_cut

    def __getitem__(self, step: Step) -> tuple[Any, Outcome]:
        """The batch of a step, made with random numbers of its own."""
        left_out: list[str] = []
        outcome = partial(Outcome, step.after, step.ends_epoch)
        try:
            with seeded(step.seed):
                ids, batch = self._collate(self._load(step.examples, left_out), left_out)
        except UserError as error:
            return None, outcome(left_out=tuple(left_out), error=str(error))
        except Exception as error:
            if get_worker_info() is None:
                raise
            return None, outcome(error=_bug(error), details=traceback.format_exc())
        return batch, outcome(ids, tuple(left_out))

    def _load(self, examples: list[Any], left_out: list[str]) -> list[tuple[str, Any]]:
        """Examples by their ids."""
        return list(self._good(self._read, examples, left_out))

    def _read(self, example: Any) -> tuple[str, Any]:
        try:
            return example.id, self.collator.load(example)
        except DataError as error:
            raise located(error, example) from error

    def _collate(
        self, loaded: list[tuple[str, Any]], left_out: list[str]
    ) -> tuple[tuple[str, ...], Any]:
        """The batch, and the ids of what is in it."""
        try:
            return self._batch(loaded)
        except DataError:
            if self.on_bad_cut == "raise" or len(loaded) == 0:
                raise
        # Find the examples that cannot be collated on their own.
        good = list(self._good(lambda one: (self._batch([one]), one)[1], loaded, left_out))
        if len(good) == len(loaded):
            raise DataError(f"{len(loaded)} examples that are each good make no batch.")
        return self._batch(good)

    def _batch(self, loaded: list[tuple[str, Any]]) -> tuple[tuple[str, ...], Any]:
        return tuple(str(id) for id, _ in loaded), self.collator([one for _, one in loaded])

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


def check_temporary_folder(path: str) -> None:
    """See that workers can hand over tensors: by sockets whose paths the system bounds.

    Raises:
        ConfigError: the path of the temporary folder is too long; workers would only hang.
    """
    folder = tempfile.gettempdir()
    if (length := len(os.fsencode(folder))) > MOST_OF_TEMPORARY_PATH:
        raise ConfigError(
            f"`{path}.num_workers` needs a temporary folder (TMPDIR) with a path of at most "
            f"{MOST_OF_TEMPORARY_PATH} bytes, but '{folder}' has {length}."
        )


def init_worker(worker: int, *, parent: int) -> None:
    """A worker ends with its parent, and leaves it to answer signals sent to all processes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        parent_death_signal = 1
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before it could be tied to this process
            os._exit(1)


def _bug(error: Exception) -> str:
    """One line on an error that is none of the data's, with the place in the code."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{frame.filename}, line {frame.lineno}, in {frame.name}"
    what = f"{type(error).__name__}: {cause(error)}"
    return f"data worker {os.getpid()} failed with {what} ({place})."
