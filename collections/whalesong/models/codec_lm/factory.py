"""`create_audio_lm_from_config`: a configuration becomes an `AudioLanguageModelWrapper`."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from whalesong.core.instantiate import naming
from whalesong.core.schema import validate
from whalesong.models.codec_lm.factory_config import (
    LANGUAGE_MODELS,
    AudioLanguageModelConfigContainer,
    LanguageModelConfig,
    container_type,
)
from whalesong.models.codec_lm.model import AudioLanguageModel
from whalesong.models.codec_lm.wrapper import AudioLanguageModelWrapper
from whalesong.modules.codebook_patterns import build_pattern, check_pattern
from whalesong.modules.codec.build import build_codec, parse_section
from whalesong.modules.codec.codec import Codec
from whalesong.modules.conditioning.build import build_multi_conditioner, check_conditioning
from whalesong.modules.conditioning.multi import MultiConditioner
from whalesong.sound.assets import CODEC_ASSETS, CONDITIONER_ASSETS, assets_of

_LOG = logging.getLogger(__name__)


def create_audio_lm_from_config(
    config: Mapping[str, Any] | str | Path,
) -> AudioLanguageModelWrapper:
    """Build a language model on codes of an audio codec, with its codec and its conditioners.

    Args:
        config: `{"model": {"lm", "pretransform", "conditioning"}, "sample_rate"}`, or the path of a
            JSON or YAML file with it; configurations of stable-audio-tools load as they are.

    Raises:
        AssertionError: a section is missing, or the pretransform is not discrete.
        NotImplementedError: the type of language model or pretransform is unknown.
        ValueError: anything else that is wrong in it; all of these before anything is built.
    """
    return build_audio_lm(check_audio_lm_config(read_config(config)))


def read_config(config: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    """The configuration itself, read from a file where a path is given.

    Raises:
        ValueError: the file is no JSON or YAML mapping.
    """
    if isinstance(config, Mapping):
        return config
    text = Path(config).read_text(encoding="utf-8")
    try:
        content = json.loads(text) if Path(config).suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"'{config}' is no JSON or YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"'{config}' must hold a mapping, but holds a {type(content).__name__}.")
    return content


def check_audio_lm_config(config: Mapping[str, Any]) -> AudioLanguageModelConfigContainer:
    """Check a whole configuration without building anything of it.

    Raises:
        AssertionError, NotImplementedError, ValueError: see `create_audio_lm_from_config`.
    """
    _check_model_type(config)
    model = _section(config, "model", "model config must be specified in config")
    _required(config, "sample_rate", "Must specify sample_rate in config")
    lm = _section(model, "lm", "lm config must be specified in model config")
    if model.get("pretransform") is None:
        raise ValueError("`model.pretransform` is mandatory, but is missing.")
    parse_section(_section(model, "pretransform"))
    parameters = _section(lm, "codebook_pattern_config") or {}
    with naming("model.lm.codebook_pattern"):
        check_pattern(str(lm.get("codebook_pattern", "delay")), parameters)
    conditioners = check_conditioning(_section(model, "conditioning"))
    _required(lm, "type", "Must specify lm type in lm config")
    _required(lm, "config", "Must specify lm model config in lm config")
    if str(lm["type"]) not in LANGUAGE_MODELS:
        raise NotImplementedError(f"Unrecognized lm type {lm['type']}")
    container = validate(container_type(), config)
    check_cond_ids(container.model.lm, conditioners)
    return container


def check_cond_ids(lm: LanguageModelConfig, conditioners: list[str]) -> None:
    """Refuse a condition that no conditioner gives.

    Args:
        conditioners: ids of `conditioning.configs`.

    Raises:
        ValueError: naming the list and the id.
    """
    for key in ("cross_attention_cond_ids", "prepend_cond_ids", "global_cond_ids"):
        for name in getattr(lm, key):
            if name not in conditioners:
                known = ", ".join(conditioners) or "none"
                raise ValueError(
                    f"`model.lm.{key}` names '{name}', but `model.conditioning.configs` has no "
                    f"conditioner of this id (it has: {known})."
                )


def build_audio_lm(
    container: AudioLanguageModelConfigContainer,
    *,
    assets: Mapping[str, bytes] | None = None,
) -> AudioLanguageModelWrapper:
    """Build what a checked configuration describes.

    Args:
        assets: content of the files of an archive; then nothing pretrained is loaded, for the
            weights follow. None loads codec and encoders from where the configuration says.
    """
    model = container.model
    with naming("model.pretransform"):
        codec = build_codec(
            model.pretransform,
            assets=assets_of(assets, CODEC_ASSETS),
            sample_rate=container.sample_rate,
        )
    _check_audio(container, codec)
    conditioner = None
    if model.conditioning is not None:
        conditioner = build_multi_conditioner(
            _only_used(model.conditioning, model.lm.cond_ids),
            default_dim=model.lm.default_cond_dim,
            codec=codec,
            assets=assets_of(assets, CONDITIONER_ASSETS),
        )
    lm = build_language_model(model.lm, codec=codec, conditioner=conditioner)
    return AudioLanguageModelWrapper(
        pretransform=codec, lm=lm, conditioner=conditioner, sample_rate=container.sample_rate
    )


def build_language_model(
    config: LanguageModelConfig, *, codec: Codec, conditioner: MultiConditioner | None
) -> AudioLanguageModel:
    """Build pattern, backbone, table and heads for a codec."""
    pattern = build_pattern(
        config.codebook_pattern, codec.num_codebooks, **config.codebook_pattern_config
    )
    dims = {} if conditioner is None else conditioner.output_dims
    backbone = config.build_backbone(
        memory_dim=_common_dim(config, "cross_attention_cond_ids", dims),
        prepend_dim=_common_dim(config, "prepend_cond_ids", dims),
        global_dim=sum(dims[name] for name in config.global_cond_ids),
    )
    return AudioLanguageModel(
        pattern_provider=pattern,
        backbone=backbone,
        codebook_size=codec.codebook_size,
        cross_attention_cond_ids=config.cross_attention_cond_ids,
        prepend_cond_ids=config.prepend_cond_ids,
        global_cond_ids=config.global_cond_ids,
    )


def _required(section: Mapping[str, Any], key: str, text: str) -> Any:
    """The value of a key; the texts are those of the specification."""
    value = section.get(key)
    if value is None:
        raise AssertionError(text)
    return value


def _section(parent: Mapping[str, Any], key: str, text: str = "") -> Any:
    """A value that must be a mapping; mandatory where there is a text for its absence."""
    value = _required(parent, key, text) if text else parent.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"`{key}` must be a mapping, but is {value!r}.")
    return value


def _check_model_type(config: Mapping[str, Any]) -> None:
    if config.get("model_type", "lm") != "lm":
        raise NotImplementedError(f"Unknown model type: {config['model_type']}")


def _check_audio(container: AudioLanguageModelConfigContainer, codec: Codec) -> None:
    if container.sample_rate != codec.sample_rate:
        raise ValueError(
            f"`sample_rate` must be that of the pretransform ({codec.sample_rate}), "
            f"but is {container.sample_rate}."
        )
    if container.audio_channels not in (None, codec.num_channels):
        raise ValueError(
            f"`audio_channels` must be those of the pretransform ({codec.num_channels}), "
            f"but is {container.audio_channels}."
        )


def _only_used(conditioning: Mapping[str, Any], ids: list[str]) -> dict[str, Any]:
    """The section without the conditioners that no list of the language model names."""
    section = dict(conditioning)
    unused = [item["id"] for item in section["configs"] if item["id"] not in ids]
    if unused:
        _LOG.warning("No list of `model.lm` names the conditions %s: they are left out.", unused)
    section["configs"] = [item for item in section["configs"] if item["id"] in ids]
    keys = section.get("default_keys") or {}
    section["default_keys"] = {name: key for name, key in keys.items() if name in ids}
    section["pre_encoded_keys"] = [n for n in section.get("pre_encoded_keys") or [] if n in ids]
    return section


def _common_dim(config: LanguageModelConfig, key: str, dims: Mapping[str, int]) -> int:
    """The width that conditions in one sequence share; 0 without any.

    Raises:
        ValueError: they differ.
    """
    ids = getattr(config, key)
    widths = {name: dims[name] for name in ids}
    if len(set(widths.values())) > 1:
        shown = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise ValueError(f"`model.lm.{key}` must name conditions of one width, but has {shown}.")
    return next(iter(widths.values()), 0)
