"""Training from a composed config: logs, archives, exact resume, several validation sets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from whalesong.core.config.compose import compose
from whalesong.core.errors import CheckpointError, ConfigError


@pytest.fixture
def job(small_job: list[str], tmp_path: Path) -> Callable[..., Any]:
    """Compose a small SALM training; arguments are overrides."""

    def make(*overrides: str, logs: Path = tmp_path / "logs") -> Any:
        return compose(
            "config",
            overrides=[
                *small_job,
                "model.lora.lora_dropout=0.1",
                "data.train_ds.batch_size=3",
                f"exp_manager.explicit_log_dir={logs}",
                "trainer.max_steps=6",
                "trainer.val_check_interval=3",
                "trainer.enable_progress_bar=false",
                *overrides,
            ],
        )

    return make


def train(cfg: Any) -> None:
    from whalesong.experiment import run

    run(cfg)


def weights(logs: Path) -> dict[str, torch.Tensor]:
    """What was learned, out of the archive of a finished run."""
    from whalesong.core.archive import open_archive

    archive = next((logs / "checkpoints").glob("*.nemo"))
    with open_archive(archive) as opened:
        return {
            name: tensor.clone()
            for name, tensor in opened.tensors().items()
            if "lora_" in name or "modality_adapter" in name
        }


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_run_leaves_logs_checkpoints_and_one_archive(
    job: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "notes.txt").write_text("mine")
    train(job())
    assert (logs / "notes.txt").read_text() == "mine"
    assert list(logs.glob("events.out.tfevents*"))
    assert [path.name for path in (logs / "checkpoints").glob("*.nemo")] == ["salm_demo.nemo"]
    assert len(list((logs / "checkpoints").glob("*last.ckpt"))) == 1
    printed = capsys.readouterr().out
    assert "val_wer" in printed and "xlm job_type=eval eval.ckpt_path=" in printed


def test_resumed_run_equals_the_uninterrupted_one(job: Callable[..., Any], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(job(logs=whole))
    schedule = "model.lr_scheduler.max_steps=6"
    for steps in (2, 5, 6):
        train(job(schedule, f"trainer.max_steps={steps}", logs=parts))
    assert_equal(weights(whole), weights(parts))


def test_resume_with_other_data_is_refused(job: Callable[..., Any]) -> None:
    train(job("trainer.max_steps=2"))
    with pytest.raises(CheckpointError, match="made with another `data.train_ds.batch_size`"):
        train(job("data.train_ds.batch_size=2"))


def test_accumulated_batches_equal_one_large_batch(job: Callable[..., Any], tmp_path: Path) -> None:
    """Batches of unequal numbers of targets weigh as their targets, not as batches."""
    still = ["model.lora.lora_dropout=0", "data.train_ds.shuffle=false"]
    still += [
        "trainer.max_steps=1",
        "trainer.val_check_interval=12",
        "model.optimizer._target_=torch.optim.SGD",
    ]
    still += ["~model.optimizer.betas", "model.optimizer.lr=0.1", "model.lr_scheduler=null"]
    train(job(*still, "data.train_ds.batch_size=6", logs=tmp_path / "large"))
    accumulate = ["data.train_ds.batch_size=2", "trainer.accumulate_grad_batches=3"]
    train(job(*still, *accumulate, logs=tmp_path / "small"))
    large, small = weights(tmp_path / "large"), weights(tmp_path / "small")
    for name in large:
        torch.testing.assert_close(large[name], small[name], atol=1e-6, rtol=1e-4)


def test_several_validation_sets_are_logged_by_name(
    job: Callable[..., Any], speech_shar: Path, tmp_path: Path
) -> None:
    from whalesong.demos.report import EventAccumulator

    train(job(f"data.validation_ds.datasets.other.shar_path={speech_shar}"))
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    last = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
    assert {"val_loss", "val_wer", "val_wer_val", "val_wer_other", "val_loss_other"} <= last.keys()
    assert last["val_loss_val"] == last["val_loss_other"] == pytest.approx(last["val_loss"])


def test_overfit_repeats_one_batch_until_the_loss_is_gone(
    job: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whalesong.core.language_model import LanguageModelPT

    seen: list[tuple[str, ...]] = []
    step = LanguageModelPT.training_step

    def spy(self: Any, batch: Any, batch_idx: int) -> Any:
        seen.append(tuple(batch["ids"]))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModelPT, "training_step", spy)
    validated: list[tuple[str, ...]] = []
    validate = LanguageModelPT.validation_step

    def spy_validation(self: Any, batch: Any, *place: int) -> None:
        validated.append(tuple(batch["ids"]))
        validate(self, batch, *place)

    monkeypatch.setattr(LanguageModelPT, "validation_step", spy_validation)
    monkeypatch.chdir(tmp_path)
    quick = ["trainer.max_steps=5", "trainer.val_check_interval=5"]
    train(job("debug=overfit", *quick, "trainer.enable_progress_bar=false"))
    assert len(seen) == 5 and set(seen) == set(validated) and len(set(seen)) == 1


def test_checkpoint_loads_with_its_weights(job: Callable[..., Any], tmp_path: Path) -> None:
    from whalesong.models.salm.salm import SALM

    train(job("trainer.max_steps=3"))
    [path] = (tmp_path / "logs" / "checkpoints").glob("*last.ckpt")
    loaded = SALM.load_from_checkpoint(path).state_dict()
    learned = weights(tmp_path / "logs")
    assert all(torch.equal(loaded[name], learned[name]) for name in learned)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_waveform_stays_fp32_in_half_precision(
    job: Callable[..., Any], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whalesong.core.language_model import LanguageModelPT

    seen: list[tuple[torch.dtype, bool]] = []
    step = LanguageModelPT.training_step

    def spy(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = step(self, batch, batch_idx)
        seen.append((batch["audio"].dtype, bool(torch.isfinite(loss))))
        return loss

    monkeypatch.setattr(LanguageModelPT, "training_step", spy)
    train(job(f"trainer.precision={precision}", "trainer.max_steps=3"))
    assert seen == [(torch.float32, True)] * 3


def test_fast_dev_run_leaves_nothing(job: Callable[..., Any], tmp_path: Path) -> None:
    train(job("debug=fast_dev_run"))
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.target=SLAM",
            "`model.target` must name a model class, but is 'SLAM'; did you mean 'SALM'",
        ),
        ("data.train_ds.bacth_size=3", "`data.train_ds.bacth_size`.*did you mean `batch_size`"),
        ("trainer.accelerator=gpu", "no usable GPU; use trainer.accelerator=cpu"),
        ("data.train_ds.shar_path=/nowhere/at/all", "/nowhere/at/all"),
    ],
)
def test_bad_job_gets_one_line(job: Callable[..., Any], override: str, message: str) -> None:
    if "gpu" in override and torch.cuda.is_available():
        override = "trainer.accelerator=tpu"
        message = "trainer"
    with pytest.raises(ValueError, match=message):
        train(job(override))


def test_older_form_of_the_optimizer_section_trains(
    job: Callable[..., Any], tmp_path: Path
) -> None:
    older = "model.optim={name: adamw, lr: 0.01, sched: {name: CosineAnnealing, warmup_steps: 1}}"
    train(job("model.optimizer=null", "model.lr_scheduler=null", older, "trainer.max_steps=3"))
    learned = weights(tmp_path / "logs")
    assert any(tensor.abs().max() > 1e-3 for name, tensor in learned.items() if "lora_B" in name)


def test_training_needs_an_optimizer(job: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="`model.optimizer` is mandatory for training"):
        train(job("model.optimizer=null"))
