"""From the sections of a text job to the two that every family has: `model` and `data`."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from whalesong.core.config.model import TargetConfig
from whalesong.core.errors import ConfigError
from whalesong.core.schema import resolved, validate
from whalesong.data.config import DataConfig
from whalesong.textlm.config import DatamoduleConfig, ModelTypeConfig, TextSizes

TARGET = "whalesong.textlm.textlm_model.TextLMModel"
"""The class of all text models."""

_SIZES = tuple(TextSizes.model_fields)
_JOB_SECTIONS = ("model", "model_type", "datamodule", "data")


def assembled(cfg: DictConfig) -> DictConfig:
    """Put the sections `model`, `model_type` and `datamodule` together.

    Args:
        cfg: a composed job; `model` is the network, and what is given under `data` wins over the
            same keys under `datamodule`. A job without `model_type` is of another family.

    Returns:
        The job with a `model` as `TextLMConfig` and a `data` as `DataConfig` want it.

    Raises:
        ConfigError: naming the YAML path, in the sections as the user wrote them.
    """
    if not cfg.get("model_type"):
        return cfg
    cfg = resolved(cfg)
    network, model_type = cfg.get("model"), cfg.get("model_type")
    for section, schema in (("model_type", ModelTypeConfig), ("datamodule", DatamoduleConfig)):
        if cfg.get(section):
            validate(schema, cfg[section], path=section)
    sections = {k: v for k, v in (cfg.get("data") or {}).items() if k in DataConfig.model_fields}
    validate(DataConfig, sections, path="data", partial=True)
    datamodule = OmegaConf.create(cfg.get("datamodule") or {})
    if not network:
        raise ConfigError("`model` is missing beside `model_type`; choose one with model=NAME.")
    if not datamodule:
        raise ConfigError(
            "`datamodule` is missing; choose one with datamodule=NAME or experiment=NAME."
        )
    data = _given(OmegaConf.create(cfg.get("data") or {}))
    given = {key: data.pop(key) for key in DatamoduleConfig.model_fields if key in data}
    datamodule = OmegaConf.merge(datamodule, given)
    validate(TargetConfig, network, path="model")
    validate(DatamoduleConfig, datamodule, path="datamodule")
    _check_prompt_positions(network, datamodule.get("input_block_size", 0))
    sizes = {key: datamodule[key] for key in _SIZES if key in datamodule}
    sets = {key: value for key, value in datamodule.items() if key not in _SIZES}
    validate(DataConfig, {**data, **sets}, path="data")
    job = {key: value for key, value in cfg.items() if key not in _JOB_SECTIONS}
    job["model"] = {"target": TARGET, "network": network, **model_type, **sizes}
    job["data"] = {**data, **sets}
    return OmegaConf.create(job)


def _check_prompt_positions(network: DictConfig, input_block_size: int) -> None:
    """Positions that are learned must be enough for every prompt; without any, none is needed."""
    count = network.get("prompt_positions") or 0
    if isinstance(count, int) and 0 < count < input_block_size:
        raise ConfigError(
            "`model.prompt_positions` must be 0, or at least `datamodule.input_block_size` "
            f"({input_block_size}), but is {count}."
        )


def _given(data: DictConfig) -> dict[str, Any]:
    """The keys of `data` that have a value: other families' YAML may leave empty sections."""
    return {key: value for key, value in data.items() if value is not None}
