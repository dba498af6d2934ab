"""What happens beside training: stops that save first, what they left to do, the end at a goal."""

import signal
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from whalesong.core.stopping import STOP, Stopped


class GracefulStop(Callback):
    """On SIGTERM, Ctrl-C or a time limit: save `-last`, say how to go on, leave with its exit code.

    A step and its save are finished first, with all batches that they accumulate. A single process
    leaves a validation, or the waiting for data, where it stands; several ranks agree before each
    batch of either. A second Ctrl-C leaves at once, without a save.

    Args:
        resume_command: printed after the save.
        max_seconds: time limit of the training; None for none.
    """

    def __init__(self, *, resume_command: str, max_seconds: float | None = None) -> None:
        self.resume_command = resume_command
        self.max_seconds = max_seconds
        self._answered = ExitStack()
        self._training = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals for the time of training, and start the clock."""
        self._training = True
        self._answered.enter_context(STOP.answered())
        STOP.hold()
        if self.max_seconds is not None and threading.current_thread() is threading.main_thread():
            signal.setitimer(signal.ITIMER_REAL, max(self.max_seconds, 1e-3))
            self._answered.callback(signal.setitimer, signal.ITIMER_REAL, 0)
        epoch_loop = trainer.fit_loop.epoch_loop
        before, after = epoch_loop._on_before_fetch, epoch_loop._on_after_fetch
        # There is no hook around the wait for data; the loop hands these two to its fetcher.
        epoch_loop._on_before_fetch = lambda: (self._may_leave(trainer), before())
        epoch_loop._on_after_fetch = lambda: (after(), STOP.hold())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not wait for a long validation; what was asked meanwhile happens now."""
        self._may_leave(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """All ranks leave behind the same batch."""
        self._may_leave(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on checkpoints are saved."""
        if self._training:
            STOP.hold()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save what the training has come to, when it was a stop that ended it."""
        try:
            if isinstance(exception, Stopped) and not exception.told:
                exception.told = True
                self._tell(trainer, exception)
        finally:
            self._end()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back, behind the last saves: what is done by then is no stop."""
        self._end()

    def _may_leave(self, trainer: Trainer) -> None:
        """Leave here if that was asked for, also while what follows runs in a single process."""
        epoch_loop = trainer.fit_loop.epoch_loop
        if not self._training or epoch_loop._should_accumulate():
            return
        if trainer.world_size == 1:
            STOP.release()
        elif number := _of_any_rank(STOP.received, trainer):
            raise Stopped(number)

    def _tell(self, trainer: Trainer, stop: Stopped) -> None:
        """Save what can be saved, and say so."""
        if not self._training:
            _stop_other_ranks(trainer)
            line = f"Stopped by {stop.reason} before the first step; nothing had to be saved."
        elif stop.at_once:
            line = f"Stopped at once at step {trainer.global_step}; the last checkpoint stays."
        else:
            STOP.hold()
            saved = _save_last(trainer)
            line = f"Stopped by {stop.reason} at step {trainer.global_step}; {saved}."
        if trainer.is_global_zero:
            print(f"\n{line} {self.resume_command}".rstrip(), flush=True)

    def _end(self) -> None:
        self._answered.close()
        self._training = False


class CatchUp(Callback):
    """Does first what the run before had left to do when it was ended.

    That is the validation of its last step, which exp_manager leaves out after a resume, and the
    end of a training that had come to its last step but not to its `.nemo`. To be called before
    the other callbacks.
    """

    def __init__(self) -> None:
        self._validated_at: int | None = None
        self._ended = False

    def state_dict(self) -> dict[str, Any]:
        """The step of the last validation that is complete."""
        return {"validated_at": self._validated_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._validated_at = state_dict["validated_at"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The next `-last` takes the place of the one that is resumed from, whoever named it."""
        callback, path = trainer.checkpoint_callback, str(trainer.ckpt_path or "")
        if isinstance(callback, ModelCheckpoint) and path.endswith("last.ckpt"):
            callback.last_model_path = path

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate before the next step."""
        self._validate(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on checkpoints know of it."""
        if not trainer.sanity_checking:
            self._validated_at = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The checkpoint callback comes next."""
        self._ended = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning has skipped the training and its end when all steps are done."""
        callback = trainer.checkpoint_callback
        if self._ended or trainer.ckpt_path is None or not isinstance(callback, ModelCheckpoint):
            return
        # The first rank may be done with the archive before another one looks for it.
        if trainer.strategy.broadcast(_lacks_archive(callback, Path(trainer.ckpt_path))):
            self._validate(trainer)
            callback.on_train_end(trainer, pl_module)

    def _validate(self, trainer: Trainer) -> None:
        epoch_loop = trainer.fit_loop.epoch_loop
        is_late = trainer.ckpt_path is not None and self._validated_at != trainer.global_step
        if not is_late or not _validates_here(epoch_loop):
            return
        trainer.validating = True
        epoch_loop.val_loop.run()
        trainer.training = True


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
    """Save through the checkpoint callback, so that exp_manager finds it; tells what was done."""
    callback = trainer.checkpoint_callback
    if not isinstance(callback, ModelCheckpoint):
        return "nothing was saved, because there is no checkpoint callback"
    if not _is_saved(callback, trainer.global_step):
        wanted, callback.save_last = callback.save_last, True
        callback._save_last_checkpoint(trainer, callback._monitor_candidates(trainer))
        callback.save_last = wanted
    return f"saved {callback.last_model_path}"


def _of_any_rank(number: int | None, trainer: Trainer) -> int:
    """The signal that some rank has received, the same one for all; 0 if none has."""
    mine = torch.tensor(number or 0, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(mine, reduce_op="max"))


def _is_saved(callback: ModelCheckpoint, step: int) -> bool:
    newest = callback._last_checkpoint_saved
    return newest == callback.last_model_path and callback._last_global_step_saved == step


def _stop_other_ranks(trainer: Trainer) -> None:
    """End the ranks that were started from here: they wait for this one, not for an agreement."""
    kill = getattr(trainer.strategy.launcher, "kill", None)
    if kill is not None:
        kill(signal.SIGTERM)


def _validates_here(epoch_loop: _TrainingEpochLoop) -> bool:
    """Whether a validation is due where a resumed run stands, and the loop would not do it."""
    fetcher = epoch_loop.trainer.fit_loop._data_fetcher
    due = _TrainingEpochLoop._should_check_val_fx(epoch_loop, fetcher)
    return due and not epoch_loop._should_check_val_fx(fetcher)


def _lacks_archive(callback: ModelCheckpoint, checkpoint: Path) -> bool:
    """Whether there is no `.nemo` yet, or only that of an earlier end of the training."""
    folder = Path(callback.dirpath)
    times = [path.stat().st_mtime_ns for path in folder.glob("*.nemo")]
    return max(times, default=0) < checkpoint.stat().st_mtime_ns
