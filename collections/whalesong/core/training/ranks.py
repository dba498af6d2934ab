"""Ranks that watch each other: when one is gone or stopped, the others end with a line.

The first process on a machine starts the others and sees how they end; they see whether it is
still there. Without this a rank that waits for another one waits for half an hour.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from whalesong.core.errors import UserError

FIRST_RANK = "WHALESONG_FIRST_RANK"
"""Environment variable: the process that has started this rank."""

STOPPED_SECONDS = 15.0
"""For how long a rank may be stopped (SIGSTOP) before the others end."""

GRACE_SECONDS = 8.0
"""How long a rank has to end by itself after another one is gone."""

_POLL = 0.25
_CONNECTION = re.compile("connection|gloo|nccl|socket", re.IGNORECASE)
_LEFT_TOGETHER = (0, 129, 130, 138, 143)
"""Exit codes of ranks that ended together, after their work or as a signal asked."""


def watch_ranks(trainer: Trainer) -> None:
    """Let the ranks that a trainer will start on this machine watch each other."""
    launcher = trainer.strategy.launcher
    if type(launcher) is _SubprocessScriptLauncher:
        trainer.strategy._launcher = WatchedLauncher(
            launcher.cluster_environment, launcher.num_processes, launcher.num_nodes
        )


class WatchedLauncher(_SubprocessScriptLauncher):
    """Lightning's launcher with a watch that tells why it ends a run.

    Lightning's own would kill the first process without a word, also while that says itself what
    is wrong.
    """

    def launch(
        self, function: Callable, *args: Any, trainer: Trainer | None = None, **kwargs: Any
    ) -> Any:
        """Start the other ranks if that is our part, then call the function.

        Raises:
            UserError: another rank is gone.
        """
        environment = self.cluster_environment
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        watch = None
        if not environment.creates_processes_externally:
            os.environ[FIRST_RANK] = str(os.getpid())
            self._call_children_scripts()
            watch = RankWatch(self.procs)
        elif FIRST_RANK in os.environ:
            watch = RankWatch([], first=int(os.environ[FIRST_RANK]))
        _set_num_threads_if_needed(num_processes=self.num_processes)
        if watch is None:
            return function(*args, **kwargs)
        with watch:
            return function(*args, **kwargs)


class RankWatch:
    """Looks after the other ranks of this machine while a block runs.

    When one is gone, the block has some seconds to end by itself; an error in it then becomes one
    line. A block that waits in vain for the other rank is ended with its process.

    Args:
        started: the processes of ranks 1, 2, ..., in the process that has started them.
        first: id of the process that has started this one, in another one.
    """

    def __init__(self, started: list[subprocess.Popen], *, first: int | None = None) -> None:
        self.started = started
        self.first = first
        self._over = threading.Event()
        self._found = threading.Event()
        self._reason = ""
        self._grace = GRACE_SECONDS
        self._stopped_polls: dict[int, int] = {}
        self._thread = threading.Thread(target=self._watch, daemon=True, name="rank-watch")

    def __enter__(self) -> "RankWatch":
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Name the rank that an error comes from; a `UserError` stays as it is."""
        is_connection = isinstance(error, RuntimeError) and _CONNECTION.search(str(error))
        if is_connection:
            self._found.wait(GRACE_SECONDS)  # connections break before processes have ended
        self._over.set()
        if not isinstance(error, Exception) or isinstance(error, UserError):
            return
        if self._reason or is_connection:
            self._kill_others()
            reason = self._reason or f"the connection to another rank is lost ({_first(error)})."
            raise UserError(reason) from error

    def _watch(self) -> None:
        while not self._over.wait(_POLL):
            if reason := self._trouble():
                self._reason = reason
                self._found.set()
                # A main thread that sees the loss by itself ends the process in good order.
                if not self._over.wait(self._grace + 1 if self._grace else 0):
                    self._end_process()
                return

    def _trouble(self) -> str | None:
        """What has happened to another rank, in one line."""
        for rank, process in enumerate(self.started, start=1):
            code = process.poll()
            if code is None:
                if self._is_stopped(process.pid):
                    return self._stopped(f"rank {rank} (process {process.pid})")
            elif code not in _LEFT_TOGETHER:
                return f"rank {rank} (process {process.pid}) has ended {_how(code)}."
        if self.first is not None:
            name = f"rank 0 (process {self.first})"
            if os.getppid() != self.first:
                return f"{name} is gone, which has started this rank."
            if self._is_stopped(self.first):
                return self._stopped(name)
        return None

    def _is_stopped(self, pid: int) -> bool:
        """Whether a process has been stopped for too long, counted while this one runs."""
        polls = self._stopped_polls.get(pid, 0) + 1 if process_state(pid) == "T" else 0
        self._stopped_polls[pid] = polls
        return polls * _POLL >= STOPPED_SECONDS

    def _stopped(self, name: str) -> str:
        self._grace = 0.0  # it would answer nothing that this rank is waiting for
        return f"{name} has been stopped for {STOPPED_SECONDS:.0f} s (SIGSTOP)."

    def _end_process(self) -> None:
        """End a process whose main thread hangs; no exception reaches it there."""
        self._kill_others()
        print(f"\n{UserError.title}: {self._reason}", file=sys.stderr, flush=True)
        os._exit(UserError.exit_code)

    def _kill_others(self) -> None:
        if self.first == os.getppid() and process_state(self.first) == "T":
            os.kill(self.first, signal.SIGKILL)
        for process in self.started:
            if process.poll() is None:
                process.kill()
        for process in self.started:
            process.wait()


def process_state(pid: int) -> str:
    """The letter of a process's state on Linux, T for a stopped one; empty if unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _first(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


def _how(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}; its own line says why"
    name = signal.Signals(-code).name
    return f"by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
