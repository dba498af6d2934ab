"""Lightning's trainer and NeMo's exp_manager from their YAML sections, with safe checkpoints."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from nemo.constants import NEMO_ENV_VARNAME_VERSION
from nemo.utils.callbacks import NeMoModelCheckpoint
from nemo.utils.exp_manager import NotFoundError, exp_manager
from nemo.utils.get_rank import is_global_rank_zero
from nemo.utils.trainer_utils import HalfPrecisionForAudio

from whalesong.core.atomic import full_disk_named
from whalesong.core.checkpoint import AtomicCheckpointIO, heal_checkpoints
from whalesong.core.config.trainer import (
    EMAConfig,
    ExpManagerConfig,
    StrategyConfig,
    TrainerConfig,
)
from whalesong.core.errors import ConfigError
from whalesong.core.healing import wait_for_healing
from whalesong.core.instantiate import import_target
from whalesong.core.printable import one_line
from whalesong.core.training.callbacks import CatchUp
from whalesong.core.training.ema import ExponentialMovingAverage
from whalesong.core.training.ranks import watch_ranks

_LOG = logging.getLogger(__name__)
_PROFILERS = "lightning.pytorch.profilers"


def build_trainer(config: TrainerConfig, *, callbacks: list[Callback]) -> Trainer:
    """Build the trainer; loggers and checkpoints are exp_manager's business.

    Raises:
        ConfigError: the machine has no such accelerator, or Lightning refuses a setting.
    """
    arguments = config.arguments()
    arguments |= {"logger": False, "enable_checkpointing": False, "use_distributed_sampler": False}
    if config.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"`trainer.accelerator` is '{config.accelerator}', but this machine has no usable GPU; "
            "use trainer.accelerator=cpu."
        )
    strategy = config.strategy
    if isinstance(strategy, StrategyConfig):
        settings = {k: v for k, v in strategy.arguments().items() if k != "_target_"}
        strategy = import_target(strategy.target)(**settings)
    arguments["strategy"] = strategy
    plugins: list[Any] = []
    if arguments.get("precision") in ("bf16-true", "16-true"):
        # keeps the waveform in fp32: keys with "audio" in their name are not cast
        plugins.append(HalfPrecisionForAudio(arguments.pop("precision")))
    if not isinstance(strategy, ModelParallelStrategy):  # that one writes its own sharded format
        plugins.append(AtomicCheckpointIO())
    named = arguments.get("plugins") or []
    arguments["plugins"] = [*plugins, *([named] if isinstance(named, str) else named)]
    if config.profiler is not None:
        logging.getLogger(_PROFILERS).setLevel(logging.INFO)  # where they write their table
    if arguments.pop("callbacks", None):
        raise ConfigError(
            "`trainer.callbacks` is not supported in YAML; pass callbacks from Python."
        )
    try:
        trainer = Trainer(**arguments, callbacks=callbacks)
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise ConfigError(f"`trainer`: {str(error).splitlines()[0]}") from error
    watch_ranks(trainer)
    return trainer


def start_exp_manager(trainer: Trainer, config: ExpManagerConfig | None) -> Path | None:
    """Give the trainer its log folder, loggers, checkpoint callback and the point to resume from.

    The checkpoints of a killed run are put in order first, and what a user keeps in the log folder
    stays where it is.

    Returns:
        The log folder; None without exp_manager or under `fast_dev_run`.

    Raises:
        ConfigError: a moving average of weights that are sharded.
    """
    if config is None or trainer.fast_dev_run:
        return None
    arguments = config.arguments()
    arguments.pop("ema", None)  # NeMo's callback cannot resume; ours takes its place
    if config.ema is not None and config.ema.enable:
        trainer.callbacks.insert(0, _moving_average(config.ema, trainer))
    folder = _log_folder(config)
    if config.resume_if_exists and (version := _newest_version(config, folder)) is not None:
        arguments["version"], folder = version, folder / version
    checkpoints = _checkpoint_folder(config, folder)
    if checkpoints is not None and config.resume_if_exists:
        _heal(checkpoints)
    # NeMo's preemption callback is for several GPUs only; `GracefulStop` works everywhere.
    arguments["create_preemption_callback"] = False
    arguments.pop("max_time_per_run", None)  # and keeps the time limit
    if config.explicit_log_dir is not None:
        arguments |= {"exp_dir": None, "version": None}  # they would be ignored, with a complaint
    if "LOCAL_RANK" not in os.environ:  # the first process: what an earlier run in it left
        os.environ.pop(NEMO_ENV_VARNAME_VERSION, None)
    kept = _files(folder)
    with full_disk_named(folder):
        log_dir = _managed(trainer, arguments)
    if log_dir is None:
        return None
    if isinstance(callback := trainer.checkpoint_callback, NeMoModelCheckpoint):
        # It renames the old archive until the new one is written; ours replaces it in one move.
        callback._backup_existing_nemo_ckpt = lambda trainer: None
        trainer.callbacks.insert(0, CatchUp())  # before the moving average leaves the weights
    if is_global_rank_zero():
        _put_back(kept, Path(log_dir))
    return Path(log_dir)


def time_limit(config: ExpManagerConfig | None) -> float | None:
    """Seconds of `exp_manager.max_time_per_run`, which the schema has checked; None for none."""
    text = None if config is None else config.max_time_per_run
    if text is None:
        return None
    days, hours, minutes, seconds = map(int, text.split(":"))
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _heal(checkpoints: Path) -> None:
    if not is_global_rank_zero():  # torchrun and srun start all ranks at once
        wait_for_healing(checkpoints)
        return
    for line in heal_checkpoints(checkpoints):
        _LOG.warning(line)


def _managed(trainer: Trainer, arguments: dict[str, Any]) -> Any:
    """What exp_manager returns; a setting that it refuses is told with its place in the YAML."""
    every = trainer.check_val_every_n_epoch
    trainer.check_val_every_n_epoch = every or 0  # it compares `max_epochs` with null, too
    try:
        return exp_manager(trainer, arguments)
    except NotFoundError as error:
        raise ConfigError(
            "`exp_manager.resume_ignore_no_checkpoint` must be true where there is no checkpoint "
            f"to resume from: {one_line(error)}"
        ) from error
    except MisconfigurationException as error:
        raise ConfigError(f"`exp_manager`: {str(error).splitlines()[0]}") from error
    finally:
        trainer.check_val_every_n_epoch = every


def _moving_average(config: EMAConfig, trainer: Trainer) -> ExponentialMovingAverage:
    if trainer.strategy.restore_checkpoint_after_setup:  # true for the strategies that shard
        raise ConfigError(
            "`exp_manager.ema.enable` must be false with sharded weights, but `trainer.strategy` "
            f"is {type(trainer.strategy).__name__}."
        )
    return ExponentialMovingAverage(**config.model_dump(exclude={"enable"}))


def _log_folder(config: ExpManagerConfig) -> Path | None:
    """The folder that a resumed run will use, when it is known before exp_manager has run."""
    if config.explicit_log_dir is not None:
        return Path(config.explicit_log_dir)
    if config.exp_dir is None:
        return None
    folder = Path(config.exp_dir) / (config.name or "default")
    return folder / config.version if config.version else folder


def _checkpoint_folder(config: ExpManagerConfig, folder: Path | None) -> Path | None:
    own = config.checkpoint_callback_params
    if own is not None and own.dirpath is not None:
        return Path(own.dirpath)
    return None if folder is None else folder / "checkpoints"


def _newest_version(config: ExpManagerConfig, folder: Path | None) -> str | None:
    """The version to resume, where runs of this name that were not resumed left some."""
    if config.explicit_log_dir is not None or config.version is not None or folder is None:
        return None
    if (folder / "checkpoints").is_dir():
        return None
    versions = [path for path in folder.glob("*/checkpoints") if path.is_dir()]
    newest = max(versions, key=lambda path: path.stat().st_mtime, default=None)
    return None if newest is None else newest.parent.name


def _files(folder: Path | None) -> list[Path]:
    if folder is None or not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_file()]


def _put_back(kept: list[Path], log_dir: Path) -> None:
    """Bring back what exp_manager moved from the log folder to `run_N/` and did not replace."""
    runs = sorted(log_dir.glob("run_*"), key=lambda run: run.stat().st_mtime)
    for path in kept:
        moved = next(
            (run / path.name for run in reversed(runs) if (run / path.name).is_file()), None
        )
        if moved is not None and not path.exists():
            shutil.move(moved, path)
    for run in runs:
        if not any(run.iterdir()):
            run.rmdir()
