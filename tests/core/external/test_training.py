"""A model from another folder trains on two ranks, and its archive is used from a third place."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.plugins import register, write_text_model

SMALL = (
    "experiment=star_mini_elsewhere",
    "model.d_model=16",
    "model.num_layers=2",
    "model.num_heads=2",
    "datamodule.train_ds.batch_size=4",
    "trainer.accelerator=cpu",
)
RANKS = ("trainer.devices=2", "trainer.strategy=ddp", "datamodule.train_ds.num_workers=1")


def xlm(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess:
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "whalesong.cli", *arguments],
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_ranks_and_workers_find_the_model_and_its_archive_needs_it(tmp_path: Path) -> None:
    write_text_model(tmp_path / "models" / "elsewhere", "elsewhere")
    register(tmp_path / "models", {"elsewhere": "elsewhere"})
    known = {"XLM_MODELS_PATH": str(tmp_path / "models")}
    job = ("job_type=train", "job_name=first", "trainer.max_steps=2", *SMALL, *RANKS)
    trained = xlm(tmp_path / "work", *job, **known)
    assert trained.returncode == 0, trained.stderr
    (archive,) = (tmp_path / "work").rglob("first.nemo")
    ask = ("job_type=generate", f"predict.ckpt_path={archive}", "predict.prompts=[0 1 0 1]")
    answered = xlm(tmp_path / "away", *ask, **known)
    assert answered.returncode == 0, answered.stderr
    assert "0 1 0 1 -> " in answered.stdout
    refused = xlm(tmp_path / "away", *ask)
    assert refused.returncode == 3
    assert f"Error: {archive}: No module named 'elsewhere', " in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("debug", ["profile", "small_data", "[fast_dev_run,overfit]"])
def test_debug_modes_train(tmp_path: Path, debug: str) -> None:
    limits = ("trainer.limit_train_batches=3", "trainer.limit_val_batches=1")
    job = ("job_type=train", "experiment=star_mini_arlm", f"debug={debug}", *SMALL[1:], *limits)
    trained = xlm(tmp_path / "work", *job)
    assert trained.returncode == 0, trained.stderr
    assert ("run_training_batch" in trained.stdout + trained.stderr) == (debug == "profile")
