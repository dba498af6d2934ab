"""A demo goes on where it stopped."""

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
