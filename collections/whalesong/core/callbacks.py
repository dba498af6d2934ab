"""What happens beside training: a stop by signal that saves first, and one at a goal."""

import signal
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


class GracefulStop(Callback):
    """On SIGTERM or Ctrl-C: finish the step, save `-last`, say how to go on, leave with 143 or 130.

    A second Ctrl-C stops at once.

    Args:
        resume_command: printed after the save.
    """

    def __init__(self, *, resume_command: str) -> None:
        self.resume_command = resume_command
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals for the time of training."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in EXIT_CODES}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Leave between two steps, all ranks at the same one."""
        self._leave_if_asked(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Do not wait for the rest of a long validation."""
        self._leave_if_asked(trainer)

    def _leave_if_asked(self, trainer: Trainer) -> None:
        if not trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            return
        saved = _save_last(trainer)
        self._restore()
        if trainer.is_global_zero:
            print(
                f"\nStopped at step {trainer.global_step}; {saved}. {self.resume_command}",
                flush=True,
            )
        raise SystemExit(EXIT_CODES.get(self.received or signal.SIGTERM, 143))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class StopAt(Callback):
    """Ends training once validation has reached every goal.

    Args:
        goals: least values by the names under which validation logs them; a name that the model
            does not log is no goal.
    """

    def __init__(self, goals: Mapping[str, float]) -> None:
        self.goals = dict(goals)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the values, and say so when they end the training."""
        values = {name: trainer.callback_metrics.get(name) for name in self.goals}
        logged = {name: float(value) for name, value in values.items() if value is not None}
        if trainer.sanity_checking or not logged:
            return
        if all(value >= self.goals[name] for name, value in logged.items()):
            trainer.should_stop = True
            if trainer.is_global_zero:
                reached = ", ".join(f"{name} {value:g}" for name, value in logged.items())
                print(f"\nStopped at step {trainer.global_step}: {reached} reached.", flush=True)


def _save_last(trainer: Trainer) -> str:
    """Save through the checkpoint callback, so that exp_manager finds it."""
    callback = trainer.checkpoint_callback
    if not isinstance(callback, ModelCheckpoint):
        return "nothing was saved, because there is no checkpoint callback"
    callback._save_last_checkpoint(trainer, callback._monitor_candidates(trainer))
    return f"saved {callback.last_model_path}"
