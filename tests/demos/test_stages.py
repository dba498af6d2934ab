"""A demo goes on where it stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from whalesong.demos.stages import Stage, run_stages


def test_finished_stages_are_kept_and_the_rest_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def stage(name: str) -> Stage:
        def run() -> None:
            done.append(name)
            (tmp_path / name).touch()

        return Stage(name, tmp_path / name, run)

    run_stages([stage("one"), stage("two")])
    (tmp_path / "two").unlink()
    run_stages([stage("one"), stage("two"), stage("three")])
    assert done == ["one", "two", "two", "three"]
    assert "[1/3] one: kept from before" in capsys.readouterr().out


def test_a_stage_that_fails_stops_the_demo(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        run_stages([Stage("one", tmp_path / "one", fail), Stage("two", tmp_path / "two", fail)])


def test_a_stage_must_leave_its_output(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stage 'one' ended without its output"):
        run_stages([Stage("one", tmp_path / "one", lambda: None)])


STOPPED = """
import sys
from pathlib import Path
from whalesong.demos.processes import run_module
from whalesong.demos.stages import Stage, run_stages
sleep = Path(sys.argv[1]) / "asleep.py"
sleep.write_text("import os, time; open('child', 'w').write(str(os.getpid())); time.sleep(60)")
run_stages([Stage("sleep", Path("never"), lambda: run_module("asleep", cwd=sleep.parent))])
"""


def test_a_stopped_demo_takes_its_processes_with_it(tmp_path: Path) -> None:
    demo = subprocess.Popen([sys.executable, "-c", STOPPED, str(tmp_path)])
    child = tmp_path / "child"
    _wait(lambda: child.exists() and child.read_text())
    demo.send_signal(signal.SIGTERM)
    assert demo.wait(timeout=30) == 128 + signal.SIGTERM
    _wait(lambda: not _is_running(int(child.read_text())))


def _wait(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
