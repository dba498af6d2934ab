"""Processes of a demo: each part runs in one of its own, so that memory and state end with it."""

import os
import socket
import subprocess
import sys
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
