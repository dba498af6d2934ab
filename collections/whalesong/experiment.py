"""From a composed config to a run: train, evaluate, predict."""

import logging
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from whalesong.core.config.job import JobConfig, check_job
from whalesong.core.config.schema_errors import near
from whalesong.core.config.signatures import check_arguments
from whalesong.core.errors import ConfigError, DataError, UserError
from whalesong.core.external.activation import activate_for
from whalesong.core.families import Family, assembled, family_of, schemas_of
from whalesong.core.instantiate import check_targets
from whalesong.core.printable import one_line
from whalesong.core.schema import resolved, validate
from whalesong.core.training.log_files import log_files_closed
from whalesong.data.config import DataConfig
from whalesong.data.input_schema import GeneratedItem

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from whalesong.data.datamodule import LanguageDataModule

_LAUNCHERS = {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"}
"""Variables by which torchrun and srun make a command line of ranks."""

_SECTIONS = ("model", "model_type", "datamodule", "data")


def run(cfg: DictConfig) -> None:
    """Run one job.

    Args:
        cfg: sections `model`, `data`, `trainer`, `exp_manager` and the keys of `JobConfig`.

    Raises:
        ConfigError: something in it is wrong; nothing heavy has been imported by then.
    """
    job, ready = checked(cfg)
    if job.job_type == "train":
        with log_files_closed():
            train(ready, job)
        return
    if job.job_type == "eval":
        archive = find_archive(job.eval.ckpt_path, job, key="eval.ckpt_path")
        data = check_evaluation(ready)
        quiet_libraries()
        from whalesong import inference  # torch and NeMo only when they are needed

        inference.evaluate(archive, data, job)
    else:
        archive = find_archive(job.predict.ckpt_path, job, key="predict.ckpt_path")
        check_prediction(job)
        quiet_libraries()
        from whalesong import inference

        inference.predict(archive, job)


def checked(cfg: DictConfig) -> tuple[JobConfig, DictConfig]:
    """Check all of a job that can be checked without files and heavy imports.

    Returns:
        Its top level; and the job without interpolations, for training and evaluation with the
        sections `model` and `data` that every family has.

    Raises:
        ConfigError: something in it is wrong.
    """
    job = check_job(cfg)
    cfg = resolved(cfg)
    if job.job_type == "train":
        ready = assembled(cfg)
        check_training(ready)
        check_classes(cfg)
        return job, ready
    check_given(cfg)
    if job.job_type != "eval":
        return job, cfg
    ready = assembled(cfg)
    check_evaluation(ready)
    return job, ready


def train(cfg: DictConfig, job: JobConfig) -> None:
    """Train, then leave one `.nemo` in the checkpoint folder."""
    family, data_config = check_training(cfg)
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
    model = build_model(family, cfg, trainer)
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


def check_classes(cfg: DictConfig) -> None:
    """Check every class that the sections of a model and of data name, and its arguments.

    Raises:
        ConfigError: a class that is not allowed, or an argument that it does not take.
    """
    content = OmegaConf.to_container(cfg)
    sections = {key: content[key] for key in _SECTIONS if key in content}
    activate_for(sections)
    for key, section in sections.items():
        if key != "data":
            check_targets({key: section})
        check_arguments(section, path=key, item_keys=GeneratedItem.model_fields)


def check_given(cfg: DictConfig) -> None:
    """Check what a job has of a model and of data without needing it, as the use of an archive.

    Raises:
        ConfigError: an unknown key, a wrong value, or a class that is not allowed.
    """
    for section, schema in {**schemas_of(cfg), "data": DataConfig}.items():
        if cfg.get(section):
            validate(schema, cfg[section], path=section, partial=True)
    check_classes(cfg)


def check_training(cfg: DictConfig) -> tuple[Family, DataConfig]:
    """Check the sections `model` and `data` of a training job.

    Raises:
        ConfigError: naming the YAML path.
    """
    target = OmegaConf.select(cfg, "model.target")
    if target is None and cfg.get("datamodule"):
        raise ConfigError(
            "`model_type` is missing beside `datamodule`; choose one with model_type=NAME."
        )
    for key in cfg.get("model") or {} if target is None else ():
        if near(key, ["target"]):
            raise ConfigError(f"`model.{key}` is not a known key; did you mean `target`?")
    if target is None:
        raise ConfigError("`model.target` is mandatory, but has no value; for example: SALM.")
    family = family_of(target)
    validate(family.load_schema(), cfg.model, path="model")
    data = validate(DataConfig, cfg.get("data") or {}, path="data")
    if data.train_ds is None:
        raise ConfigError("`data.train_ds` is mandatory for job_type=train, but has no value.")
    cfg.model.target = family.target
    return family, data


def check_evaluation(cfg: DictConfig) -> DataConfig:
    """Check the section `data` of an evaluation.

    Raises:
        ConfigError: naming the YAML path.
    """
    config = validate(DataConfig, cfg.get("data", {}), path="data")
    if config.test_ds is None:
        raise ConfigError("`data.test_ds` is mandatory for job_type=eval, but has no value.")
    return config


def check_prediction(job: JobConfig) -> None:
    """Check that there is something to ask, and that the audio files exist.

    Raises:
        ConfigError: prompts and audio files do not pair up.
        DataError: an audio file does not exist.
    """
    request = job.predict
    audio, prompts, begin = request.audio, request.prompts, request.begin
    wanted = (audio, prompts, request.conditions, begin, request.infill, request.num_samples)
    if not any(wanted):
        raise ConfigError("`predict.audio` or `predict.prompts` is mandatory, but both are empty.")
    if audio and len(prompts) not in (0, 1, len(audio)):
        raise ConfigError(
            f"`predict.prompts` must hold one prompt, or one for each of the {len(audio)} audio "
            f"files, but holds {len(prompts)}."
        )
    if missing := [path for path in audio + begin + job.predict.end if not Path(path).is_file()]:
        raise DataError(f"the audio file '{missing[0]}' does not exist.")


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
