"""Signals that end a command: noted at once, raised where nothing is torn by it.

One object of the process, `STOP`, answers them. Outside of training a signal raises where the
command stands; within, `GracefulStop` holds it back while a step or a save is under way.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

TIME_LIMIT: int = signal.SIGALRM
"""The clock of `exp_manager.max_time_per_run` rings with it."""

EXIT_CODES: dict[int, int] = {
    signal.SIGINT: 130,
    signal.SIGTERM: 143,
    signal.SIGHUP: 129,
    signal.SIGUSR1: 138,
    TIME_LIMIT: 0,
}
"""What the process ends with: 128 and the number of the signal; a time limit is no failure."""


class Stopped(SystemExit):
    """A signal ends the command.

    Args:
        number: the signal.
        at_once: a second Ctrl-C: nothing more is saved.

    Attributes:
        told: whether the user has been told.
    """

    def __init__(self, number: int, *, at_once: bool = False) -> None:
        super().__init__(EXIT_CODES[number])
        self.number = number
        self.at_once = at_once
        self.told = False

    @property
    def reason(self) -> str:
        """The name of the signal; a time limit in words."""
        return "the time limit" if self.number == TIME_LIMIT else signal.Signals(self.number).name


class Stop:
    """The signals of this process.

    Attributes:
        received: the first one that came. Later ones change nothing, but for another Ctrl-C,
            which leaves at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._held = False
        self._depth = 0

    @contextmanager
    def answered(self) -> Iterator[None]:
        """Answer the signals while the block runs, also those that others took over before.

        In a thread beside the main one this does nothing, since python allows it there alone.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        if self._depth == 0:
            self.received, self._held = None, False
        before, held = {number: signal.getsignal(number) for number in EXIT_CODES}, self._held
        self._depth += 1
        try:
            for number, handler in before.items():
                if not _belongs_to_others(number, handler):
                    signal.signal(number, self._note)
            yield
        finally:
            self._depth, self._held = self._depth - 1, held
            for number, handler in before.items():
                signal.signal(number, handler)

    def hold(self) -> None:
        """Only note what comes, until `release`."""
        self._held = True

    def release(self) -> None:
        """Raise what came meanwhile, and from now on what comes.

        Raises:
            Stopped: a signal came.
        """
        self._held = False
        self.check()

    def check(self) -> None:
        """Raise what came, also when something has swallowed it where it was raised.

        Raises:
            Stopped: a signal came.
        """
        if self.received is not None:
            raise Stopped(self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            if not self._held:
                self.check()
        elif number == signal.SIGINT:
            raise Stopped(number, at_once=True)


STOP = Stop()


def _belongs_to_others(number: int, handler: Any) -> bool:
    """Whether a signal is not ours to answer: of `nohup`, or of Lightning's requeueing."""
    if number in (signal.SIGINT, signal.SIGTERM):
        return False
    return handler not in (signal.SIG_DFL, STOP._note)
