"""A rank that is gone turns an error of the others into one line; nothing else is changed."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from whalesong.core.errors import DataError, UserError
from whalesong.core.training.ranks import RankWatch, process_state


@pytest.fixture
def other() -> Iterator[subprocess.Popen]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def test_a_broken_connection_is_told_with_its_reason(other: subprocess.Popen) -> None:
    with pytest.raises(UserError, match=r"^rank 1 \(process \d+\) has ended by SIGKILL"):
        with RankWatch([other]):
            other.send_signal(signal.SIGKILL)
            raise RuntimeError("gloo: Connection closed by peer")


def test_an_error_of_ones_own_stays_as_it_is(other: subprocess.Popen) -> None:
    with pytest.raises(ZeroDivisionError), RankWatch([other]):
        raise ZeroDivisionError
    with pytest.raises(DataError, match="cut a"), RankWatch([other]):
        other.kill()
        time.sleep(0.6)
        raise DataError("cut a")


def test_ranks_that_end_well_are_no_trouble() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process, RankWatch([process]):
        process.wait()
        time.sleep(0.6)


def test_a_stopped_process_is_seen(other: subprocess.Popen) -> None:
    other.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + 5
    while process_state(other.pid) != "T":
        assert time.monotonic() < deadline
        time.sleep(0.01)
