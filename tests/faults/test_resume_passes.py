"""One pass with kills sees every example once; other workers, ranks and settings on resuming."""

import itertools
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.journal import Kill, ids_of, lines_of
from fixtures.resuming import (
    PSEUDO_EPOCHS,
    SETTINGS,
    STREAMS,
    Setting,
    assert_never_killed,
    job_of,
    launch,
    start,
    train,
)

TEXTS = 41
GRAPHS = sorted(f"star_mini-train-{index}" for index in range(TEXTS))
PASS = (
    f"datamodule.train_ds.input_cfg.0.num_examples={TEXTS}",
    "data.train_ds.force_finite=true",
    "trainer.max_steps=100",
    "trainer.max_epochs=1",
)
"""One pass over 41 texts in 21 batches; for text models."""

KILLS = (Kill("end", 3), Kill("begin", 6), Kill("any time", 9))
BUCKETS = STREAMS["bucketing"]


@pytest.fixture
def text_job(request: pytest.FixtureRequest) -> list[str]:
    """Overrides for arlm."""
    return job_of("arlm", request)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param((), id="plain"),
        pytest.param((*BUCKETS, "data.train_ds.num_workers=2"), id="bucketing, 2 workers"),
        pytest.param((PSEUDO_EPOCHS,), id="pseudo-epochs"),
    ],
)
def test_one_pass_with_kills_takes_each_text_once(
    changes: tuple[str, ...],
    ranks: int,
    text_job: list[str],
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    job = [*text_job, *PASS, *changes]
    if PSEUDO_EPOCHS in changes:  # 21 batches, 5 in an epoch, which each rank takes
        job.append(f"trainer.max_epochs={5 if ranks == 1 else 3}")
    done = train(job, tmp_path / "run", kills=KILLS, ranks=ranks)
    survival("R2", tried=len(KILLS), survived=len(KILLS) * (done.consumed == GRAPHS))
    assert done.consumed == GRAPHS


@pytest.mark.parametrize("workers", [0, 2])
def test_one_pass_with_kills_takes_each_cut_once(
    workers: int, request: pytest.FixtureRequest, tmp_path: Path, survival: Callable[..., None]
) -> None:
    job = [
        *(*job_of("salm", request), *BUCKETS, *PASS[1:]),
        *("data.train_ds.batch_size=1", f"data.train_ds.num_workers={workers}"),
    ]
    done = train(job, tmp_path / "run", kills=KILLS)
    cuts = sorted(f"utt{index}" for index in range(12))
    survival("R2", tried=len(KILLS), survived=len(KILLS) * (done.consumed == cuts))
    assert done.consumed == cuts


@pytest.mark.parametrize(("family", "setting"), [("salm", SETTINGS[2]), ("mdlm", SETTINGS[5])])
def test_two_ranks_killed_and_resumed_are_never_killed(
    family: str,
    setting: Setting,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    kills = setting.kills[:3]
    assert_never_killed(
        family, setting, request, folder=tmp_path, kills=kills, survival=survival, ranks=2
    )


@pytest.mark.parametrize("ranks", [(1, 2), (2, 1), (2, 3)])
def test_another_number_of_ranks_goes_on_in_the_same_order(
    ranks: tuple[int, int], text_job: list[str], tmp_path: Path, survival: Callable[..., None]
) -> None:
    """Stopped by SIGTERM, which saves the step: batch k of all is taken up where it stood."""
    job = [*text_job, *PASS, "trainer.val_check_interval=1000"]
    launch(job, tmp_path, Kill("end", 4, signal.SIGTERM), ranks=ranks[0])
    before = in_order(tmp_path, ranks[0])
    assert len(before) == 4 * ranks[0]
    for rank in range(ranks[0]):
        (tmp_path / f"journal{rank}").unlink()
    launch(job, tmp_path, ranks=ranks[1])
    whole = train(job, tmp_path / "whole")
    same = sorted(before + in_order(tmp_path, ranks[1])) == sorted(in_order(tmp_path / "whole", 1))
    same = same and len(whole.consumed) == TEXTS
    survival("R4", survived=same, detail="ranks: the same order")
    assert same


def in_order(folder: Path, ranks: int) -> list[list[str]]:
    """The ids of each batch, in the order of the plan."""
    journals = [map(ids_of, lines_of(folder / "journal", rank)) for rank in range(ranks)]
    rounds = itertools.zip_longest(*journals)
    return [ids for batches in rounds for ids in batches if ids]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("data.train_ds.batch_size=3", "with another `data.train_ds.batch_size`"),
        ("data.train_ds.seed=7", "with another `data.train_ds.seed`"),
        ("data.train_ds.use_bucketing=true", "with another `data.train_ds.use_bucketing`"),
        ("data.on_bad_cut=skip", "with another `data.on_bad_cut`"),
        (
            "datamodule.train_ds.input_cfg.0.num_examples=5",
            "with another `data.train_ds.input_cfg`",
        ),
    ],
)
def test_another_order_is_refused_in_one_line(
    change: str,
    reason: str,
    text_job: list[str],
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    launch([*text_job, "trainer.max_steps=2"], tmp_path)
    refused_before_training([*text_job, change], tmp_path, reason)
    survival("R4", detail="other settings: one line")


def test_a_random_order_is_refused_with_the_reason(
    text_job: list[str], tmp_path: Path, survival: Callable[..., None]
) -> None:
    job = [*text_job, "data.train_ds.shard_seed=trng"]
    ended = start([*job, "trainer.max_steps=2"], tmp_path)
    assert ended.code == 0
    assert "`data.train_ds.shard_seed` is trng: this run cannot be resumed" in ended.output
    refused_before_training(job, tmp_path, "is trng, another order in every run: set it to")
    survival("R4", detail="trng: refused")


def refused_before_training(job: list[str], folder: Path, reason: str) -> None:
    trained = lines_of(folder / "journal")
    ended = start([*job, "trainer.max_steps=4"], folder)
    errors = [line for line in ended.output.splitlines() if reason in line]
    assert ended.code == 2 and len(errors) == 1, ended.output
    assert "Traceback" not in ended.output and lines_of(folder / "journal") == trained
