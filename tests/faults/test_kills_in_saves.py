"""SIGKILL at every point of a save: the next start resumes, and nothing that was saved is lost."""

import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.forked import Ended, Forked, run_forked
from fixtures.kill_points import KillPoints, files
from fixtures.light_training import VALIDATE_EVERY, Beginning, OnStep, train_light

from whalesong.core.archive.writer import write_archive
from whalesong.core.checkpoint import AtomicCheckpointIO
from whalesong.core.errors import CheckpointError

STEPS = 8
FIRST, LATER, LAST = 2, 6, STEPS
"""Steps of the save that is killed; the last one writes the `.nemo` as well."""

NAMING: dict[str, dict[str, Any]] = {
    "{step}": {"checkpoints": {"filename": "{step}", "save_top_k": 2}},
    "constant name": {"checkpoints": {"filename": "model", "save_top_k": 1}},
    "moving average": {"checkpoints": {"filename": "{step}-{val_loss:.3f}"}, "ema": True},
    "every step": {
        "checkpoints": {
            "filename": "{step}",
            "monitor": "step",
            "mode": "max",
            "save_top_k": 1,
            "every_n_train_steps": 1,
            "every_n_epochs": None,
        }
    },
}


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """What forked processes share."""
    import whalesong.core.training.trainer  # noqa: F401


def training(logs: Path, naming: str, *callbacks: Any) -> Callable[[], object]:
    return lambda: train_light(logs, max_steps=STEPS, callbacks=callbacks, **NAMING[naming])


def kill_in_save(logs: Path, naming: str, step: int, kill_at: int) -> Ended:
    """Train until a call of the save at a step; exits with 0 when that save has fewer calls."""

    def run() -> None:
        points = KillPoints(logs / "checkpoints", kill_at=kill_at)
        points.watch()
        arm = OnStep(
            on_train_batch_end=lambda trainer: points.arm(trainer.global_step == step),
            on_train_batch_start=lambda trainer: points.arm(False),
        )
        training(logs, naming, arm)()

    return run_forked(run, log=logs.with_name("killed.log"), timeout=60)


def resume(logs: Path, naming: str) -> int:
    """Go on to the end; the step at which that began."""
    begin = logs.with_name("begin")
    done = run_forked(
        training(logs, naming, Beginning(begin)), log=logs.with_name("log"), timeout=60
    )
    assert done.code == 0, done.output
    return int(begin.read_text())


def saved_steps(folder: Path) -> list[int]:
    """Steps of the whole checkpoints that lie there."""
    steps = []
    for path in folder.glob("*.ckpt"):
        try:
            steps.append(AtomicCheckpointIO().load_checkpoint(path)["global_step"])
        except CheckpointError:
            continue
    return steps


def archive(logs: Path) -> bytes:
    (path,) = (logs / "checkpoints").glob("*.nemo")
    return path.read_bytes()


@pytest.mark.parametrize(
    ("naming", "step"),
    [
        *(("{step}", step) for step in (FIRST, LATER, LAST)),
        ("constant name", LATER),
        ("constant name", LAST),
        ("moving average", LATER),
        ("every step", LATER),
    ],
)
def test_every_point_of_a_save(
    naming: str, step: int, tmp_path: Path, survival: Callable[..., None]
) -> None:
    (tmp_path / "whole").mkdir()
    assert resume(tmp_path / "whole" / "logs", naming) == 0
    whole = archive(tmp_path / "whole" / "logs")
    lost = 0
    for kill_at in range(1000):
        logs = tmp_path / str(kill_at) / "logs"
        logs.parent.mkdir()
        killed = kill_in_save(logs, naming, step, kill_at)
        if killed.code == 0:
            break
        assert killed.code == -signal.SIGKILL, killed.output
        best = max(saved_steps(logs / "checkpoints"), default=0)
        assert best >= step - (1 if naming == "every step" else VALIDATE_EVERY)
        lost = max(lost, best - resume(logs, naming))
        left = files(logs / "checkpoints")
        assert archive(logs) == whole, kill_at
        assert not [name for name in left if not name.endswith((".ckpt", ".nemo", ".superseded"))]
        assert len([name for name in left if name.endswith("last.ckpt")]) == 1, (kill_at, *left)
    assert kill_at > 5 and lost == 0
    survival("C1", tried=kill_at, detail=f"{lost} steps lost")


def test_every_point_of_writing_an_archive(tmp_path: Path, survival: Callable[..., None]) -> None:
    path = tmp_path / "x.nemo"
    weights = {"x": torch.arange(2**15, dtype=torch.float32)}

    def write(folder: Path, scale: float) -> None:
        tensors = {name: tensor * scale for name, tensor in weights.items()}
        write_archive(folder / "x.nemo", config={"target": "SALM"}, tensors=tensors)

    for folder, scale in ((tmp_path / "old", 1.0), (tmp_path / "new", 2.0)):
        folder.mkdir()
        write(folder, scale)
    old, new = (tmp_path / name / "x.nemo" for name in ("old", "new"))
    results = set()
    for kill_at in range(1000):
        shutil.copy(old, path)

        def run(kill_at: int = kill_at) -> None:
            points = KillPoints(tmp_path, kill_at=kill_at)
            points.watch()
            points.arm(True)
            write(tmp_path, 2.0)

        ended = run_forked(run, log=tmp_path / "log", timeout=60)
        if ended.code == 0:
            break
        found = path.read_bytes()
        assert ended.code == -signal.SIGKILL and found in (old.read_bytes(), new.read_bytes())
        results.add(found == new.read_bytes())
        write(tmp_path, 2.0)
        assert path.read_bytes() == new.read_bytes() and not list(tmp_path.glob(".*"))
    assert kill_at > 5 and results == {False, True}
    survival("C3", tried=kill_at, detail="old or new, whole; remains removed by the next writer")


def test_kills_at_random_times(tmp_path: Path, survival: Callable[..., None]) -> None:
    """Fifty in one training that saves at every step: it loses one step at most at each."""
    logs, journal, chance = tmp_path / "logs", tmp_path / "journal", random.Random(0)
    kills, steps, lost = 50, 400, 0
    params = NAMING["every step"]

    def note(trainer: Any) -> None:
        with journal.open("a") as file:
            file.write(f"{trainer.global_step} ")

    def begun(trainer: Any) -> None:
        with journal.open("a") as file:
            file.write(f"\nfrom {trainer.global_step}: ")

    notes = OnStep(on_train_start=begun, on_train_batch_end=note)
    run = partial(train_light, logs, max_steps=steps, callbacks=[notes], **params)
    for _ in range(kills):
        process = Forked(run, log=tmp_path / "log")
        begins = read(journal).count("from")
        process.wait_until(partial(has_begun_again, journal, begins), 60)
        time.sleep(chance.uniform(0.02, 0.2))
        process.send(signal.SIGKILL)
        assert process.wait(60).code == -signal.SIGKILL
    assert run_forked(run, log=tmp_path / "log", timeout=60).code == 0
    runs = [line.partition(": ") for line in read(journal).split("from ")[1:]]
    for (_, _, before), (begin, _, _) in pairwise(runs):
        lost = max(lost, int((before.split() or ["0"])[-1]) - int(begin) if before.strip() else 0)
    assert lost <= 1
    survival("C1", tried=kills, detail=f"random times: {lost} step lost at most")


def has_begun_again(journal: Path, begins: int) -> bool:
    return read(journal).count("from") > begins


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
