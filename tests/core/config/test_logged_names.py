"""Names of logged values are compared with what validation logs, at its first end."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from whalesong.core.config.logged_names import LoggedNames
from whalesong.core.errors import ConfigError


def look(folder: Path, *, monitor: str | None = "val_loss", goals: tuple[str, ...] = ()) -> None:
    """What happens at the end of a validation that logs `val_loss` and `val_exact_match`."""
    callbacks = [LoggedNames(goals), ModelCheckpoint(folder, monitor=monitor)]
    trainer = Trainer(callbacks=callbacks, accelerator="cpu", logger=False)
    trainer.callback_metrics.update(val_loss=torch.ones(()), val_exact_match=torch.ones(()))
    callbacks[0].on_validation_end(trainer, LightningModule())


def test_logged_names_pass(tmp_path: Path) -> None:
    look(tmp_path, goals=("val_exact_match", "val_of_another_family"))
    look(tmp_path, monitor=None)


def test_unknown_monitor_is_refused_with_the_near_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        look(tmp_path, monitor="val_los")
    assert str(caught.value) == (
        "`exp_manager.checkpoint_callback_params.monitor` must be a logged value, but is "
        "'val_los'; did you mean `val_loss`?"
    )


def test_misspelled_goal_is_refused_with_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`stop_at.val_exact_mach` .* `val_exact_match`"):
        look(tmp_path, goals=("val_exact_mach",))
