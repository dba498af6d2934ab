"""A full disk: old files stay whole, one line says what is needed, and room makes all well."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from fixtures.forked import add_callback, run_forked, xlm
from fixtures.light_training import Beginning, OnStep
from fixtures.small_disk import SmallDisk

STEPS = 6
ROOM = 50_000
"""Kilobytes that are enough for all."""


@pytest.fixture(scope="module")
def job(small_text_job: Callable[[str], list[str]]) -> Callable[[Path], list[str]]:
    def arguments(logs: Path) -> list[str]:
        return [
            *small_text_job("arlm"),
            f"exp_manager.explicit_log_dir={logs}",
            "exp_manager.seconds_to_sleep=0",
            "exp_manager.resume_if_exists=true",
            "exp_manager.checkpoint_callback_params.save_top_k=-1",
            f"trainer.max_steps={STEPS}",
            "trainer.val_check_interval=2",
        ]

    return arguments


@pytest.fixture(scope="module")
def whole(job: Callable[[Path], list[str]], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    logs = tmp_path_factory.mktemp("whole")
    done = run_forked(xlm(job(logs)), log=logs / "log", timeout=120)
    assert done.code == 0, done.output
    return (logs / "checkpoints" / "train.nemo").read_bytes()


def one_line(output: str) -> str:
    """The last line, when nothing of a traceback is before it."""
    assert "Traceback" not in output and "Exception" not in output, output
    (line,) = [line for line in output.splitlines() if line.startswith("Error: ")]
    return line


@pytest.mark.parametrize("kilobytes", [4, 16, 150, 400])
def test_a_disk_that_is_full_at_the_start(
    kilobytes: int,
    job: Callable[[Path], list[str]],
    whole: bytes,
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    disk_folder = tmp_path / "disk"

    def scenario() -> None:
        disk = SmallDisk(disk_folder, kilobytes=kilobytes)
        failed = run_forked(xlm(job(disk_folder / "logs")), log=tmp_path / "first", timeout=120)
        line = one_line(failed.output)
        assert failed.code == 2 and str(disk_folder) in line and " MB free" in line, line
        disk.resize(ROOM)
        done = run_forked(xlm(job(disk_folder / "logs")), log=tmp_path / "second", timeout=120)
        assert done.code == 0, done.output
        (archive,) = disk_folder.rglob("*.nemo")
        assert archive.read_bytes() == whole

    ended = run_forked(scenario, log=tmp_path / "log", timeout=240)
    assert ended.code == 0, ended.output
    survival("C2", detail="at the start")


@pytest.mark.parametrize("step", [2, 4, STEPS])
def test_a_disk_that_fills_up_in_training(
    step: int,
    job: Callable[[Path], list[str]],
    whole: bytes,
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    """Another program fills it just before the save at a step."""
    disk_folder = tmp_path / "disk"

    def scenario() -> None:
        disk = SmallDisk(disk_folder, kilobytes=ROOM)
        ballast = disk_folder / "ballast"

        def fill(trainer: object) -> None:
            if trainer.global_step == step:
                fill_up(ballast)

        hook = "on_train_end" if step == STEPS else "on_validation_start"
        observe = lambda: add_callback(OnStep(**{hook: fill}))  # noqa: E731
        command = xlm(job(disk_folder / "logs"), observe=observe)
        failed = run_forked(command, log=tmp_path / "first", timeout=120)
        line = one_line(failed.output)
        assert failed.code == 2 and "needs " in line and " MB free" in line, line
        assert "untouched" in line or "nothing was written" in line
        begin = tmp_path / "begin"
        ballast.unlink()
        command = xlm(job(disk_folder / "logs"), observe=lambda: add_callback(Beginning(begin)))
        done = run_forked(command, log=tmp_path / "second", timeout=120)
        assert done.code == 0, done.output
        assert int(begin.read_text()) == (STEPS if step == STEPS else step - 2)
        (archive,) = disk_folder.rglob("*.nemo")
        assert archive.read_bytes() == whole
        del disk

    ended = run_forked(scenario, log=tmp_path / "log", timeout=240)
    assert ended.code == 0, ended.output
    survival("C2", detail="in training")


def fill_up(path: Path) -> None:
    """Take the room that is left, but for some of what logs and markers need."""
    with path.open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(bytes(4096)) == 4096:
                pass
        file.truncate(file.tell() - 8 * 4096)


def test_what_prediction_writes(tmp_path: Path, survival: Callable[..., None]) -> None:
    """Rows and sound on a full disk: the old file stays, nothing half-written lies beside it."""
    import torch

    from whalesong.core.archive.writer import write_archive
    from whalesong.core.errors import UserError
    from whalesong.inference import write_json_lines
    from whalesong.sound.wav import write_wav

    folder = tmp_path / "disk"
    writers = {
        "x.jsonl": lambda path: write_json_lines(path, [{"text": "a" * 100_000}]),
        "x.wav": lambda path: write_wav(path, torch.zeros(1, 100_000), 16000),
        "x.nemo": lambda path: write_archive(
            path, config={"target": "SALM"}, tensors={"x": torch.zeros(50_000)}
        ),
    }

    def scenario() -> None:
        disk = SmallDisk(folder, kilobytes=1000)
        for name in writers:
            (folder / name).write_bytes(b"old")
        disk.resize(40)
        for name, write in writers.items():
            with pytest.raises(UserError, match=rf"{name}: needs .* MB .* free .* untouched"):
                write(folder / name)
            assert (folder / name).read_bytes() == b"old"
        assert sorted(path.name for path in folder.iterdir()) == sorted(writers)

    ended = run_forked(scenario, log=tmp_path / "log", timeout=60)
    assert ended.code == 0, ended.output
    survival("C2", tried=len(writers), detail="what predict writes")
