"""Every fault of a corpus, in the real command: SALM stops with a line, or leaves one cut out."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.damage import DAMAGES, TEXT_OF_100000_CHARACTERS, copy_shar
from fixtures.trial import skip_problem, strict_problem, train

ALL = {**DAMAGES, "text_of_100000_characters": TEXT_OF_100000_CHARACTERS}

WORKERS = {
    "0 workers": ["data.train_ds.num_workers=0"],
    "2 workers, bucketing": [
        "data.train_ds.num_workers=2",
        "data.train_ds.use_bucketing=true",
        "data.train_ds.num_buckets=2",
    ],
}


@pytest.fixture(scope="module")
def job(small_job: list[str]) -> list[str]:
    from whalesong.core.families import family_of

    family_of("SALM").load_class()  # imports that every process would make again
    return [*small_job, "data.train_ds.batch_size=2", "data.train_ds.force_finite=true"]


@pytest.mark.parametrize(
    ("mode", "workers"), [("raise", "0 workers"), ("skip", "2 workers, bucketing")]
)
@pytest.mark.parametrize("name", ALL)
def test_damage(
    job: list[str],
    speech_shar: Path,
    tmp_path: Path,
    survival: Callable[..., None],
    name: str,
    mode: str,
    workers: str,
) -> None:
    fault = ALL[name]
    shar = copy_shar(speech_shar, tmp_path / "shar")
    names = fault.named(shar)
    must, may = fault.kept(shar)
    fault.apply(shar)
    overrides = [f"data.train_ds.shar_path={shar.folder}", f"data.on_bad_cut={mode}"]
    trial = train(job, [*overrides, *WORKERS[workers]], folder=tmp_path)
    if mode == "raise" and not fault.legal:
        problem = strict_problem(trial, names)
    else:
        problem = skip_problem(trial, names, must=must, may=may, legal=fault.legal)
    row = "B1" if mode == "raise" else "B2"
    survival(row, survived=int(problem is None), detail=f"SALM with {workers}")
    assert problem is None, problem


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("section", ["train_ds", "validation_ds"])
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("min_duration", 100, "12 shorter than min_duration (100.0 s), which have 0.5 to 1.05 s"),
        ("max_duration", 0.1, "12 longer than max_duration (0.1 s), which have 0.5 to 1.05 s"),
        ("max_tokens", 2, "12 more tokens than max_tokens (2), which have"),
    ],
)
def test_filters_that_leave_nothing(
    job: list[str],
    tmp_path: Path,
    survival: Callable[..., None],
    key: str,
    value: float,
    words: str,
    section: str,
    workers: str,
) -> None:
    overrides = [f"data.{section}.{key}={value}", "trainer.limit_val_batches=1"]
    trial = train([*job, *WORKERS[workers]], overrides, folder=tmp_path)
    problem = strict_problem(trial, [f"`data.{section}", words])
    survival("B1", survived=int(problem is None), detail="filters")
    assert problem is None and not trial.ids, problem
