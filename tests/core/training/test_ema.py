"""The moving average: its value, where it is used, and that a stopped run goes on exactly."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from whalesong.core.archive import open_archive
from whalesong.core.checkpoint import AtomicCheckpointIO
from whalesong.core.config.trainer import ExpManagerConfig, TrainerConfig
from whalesong.core.errors import CheckpointError, ConfigError
from whalesong.core.language_model import LanguageModelPT
from whalesong.core.parts import Parts
from whalesong.core.schema import Schema
from whalesong.core.training.ema import ExponentialMovingAverage
from whalesong.core.training.trainer import build_trainer, start_exp_manager

DECAY = 0.8
STEPS = 6
CONFIG = {"optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.1}}


class TinyConfig(Schema):
    target: str | None = None
    nemo_version: str | None = None
    optimizer: dict[str, Any]


class TinyNetwork(nn.Module):
    """Two tied layers and a frozen one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.tied = nn.Linear(width, width)
        self.tied.weight = self.first.weight
        self.frozen = nn.Linear(width, 1).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.tied(torch.tanh(self.first(x))))


class TinyLoss:
    def __init__(self, model: TinyNetwork) -> None:
        self.model = model

    def configure(self, pl_module: nn.Module) -> None:
        """Nothing to prepare."""

    def loss_fn(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        loss = (self.model(batch["x"]) - 1).square().mean()
        return {"loss": loss, "num_targets": torch.tensor(len(batch["x"]))}


class TinyModel(LanguageModelPT):
    config_schema = TinyConfig

    def build_parts(self, assets: Any) -> Parts:
        torch.manual_seed(0)
        model = TinyNetwork(4)
        none: Any = None
        return Parts(model, TinyLoss(model), none, none, none, none)

    evaluate = answer = None  # what only jobs call


class Recorder(Callback):
    """Notes the weights after each step, in each validation, and stops where it is told to."""

    def __init__(self, *, stop_at: int = -1, stop_in_validation: bool = False) -> None:
        self.stop_at, self.stop_in_validation = stop_at, stop_in_validation
        self.steps: list[torch.Tensor] = []
        self.validated: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step > len(self.steps):
            self.steps.append(weight_of(pl_module))
        if trainer.global_step == self.stop_at and not self.stop_in_validation:
            stop(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.validated.append(weight_of(pl_module))
        if trainer.global_step == self.stop_at and self.stop_in_validation:
            stop(trainer)


def stop(trainer: Trainer) -> None:
    """As `GracefulStop` does: save, then leave."""
    trainer.checkpoint_callback._save_last_checkpoint(
        trainer, trainer.checkpoint_callback._monitor_candidates(trainer)
    )
    raise SystemExit(143)


def weight_of(module: Any) -> torch.Tensor:
    return module.model.first.weight.detach().clone()


def mean_of(weights: list[torch.Tensor], *, decay: float = DECAY) -> torch.Tensor:
    """The definition: a weighted mean of the weights after each update."""
    shares = [decay ** (len(weights) - 1 - index) for index in range(len(weights))]
    return sum(s * w.double() for s, w in zip(shares, weights, strict=True)) / sum(shares)


class Batches:
    """The same batches in each pass; a resumed run gets those that are left."""

    def __init__(self) -> None:
        self.x = torch.randn(STEPS, 2, 4, generator=torch.Generator().manual_seed(1))
        self.given = 0

    def __len__(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for index in range(self.given % len(self), len(self)):
            self.given = index + 1
            yield {"x": self.x[index]}

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


def run(folder: Path, recorder: Recorder, **settings: Any) -> tuple[Trainer, TinyModel]:
    """Train as a job does; `ema` and `trainer` are sections of the YAML."""
    section = {"enable": True, "decay": DECAY, **settings.get("ema", {})}
    config = {
        "accelerator": "cpu", "max_steps": STEPS, "val_check_interval": 2,
        "check_val_every_n_epoch": None, "num_sanity_val_steps": 0, "log_every_n_steps": 1,
        "enable_progress_bar": False, "enable_model_summary": False, **settings.get("trainer", {}),
    }  # fmt: skip
    trainer = build_trainer(TrainerConfig(**config), callbacks=[recorder])
    manager = ExpManagerConfig(
        explicit_log_dir=str(folder), resume_if_exists=True, resume_ignore_no_checkpoint=True,
        create_tensorboard_logger=False, log_step_timing=False, ema=section,
        checkpoint_callback_params={"filename": "{step}", **settings.get("checkpoints", {})},
    )  # fmt: skip
    start_exp_manager(trainer, manager)
    model = TinyModel(CONFIG, trainer)
    trainer.fit(model, Batches(), Batches())
    return trainer, model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder, TinyModel]:
    """A run that nothing stopped."""
    folder, recorder = tmp_path_factory.mktemp("whole"), Recorder()
    _, model = run(folder, recorder)
    return folder, recorder, model


def archive_of(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = (folder / "checkpoints").glob("*.nemo")
    with open_archive(path) as archive:
        return archive.tensors()


def last_of(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "checkpoints").glob("*-last.ckpt")
    return AtomicCheckpointIO().load_checkpoint(path)


def averages_of(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    return checkpoint["callbacks"]["ExponentialMovingAverage"]["averages"]


def test_it_is_the_weighted_mean_of_all_steps(whole: Any) -> None:
    folder, recorder, _ = whole
    averages = averages_of(last_of(folder))
    assert torch.allclose(averages["model.first.weight"].double(), mean_of(recorder.steps))
    assert set(averages) == {"model.first.weight", "model.first.bias", "model.tied.bias"}


def test_validation_takes_the_averages_and_training_goes_on_without_them(
    whole: Any, tmp_path: Path
) -> None:
    _, recorder, _ = whole
    for index, seen in enumerate(recorder.validated[::STEPS]):
        assert torch.allclose(seen.double(), mean_of(recorder.steps[: 2 * index + 2]))
    run(tmp_path, plain := Recorder(), ema={"enable": False})
    assert torch.equal(torch.stack(plain.steps), torch.stack(recorder.steps))
    assert torch.equal(plain.validated[-1], plain.steps[-1])


def test_archive_and_module_hold_the_averages_at_the_end(whole: Any) -> None:
    folder, recorder, model = whole
    average = averages_of(last_of(folder))["model.first.weight"]
    archived = archive_of(folder)
    assert torch.equal(archived["model.first.weight"], average)
    assert torch.equal(archived["model.tied.weight"], average)
    assert torch.equal(weight_of(model), average)
    assert torch.equal(last_of(folder)["state_dict"]["model.first.weight"], recorder.steps[-1])


@pytest.mark.parametrize("stop_at, in_validation", [(3, False), (4, False), (4, True)])
def test_stopped_and_resumed_is_never_stopped(
    whole: Any, tmp_path: Path, stop_at: int, in_validation: bool
) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, Recorder(stop_at=stop_at, stop_in_validation=in_validation))
    stopped = last_of(tmp_path)
    assert torch.equal(stopped["state_dict"]["model.first.weight"], whole[1].steps[stop_at - 1])
    assert torch.equal(stopped["state_dict"]["model.tied.weight"], whole[1].steps[stop_at - 1])
    run(tmp_path, Recorder())
    for name, expected in averages_of(last_of(whole[0])).items():
        assert torch.equal(averages_of(last_of(tmp_path))[name], expected), name
    for name, expected in archive_of(whole[0]).items():
        assert torch.equal(archive_of(tmp_path)[name], expected), name


def test_the_best_checkpoint_is_archived_with_its_own_averages(tmp_path: Path) -> None:
    trainer, _ = run(
        tmp_path,
        recorder := Recorder(),
        checkpoints={"save_best_model": True, "monitor": "val_loss", "mode": "max"},
    )
    best = AtomicCheckpointIO().load_checkpoint(trainer.checkpoint_callback.best_model_path)
    assert best["global_step"] == 2
    average = averages_of(best)["model.first.weight"]
    assert torch.allclose(average.double(), mean_of(recorder.steps[:2]))
    assert torch.equal(archive_of(tmp_path)["model.first.weight"], average)


def test_original_weights_by_choice(tmp_path: Path) -> None:
    _, model = run(tmp_path, recorder := Recorder(), ema={"validate_original_weights": True})
    assert torch.equal(recorder.validated[-1], recorder.steps[-1])
    assert torch.equal(archive_of(tmp_path)["model.first.weight"], recorder.steps[-1])
    assert torch.equal(weight_of(model), recorder.steps[-1])
    average = averages_of(last_of(tmp_path))["model.first.weight"]
    assert torch.allclose(average.double(), mean_of(recorder.steps))


def test_steps_are_those_of_the_optimizer(tmp_path: Path) -> None:
    settings = {"accumulate_grad_batches": 3, "max_steps": 4}
    run(tmp_path, recorder := Recorder(), trainer=settings, ema={"every_n_steps": 2})
    state = last_of(tmp_path)["callbacks"]["ExponentialMovingAverage"]
    assert (state["num_steps"], state["num_updates"]) == (4, 2)
    average = state["averages"]["model.first.weight"].double()
    assert torch.allclose(average, mean_of(recorder.steps[1::2]))


def started(callback: ExponentialMovingAverage, network: nn.Module) -> torch.optim.Optimizer:
    """The callback at the begin of a training of `network`, without one."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    trainer: Any = type("Trainer", (), {"optimizers": [optimizer]})()
    callback.on_fit_start(trainer, network)
    return optimizer


def test_steps_that_a_gradient_scaler_skips_do_not_count() -> None:
    network, callback = nn.Linear(2, 2), ExponentialMovingAverage(decay=DECAY)
    optimizer, scaler = started(callback, network), torch.amp.GradScaler("cpu")
    for scale in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(network(torch.ones(1, 2)).sum() * scale).backward()
        scaler.step(optimizer)
        scaler.update()
    assert (callback.num_steps, callback.num_updates) == (2, 2)
    assert all(average.isfinite().all() for average in callback.averages.values())


def test_half_precision_weights_are_averaged_in_fp32() -> None:
    network = nn.Linear(2, 2).bfloat16()
    callback = ExponentialMovingAverage(decay=0.999)
    optimizer, seen = started(callback, network), []
    for _ in range(20):
        network.weight.grad = torch.ones_like(network.weight)
        optimizer.step()
        seen.append(network.weight.detach().float())
    average = callback.averages["weight"]
    assert average.dtype == torch.float32
    assert torch.allclose(average.double(), mean_of(seen, decay=0.999), atol=1e-5)


def test_averages_of_another_model_are_refused() -> None:
    callback = ExponentialMovingAverage()
    callback.load_state_dict(
        {"num_steps": 1, "num_updates": 1, "averages": {"weight": torch.ones(3)}}
    )
    with pytest.raises(CheckpointError, match=r"`weight` as \[3\], but .* as \[2, 2\]"):
        started(callback, nn.Linear(2, 2, bias=False))


def test_sharded_weights_are_refused(tmp_path: Path) -> None:
    trainer: Any = type("Trainer", (), {"fast_dev_run": False, "callbacks": []})()
    trainer.strategy = type("FSDPStrategy", (), {"restore_checkpoint_after_setup": True})()
    config = ExpManagerConfig(explicit_log_dir=str(tmp_path), ema={"enable": True})
    with pytest.raises(ConfigError, match="must be false with sharded weights.*FSDPStrategy"):
        start_exp_manager(trainer, config)
