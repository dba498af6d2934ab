"""Handles, threads, processes and temporary files: all that was begun is given back."""

import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.forked import Forked, run_forked, xlm
from fixtures.held import held, shared_segments, use_own_temporary_folder

import whalesong
from whalesong.core.errors import UserError

REPETITIONS, TRAININGS, WARM_UP = 20, 8, 2
TIMEOUT = 300
WORKERS = ["data.train_ds.num_workers=2", "data.validation_ds.num_workers=1"]
_OF_LIBRARIES = ("wandb-artifacts", "wandb-media", "torchinductor_", "pymp-", "listener-")
Job = Callable[..., list[str]]
Survival = Callable[..., None]


def short_folder() -> tempfile.TemporaryDirectory[str]:
    """For temporary files: sockets of data workers, whose paths are bounded, lie in it."""
    return tempfile.TemporaryDirectory(prefix="w")


def assert_nothing_is_left(
    activity: Callable[[int], object], folder: Path, *, times: int = REPETITIONS
) -> None:
    """Do it again and again in one process: it holds what it held after the second time.

    Args:
        activity: called with 0, 1, ...
        folder: for the output.
        times: how often.
    """

    def repeat() -> None:
        use_own_temporary_folder(Path(temporary))
        for count in range(times):
            activity(count)
            if count == WARM_UP - 1:
                before = held()
        after = held()
        assert after == before, f"more: {after - before}, less: {before - after}"

    with short_folder() as temporary:
        ended = run_forked(repeat, log=folder / "repeated", timeout=TIMEOUT)
    assert ended.code == 0, ended.output[-3000:]


def test_trainings_that_end_and_that_fail(
    family_job: Job, tmp_path: Path, survival: Survival
) -> None:
    short = ["trainer.max_steps=2", "trainer.val_check_interval=1", *WORKERS]
    bad = ["model_type.optimizer.lr=1e30", "trainer.gradient_clip_val=null"]

    def train(count: int) -> None:
        fails = count % 4 == 1
        job = family_job("arlm", tmp_path / f"logs{count}", *short, *(bad if fails else []))
        try:
            xlm(job)()
        except SystemExit as stop:
            assert fails and stop.code == 2

    assert_nothing_is_left(train, tmp_path, times=TRAININGS)
    survival("M2", tried=TRAININGS, detail="trainings, a quarter of which fail")


@pytest.fixture(scope="module")
def salm_archive(build_salm: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("salm") / "salm.nemo"
    build_salm().save_to(path)
    return path


def test_restoring_evaluating_and_answering(
    salm_archive: Path, speech_shar: Path, tmp_path: Path, survival: Survival
) -> None:
    common = [
        "experiment=salm_demo",
        "trainer.accelerator=cpu",
        "model.generation.max_new_tokens=2",
    ]
    evaluation = [
        f"data.test_ds.shar_path={speech_shar}",
        "data.test_ds.num_workers=1",
        f"eval.output_file={tmp_path}/rows.jsonl",
        f"eval.ckpt_path={salm_archive}",
    ]
    request = ["predict.prompts=[turn on]", f"predict.ckpt_path={salm_archive}"]

    def use(count: int) -> None:
        if count % 2:
            xlm(["job_type=eval", *common, *evaluation])()
        else:
            xlm(["job_type=predict", *common, *request])()

    assert_nothing_is_left(use, tmp_path)
    survival("M2", tried=REPETITIONS, detail="evaluations and predictions with their restores")


def test_restores_that_fail(salm_archive: Path, tmp_path: Path, survival: Survival) -> None:
    whole = salm_archive.read_bytes()
    path = tmp_path / "bad.nemo"

    def restore(count: int) -> None:
        flipped = bytearray(whole)
        flipped[(count + 1) * len(whole) // (REPETITIONS + 2)] ^= 255
        for content in (whole[: (count + 1) * len(whole) // REPETITIONS - 1], bytes(flipped)):
            path.write_bytes(content)
            with pytest.raises(UserError):
                whalesong.load(path)
        with pytest.raises(UserError):
            whalesong.CodecLMModel.restore_from(salm_archive)

    assert_nothing_is_left(restore, tmp_path)
    survival("M2", tried=3 * REPETITIONS, detail="failed restores")


def test_sessions_and_streams(
    build_duplex: Callable[..., Any],
    build_audiolm: Callable[..., Any],
    tones: list[Any],
    tmp_path: Path,
    survival: Survival,
) -> None:
    duplex, audiolm = build_duplex(), build_audiolm()
    begin = [torch.from_numpy(tones[0])[None, :3200]]

    def converse(count: int) -> None:
        session = duplex.start_session()
        session.step(0.1 * torch.randn(4000 + 100 * count))
        if count % 2:
            session.finish()
        stream = audiolm.stream_audio(begin, max_seconds=0.4)
        next(stream)
        if count % 2:
            list(stream)

    assert_nothing_is_left(converse, tmp_path)
    survival("M2", tried=2 * REPETITIONS, detail="sessions and streams, half of them abandoned")


def test_trainings_that_are_killed(family_job: Job, tmp_path: Path, survival: Survival) -> None:
    logs, kills = tmp_path / "logs", 5
    job = family_job(
        "salm", logs, *WORKERS, "trainer.max_steps=40", "trainer.val_check_interval=5",
        "data.train_ds.batch_size=2", "exp_manager.resume_if_exists=true",
        "exp_manager.checkpoint_callback_params.every_n_train_steps=1",
        "exp_manager.checkpoint_callback_params.every_n_epochs=0",
    )  # fmt: skip
    train = xlm(job)

    def start() -> Forked:
        def run() -> None:
            use_own_temporary_folder(Path(temporary))
            train()

        return Forked(run, log=tmp_path / "output")

    before = set(shared_segments())
    with short_folder() as temporary:
        for count in range(kills):
            kill_after_workers_start(start(), random.Random(count).uniform(0, 1.5))
        assert start().wait(TIMEOUT).code == 0
        assert not of_ours(Path(temporary))
    left = [path for path in logs.rglob("*") if path.suffix in (".tmp", ".partial", ".broken")]
    assert not left and set(shared_segments()) <= before
    survival("M2", tried=kills, detail="trainings killed by SIGKILL: workers, temporary files")


def kill_after_workers_start(process: Forked, seconds: float) -> None:
    """SIGKILL to the main process alone; its workers must end by themselves."""
    process.wait_until(lambda: len(descendants(process.pid)) >= 2, TIMEOUT)
    time.sleep(seconds)
    started = descendants(process.pid)
    process.send(signal.SIGKILL)
    process.wait(TIMEOUT)
    wait_until_ended(started, seconds=5)


def of_ours(folder: Path) -> list[str]:
    """What lies in a temporary folder but for what libraries cannot remove when they are killed.

    W&B and torch's inductor make an empty folder on import, and python a socket in each data
    worker that hands over tensors.
    """
    found = sorted(folder.rglob("*"))
    return [str(p) for p in found if not any(name in p.name for name in _OF_LIBRARIES)]


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those they have."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(c) for task in tasks for c in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [*children, *(below for child in children for below in descendants(child))]


def wait_until_ended(pids: list[int], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while alive := list(_alive(pids)):
        assert time.monotonic() < deadline, f"still alive: {alive}"
        time.sleep(0.05)


def _alive(pids: list[int]) -> Iterator[int]:
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            yield pid
