"""From a composed config to a run: train, evaluate, predict."""

import logging
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from whalesong.checks import CheckedJob, check_prediction, checked
from whalesong.core.config.job import JobConfig
from whalesong.core.errors import ConfigError, UserError
from whalesong.core.families import Family
from whalesong.core.printable import one_line
from whalesong.core.training.log_files import log_files_closed

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from whalesong.data.datamodule import LanguageDataModule

_LAUNCHERS = {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"}
"""Variables by which torchrun and srun make a command line of ranks."""


def run(cfg: DictConfig) -> None:
    """Run one job.

    Args:
        cfg: sections `model`, `data`, `trainer`, `exp_manager` and the keys of `JobConfig`.

    Raises:
        ConfigError: something in it is wrong; nothing heavy has been imported by then.
    """
    ready = checked(cfg)
    job = ready.top
    if job.job_type == "train":
        with log_files_closed():
            train(ready)
        return
    if job.job_type == "eval":
        archive = find_archive(job.eval.ckpt_path, job, key="eval.ckpt_path")
        quiet_libraries()
        from whalesong import inference  # torch and NeMo only when they are needed

        inference.evaluate(archive, ready.data, job)
    else:
        archive = find_archive(job.predict.ckpt_path, job, key="predict.ckpt_path")
        check_prediction(job)
        quiet_libraries()
        from whalesong import inference

        inference.predict(archive, job)


def train(ready: CheckedJob) -> None:
    """Train, then leave one `.nemo` in the checkpoint folder."""
    job, data_config = ready.top, ready.data
    quiet_libraries()
    from lightning.pytorch import seed_everything

    from whalesong.core.atomic import full_disk_named
    from whalesong.core.config.logged_names import LoggedNames
    from whalesong.core.stopping import STOP
    from whalesong.core.training.callbacks import GracefulStop, StopAt
    from whalesong.core.training.guard import FiniteGuard
    from whalesong.core.training.trainer import build_trainer, start_exp_manager, time_limit
    from whalesong.data.datamodule import LanguageDataModule, check_inputs

    check_inputs(data_config, ("train_ds", "validation_ds"))
    if job.seed is not None:
        seed_everything(job.seed, verbose=False)
    callbacks = [
        GracefulStop(resume_command=resume_hint(job), max_seconds=time_limit(job.exp_manager)),
        LoggedNames(job.stop_at),
        StopAt(job.stop_at),
        FiniteGuard(max_skipped_steps=job.max_skipped_steps),
    ]
    trainer = build_trainer(job.trainer, callbacks=callbacks)
    log_dir = start_exp_manager(trainer, job.exp_manager)
    model = build_model(ready.family, ready.cfg, trainer)
    data = LanguageDataModule(
        data_config,
        train_collator=model.parts.train_collator,
        validation_collator=model.parts.validation_collator,
        measure_tokens=getattr(model.parts.train_collator, "measure_tokens", None),
    )
    model.validation_names = data.val_names
    model.seed = job.seed if job.seed is not None else data_config.train_ds.seed
    STOP.check()
    with full_disk_named(log_dir):
        trainer.fit(model, data)
    if trainer.is_global_zero and log_dir is not None:
        report_training(log_dir, trainer.callback_metrics, data=data)


def build_model(family: Family, cfg: DictConfig, trainer: "Trainer") -> Any:
    """The model of a job.

    Raises:
        ConfigError: its parts refuse a value.
    """
    try:
        return family.load_class()(cfg.model, trainer)
    except UserError:
        raise
    except ValueError as error:  # how modules, which know no YAML, refuse a value
        raise ConfigError(f"`model`: {one_line(error)}") from error


def find_archive(path: str | None, job: JobConfig, *, key: str) -> Path:
    """The archive that a job names, or the newest one of the run.

    Raises:
        ConfigError: there is none.
    """
    if path is not None:
        if not Path(path).is_file():
            raise ConfigError(f"`{key}` must be an existing file, but '{path}' is not.")
        return Path(path)
    manager = job.exp_manager
    folder = None
    if manager is not None:
        folder = manager.explicit_log_dir or str(
            Path(manager.exp_dir or ".") / (manager.name or "")
        )
    archives = (
        sorted(Path(folder).rglob("*.nemo"), key=lambda p: p.stat().st_mtime) if folder else []
    )
    if not archives:
        raise ConfigError(f"`{key}` is mandatory, because there is no .nemo under '{folder}'.")
    return archives[-1]


def resume_hint(job: JobConfig) -> str:
    """How to go on after a stop; nothing where no checkpoints are kept."""
    if job.exp_manager is None:
        return ""
    resumes = job.exp_manager.resume_if_exists
    override = "" if resumes else " exp_manager.resume_if_exists=true"
    if _LAUNCHERS & os.environ.keys():  # their command line is not this process's
        return f"To go on, start it in the same way again{override and f', with{override}'}."
    command = sys.orig_argv
    if len(command) > 1 and shutil.which(Path(command[1]).name) == command[1]:
        command = [Path(command[1]).name, *command[2:]]
    return f"To go on: {shlex.join(command)}{override}"


def report_training(log_dir: Path, metrics: dict[str, Any], *, data: "LanguageDataModule") -> None:
    """Tell what came out and what to do next.

    Args:
        log_dir: exp_manager's log folder.
        metrics: the trainer's last values; a single validation set is not told twice, values of
            single codebooks (`val_nll_0`) are in the logs only.
        data: names the validation sets, and the question that an evaluation has to ask, too.
    """
    single = f"_{data.val_names[0]}" if len(data.val_names) == 1 else None
    shown = [key for key in sorted(metrics) if key.startswith("val_") and not key[-1].isdigit()]
    shown = [key for key in shown if single is None or not key.endswith(single)]
    values = ", ".join(f"{key} {float(metrics[key]):.4f}" for key in shown)
    print(f"\nTrained. {values}".rstrip())
    print(f"Logs:    {log_dir}    (tensorboard --logdir {log_dir})")
    archives = sorted((log_dir / "checkpoints").glob("*.nemo"))
    if archives:
        print(f"Archive: {archives[-1]}")
        command = ["xlm", "job_type=eval", *_choices(), f"eval.ckpt_path={archives[-1]}"]
        if (question := data.config.default_context) is not None:
            command.append(f"data.default_context={question}")
        if data.config.test_ds is None:
            print(f"Next:    {shlex.join(command)} data.test_ds.shar_path=FOLDER")
        else:
            print(f"Next:    {shlex.join(command)}")


def _choices() -> list[str]:
    """What this command chose of the config groups, with which an evaluation has the same data."""
    groups = ("experiment", "model", "model_type", "datamodule")
    return [word for word in sys.argv[1:] if word.partition("=")[0] in groups]


def quiet_libraries() -> None:
    """Keep NeMo's and Lightning's notes out of the way; warnings and errors stay.

    This imports NeMo; what it says of its telemetry on import is kept quiet, too.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("nv_one_logger").setLevel(logging.ERROR)
    from nemo.utils import logging as nemo_logging

    nemo_logging.setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
