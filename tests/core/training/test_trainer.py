"""exp_manager behind `start_exp_manager`: what NeMo cannot take, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest

from whalesong.core.config.trainer import ExpManagerConfig, TrainerConfig
from whalesong.core.errors import ConfigError
from whalesong.core.training.trainer import build_trainer, start_exp_manager


def start(folder: Path, trainer: dict[str, Any], **checkpoints: Any) -> Any:
    built = build_trainer(TrainerConfig(accelerator="cpu", **trainer), callbacks=[])
    manager = ExpManagerConfig(
        explicit_log_dir=str(folder),
        create_tensorboard_logger=False,
        checkpoint_callback_params={"monitor": "val_loss", **checkpoints},
    )
    start_exp_manager(built, manager)
    return built


def test_epochs_and_a_validation_by_batches_go_together(tmp_path: Path) -> None:
    """NeMo compares the two numbers although one of them is null."""
    settings = {"max_epochs": 1, "check_val_every_n_epoch": None, "val_check_interval": 5}
    trainer = start(tmp_path, settings)
    assert trainer.check_val_every_n_epoch is None and trainer.checkpoint_callback is not None


def test_what_exp_manager_refuses_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^`exp_manager`: .*every_n_train_steps=2") as caught:
        start(tmp_path, {"max_steps": 5}, every_n_train_steps=2, every_n_epochs=1)
    assert "\n" not in str(caught.value)
