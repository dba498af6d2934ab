"""All of a job that can be checked before files are read and anything heavy is imported."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from whalesong.core.config.job import JobConfig, check_job
from whalesong.core.config.schema_errors import near
from whalesong.core.config.signatures import check_arguments
from whalesong.core.errors import ConfigError, DataError
from whalesong.core.external.activation import activate_for
from whalesong.core.families import Family, assembled, family_of, schemas_of
from whalesong.core.instantiate import check_targets
from whalesong.core.schema import resolved, validate
from whalesong.data.config import DataConfig
from whalesong.data.input_schema import GeneratedItem

_SECTIONS = ("model", "model_type", "datamodule", "data")


@dataclass(frozen=True)
class CheckedJob:
    """A job in which nothing light to find is wrong.

    Attributes:
        top: its top level.
        cfg: all of it without interpolations, for training and evaluation with the sections
            `model` and `data` that every family has.
        family: of the model that is to be trained.
        data: the section `data`, for training and evaluation.
    """

    top: JobConfig
    cfg: DictConfig
    family: Family | None = None
    data: DataConfig | None = None


def checked(cfg: DictConfig) -> CheckedJob:
    """Check all of a job that can be checked without files and heavy imports.

    Raises:
        ConfigError: something in it is wrong.
    """
    job = check_job(cfg)
    cfg = resolved(cfg)
    if job.job_type == "train":
        ready = assembled(cfg)
        family, data = check_training(ready)
        check_classes(cfg)
        return CheckedJob(job, ready, family, data)
    check_given(cfg)
    if job.job_type != "eval":
        return CheckedJob(job, cfg)
    ready = assembled(cfg)
    return CheckedJob(job, ready, data=check_evaluation(ready))


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
