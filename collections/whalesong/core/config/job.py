"""The schema of a whole job: what every config may hold, whatever model it names."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from whalesong.core.config.kinds import Seed
from whalesong.core.config.schema_errors import interpolation_sentence
from whalesong.core.config.trainer import ExpManagerConfig, TrainerConfig
from whalesong.core.errors import ConfigError
from whalesong.core.schema import MISSING, Schema, validate

if TYPE_CHECKING:
    from omegaconf import DictConfig

_OF_FAMILIES = ("model", "data", "model_type", "datamodule")
"""Sections that the family checks."""

JobType = Literal["train", "eval", "predict", "generate", "prepare_data", "list", "inspect"]
"""What `xlm` can do by itself; generate means predict."""


class EvalConfig(Schema):
    """What `job_type=eval` measures."""

    ckpt_path: str | None = None
    """The `.nemo` archive or checkpoint to evaluate; the newest one of the run if null."""
    output_file: str | None = None
    """Where to write one JSON line per example; beside the checkpoint if null."""


class PredictConfig(Schema):
    """What `job_type=predict` generates."""

    ckpt_path: str | None = None
    """The `.nemo` archive or checkpoint to use; the newest one of the run if null."""
    audio: list[str] = []
    """Audio files to answer about, in the order of the prompts."""
    prompts: list[str] = []
    """Prompts: one for all audio files, or one each; the model's own prompt if empty."""
    conditions: list[dict[str, Any]] = []
    """For models of sound: the conditions of each answer by their ids; `{}` asks for nothing."""
    begin: list[str] = []
    """For models of sound: audio files that the answers go on from, one for all or one each."""
    end: list[str] = []
    """For models of sound: audio files that the answers lead to; what lies between is filled in."""
    generation: dict[str, Any] = {}
    """For models of sound and duplex models: keys of `model.generation`; for models of sound `seed`
    and `num_candidates`, for AudioLM and duplex models `stream`."""
    infill: list[str] = []
    """For text models: texts with the mask token wherever something is to be filled in."""
    num_samples: int = Field(0, ge=0)
    """For text models: this many texts out of nothing."""
    output_dir: str | None = None
    """For models of sound and duplex models: the folder of the wav files that come out."""
    output_file: str | None = None
    """Where to write one JSON line per answer; to the terminal if null."""


class PrepareDataConfig(Schema):
    """What `job_type=prepare_data` writes."""

    output_dir: str | None = None
    """Folder for the examples, the figures and the picture; `data/` and the data module's name if
    null."""


def check_unused(request: PredictConfig, keys: Sequence[str], *, family: str) -> None:
    """Refuse keys of a request that a family does not know.

    Raises:
        ConfigError: one of them has a value.
    """
    for key in keys:
        if getattr(request, key):
            raise ConfigError(f"`predict.{key}` is not for {family}, but is set.")


class JobConfig(Schema):
    """The top level of a composed config.

    The sections `model` and `data` are checked by the family that `model.target` names: only it
    knows their keys, and which of them a job needs.
    """

    job_type: JobType
    """What to do: train, eval, predict (or generate), prepare_data, list or inspect."""
    job_name: str | None = None
    """Names the run's log folder."""
    name: str | None = None
    """The experiment's name as `exp_manager` takes it."""
    seed: Seed | None = None
    """Seed of all random generators; random if null."""
    resume: bool = False
    """Continue the run of the same name where it stopped."""
    model: dict[str, Any] = {}
    """Architecture, pretrained parts and optimizer of the model that `model.target` names."""
    data: dict[str, Any] = {}
    """Training, validation and test sets."""
    model_type: dict[str, Any] = {}
    """For text models: loss, predictor, metrics and optimizer; `model` is the network then."""
    datamodule: dict[str, Any] = {}
    """For text models: tokenizer, sizes, collators and data sets."""
    stop_at: dict[str, float] = {}
    """Training ends once validation has reached these least values, as far as the model logs them:
    `{val_exact_match: 1.0}`."""
    max_skipped_steps: int = Field(0, ge=0)
    """Steps in a row that are left out because loss or gradient is not finite; 0 stops at the
    first."""
    trainer: TrainerConfig = TrainerConfig()
    """Arguments of Lightning's `Trainer`."""
    exp_manager: ExpManagerConfig | None = None
    """Log folder, loggers and checkpoints; no logs and no checkpoints if null."""
    eval: EvalConfig = EvalConfig()
    """Settings of `job_type=eval`."""
    predict: PredictConfig = PredictConfig()
    """Settings of `job_type=predict`."""
    prepare_data: PrepareDataConfig = PrepareDataConfig()
    """Settings of `job_type=prepare_data`."""


def check_job(cfg: "DictConfig") -> JobConfig:
    """Check all of a composed config but the insides of `model` and `data`.

    Raises:
        ConfigError: see `validate`; or a training job without a model.
    """
    from omegaconf.errors import OmegaConfBaseException

    try:
        document = {key: _section(cfg, str(key)) for key in cfg}
    except OmegaConfBaseException as error:
        raise ConfigError(interpolation_sentence(error)) from error
    job = validate(JobConfig, document)
    if job.job_type == "train" and not cfg.get("model"):
        raise ConfigError(
            "`model` is missing; choose an experiment with experiment=NAME, or a text model with"
            " model=NAME model_type=NAME."
        )
    return job


def _section(cfg: "DictConfig", key: str) -> Any:
    """One top-level value; the sections that a family checks count as empty."""
    from omegaconf import OmegaConf

    if OmegaConf.is_missing(cfg, key):
        return MISSING
    value = cfg[key]
    return {} if key in _OF_FAMILIES and OmegaConf.is_dict(value) else value
