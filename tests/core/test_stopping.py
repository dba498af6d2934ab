"""Signals are noted at once and raised where nothing is torn by it."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from whalesong.core.commands import run_command
from whalesong.core.stopping import EXIT_CODES, STOP, TIME_LIMIT, Stopped


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """What answered the signals before answers them afterwards."""
    before = {number: signal.getsignal(number) for number in EXIT_CODES}
    yield
    assert {number: signal.getsignal(number) for number in EXIT_CODES} == before


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), EXIT_CODES.items())
def test_a_signal_ends_a_command_with_its_exit_code(
    number: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: send(number))
    name = "the time limit" if number == TIME_LIMIT else signal.Signals(number).name
    assert stopped.value.code == code
    assert capsys.readouterr().err == f"Stopped by {name}.\n"


def test_a_signal_that_is_held_back_comes_with_the_release() -> None:
    with STOP.answered():
        STOP.hold()
        send(signal.SIGTERM)
        with pytest.raises(Stopped):
            STOP.release()


def test_the_first_signal_counts() -> None:
    with STOP.answered():
        STOP.hold()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            send(number)
        with pytest.raises(Stopped) as stopped:
            STOP.release()
    assert stopped.value.code == 130 and not stopped.value.at_once


def test_a_second_ctrl_c_does_not_wait() -> None:
    with STOP.answered():
        STOP.hold()
        send(signal.SIGINT)
        with pytest.raises(Stopped) as stopped:
            send(signal.SIGINT)
    assert stopped.value.at_once


def test_a_swallowed_stop_is_raised_again() -> None:
    with STOP.answered():
        try:
            send(signal.SIGTERM)
        except BaseException:  # noqa: B036, S110
            pass
        with pytest.raises(Stopped):
            STOP.check()


def test_the_next_command_knows_nothing_of_the_last_one() -> None:
    for _ in range(2):
        with pytest.raises(Stopped), STOP.answered():
            send(signal.SIGTERM)
    with STOP.answered():
        STOP.check()


def test_nohup_and_the_handlers_of_others_stay() -> None:
    heard: list[int] = []
    before = [signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGUSR1)]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    with STOP.answered():
        send(signal.SIGHUP)
        send(signal.SIGUSR1)
        STOP.check()
    for number, handler in zip((signal.SIGHUP, signal.SIGUSR1), before, strict=True):
        signal.signal(number, handler)
    assert heard == [signal.SIGUSR1]


def test_beside_the_main_thread_nothing_changes() -> None:
    handlers = []

    def look() -> None:
        with STOP.answered():
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [before]
