"""Processes of a demo: each part runs in one of its own, so that memory and state end with it."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn


def run_module(module: str, *arguments: object, cwd: Path | None = None) -> None:
    """Run a module in a process of its own, without downloads."""
    subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        check=True,
        cwd=cwd,
        env={**half_the_cores(), "HF_HUB_OFFLINE": "1"},
    )


def half_the_cores() -> dict[str, str]:
    """Models this small gain little from threads, which wait for each other on a busy machine."""
    return {**os.environ, "OMP_NUM_THREADS": str(max((os.cpu_count() or 2) // 2, 1))}


def block_network() -> None:
    """Make every attempt to reach another host an error."""

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise OSError("the network is off in this process")

    socket.socket.connect = refuse
    socket.socket.connect_ex = refuse
    socket.getaddrinfo = refuse


def run_together(commands: Mapping[Path, Sequence[object]]) -> None:
    """Run modules at the same time, a core each; when one fails, the others end, too.

    Args:
        commands: log file -> module and its arguments. The first one shows its progress instead.

    Raises:
        CalledProcessError: of the first one that failed.
    """
    with ExitStack() as running:
        processes = []
        for log, command in commands.items():
            show = running.enter_context(open(log, "w")) if processes else None
            process = subprocess.Popen(
                [sys.executable, "-m", *map(str, command)],
                env=half_the_cores(),
                stdout=show,
                stderr=show,
            )
            running.callback(process.kill)  # nothing to one that has ended
            processes.append(process)
        for process in processes:
            if process.wait() != 0:
                raise subprocess.CalledProcessError(process.returncode, process.args)
