"""`create_audio_lm_from_config`: the specification's schema, texts and examples."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from whalesong import create_audio_lm_from_config
from whalesong.models.codec_lm.factory import check_audio_lm_config
from whalesong.models.codec_lm.factory_config import (
    AudioLanguageModelConfigContainer,
    ContinuousTransformerConfig,
    ContinuousTransformerLanguageModelConfig,
    LanguageModelConfig,
    audio_lm_json_schema,
    register_language_model,
)


@pytest.fixture
def config(mel_rvq: Path) -> dict[str, Any]:
    """A small model with one condition of each way."""
    return {
        "model": {
            "lm": {
                "type": "continuous_transformer",
                "config": {"embed_dim": 64, "depth": 2, "dim_heads": 32},
                "cross_attention_cond_ids": ["text"],
                "prepend_cond_ids": ["genre"],
                "global_cond_ids": ["tempo"],
            },
            "pretransform": {"type": "mel_rvq", "config": {"model_path": str(mel_rvq)}},
            "conditioning": {
                "cond_dim": 48,
                "configs": [
                    {"id": "text", "type": "text", "config": {}},
                    {"id": "genre", "type": "int", "config": {"min_val": 1, "max_val": 9}},
                    {"id": "tempo", "type": "number", "config": {"min_val": 40, "max_val": 200}},
                ],
            },
        },
        "sample_rate": 16000,
    }


def without(config: dict[str, Any], *path: str) -> dict[str, Any]:
    """The configuration without one key."""
    changed = copy.deepcopy(config)
    section = changed
    for key in path[:-1]:
        section = section[key]
    del section[path[-1]]
    return changed


def changed(config: dict[str, Any], value: Any, *path: str) -> dict[str, Any]:
    """The configuration with one key set."""
    result = copy.deepcopy(config)
    section = result
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    return result


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (["model"], "model config must be specified in config"),
        (["sample_rate"], "Must specify sample_rate in config"),
        (["model", "lm"], "lm config must be specified in model config"),
        (["model", "lm", "type"], "Must specify lm type in lm config"),
        (["model", "lm", "config"], "Must specify lm model config in lm config"),
        (["model", "pretransform", "type"], "type must be specified in pretransform config"),
    ],
)
def test_missing_sections_have_the_specified_errors(config, path, text) -> None:
    with pytest.raises(AssertionError) as error:
        create_audio_lm_from_config(without(config, *path))
    assert str(error.value) == text


@pytest.mark.parametrize(
    ("kind", "value", "path", "text"),
    [
        (NotImplementedError, "zz", ["model", "lm", "type"], "Unrecognized lm type zz"),
        (NotImplementedError, "zz", ["model", "pretransform", "type"],
         "Unknown pretransform type: zz"),
        (AssertionError, "pqmf", ["model", "pretransform", "type"],
         "Pretransform must be discrete"),
        (NotImplementedError, "diffusion", ["model_type"], "Unknown model type: diffusion"),
        (ValueError, "delai", ["model", "lm", "codebook_pattern"], "delai"),
        (ValueError, ["text", "mood"], ["model", "lm", "cross_attention_cond_ids"],
         "`model.lm.cross_attention_cond_ids` names 'mood', but `model.conditioning.configs` has "
         "no conditioner of this id (it has: text, genre, tempo)."),
        (ValueError, {"delay": [0, 1, 2]}, ["model", "lm", "codebook_pattern_config"],
         "must be among ['delays'], but ['delay'] are given."),
        (ValueError, -1, ["sample_rate"], "sample_rate"),
        (ValueError, 44100, ["sample_rate"],
         "`sample_rate` must be that of the pretransform (16000), but is 44100."),
        (ValueError, 2, ["audio_channels"],
         "`audio_channels` must be those of the pretransform (1), but is 2."),
        (ValueError, 16, ["model", "lm", "config", "dim_heads"], "head"),
        (ValueError, 1, ["model", "lm", "config", "depht"], "depht"),
    ],
)  # fmt: skip
def test_wrong_values_have_one_clear_error(config, kind, value, path, text) -> None:
    with pytest.raises(kind) as error:
        create_audio_lm_from_config(changed(config, value, *path))
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_pretransform_is_named(config) -> None:
    with pytest.raises(ValueError, match=r"^`model.pretransform` is mandatory, but is missing\.$"):
        create_audio_lm_from_config(without(config, "model", "pretransform"))


def test_defaults_are_those_of_the_specification(config) -> None:
    lm = check_audio_lm_config(without(config, "model", "lm", "prepend_cond_ids")).model.lm
    assert lm.codebook_pattern == "delay"
    assert lm.prepend_cond_ids == []


def test_the_wrapper_has_the_specified_parts(config) -> None:
    wrapper = create_audio_lm_from_config(config)
    assert type(wrapper).__name__ == "AudioLanguageModelWrapper"
    assert type(wrapper.backbone).__name__ == "ContinuousTransformerAudioLMBackbone"
    assert type(wrapper.pattern_provider).__name__ == "DelayedPatternProvider"
    assert wrapper.num_quantizers == wrapper.pretransform.num_quantizers
    assert wrapper.codebook_size == wrapper.pretransform.codebook_size
    assert wrapper.min_input_length == wrapper.pretransform.downsampling_ratio
    assert not any(p.requires_grad for p in wrapper.pretransform.parameters())


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_file_is_as_good_as_a_dict(config, tmp_path, suffix) -> None:
    path = tmp_path / f"model{suffix}"
    dump = json.dumps if suffix == ".json" else yaml.safe_dump
    path.write_text(dump(config))
    assert create_audio_lm_from_config(path).sample_rate == 16000


SPEC_LM = {
    "type": "continuous_transformer",
    "config": {"d_model": 64, "n_heads": 2, "n_layers": 2, "causal": True},
    "codebook_pattern": "delay",
}


def test_the_specifications_spelling_means_the_native_one(config) -> None:
    native = create_audio_lm_from_config(config)
    spec = changed(config, SPEC_LM | {"cross_attention_cond_ids": ["text"]}, "model", "lm")
    wrapper = create_audio_lm_from_config(spec)
    assert wrapper.backbone.d_model == native.backbone.d_model == 64
    assert len(wrapper.backbone.transformer.layers) == 2


@pytest.mark.parametrize(
    "extra",
    [{"embed_dim": 32}, {"depth": 3}, {"dim_heads": 64}, {"causal": False}, {"n_heads": 3}],
)
def test_contradictory_spellings_are_refused(config, extra) -> None:
    lm = copy.deepcopy(SPEC_LM)
    lm["config"].update(extra)
    with pytest.raises(ValueError):
        create_audio_lm_from_config(changed(config, lm, "model", "lm"))


def test_pydantic_models_carry_the_specified_names() -> None:
    config = ContinuousTransformerConfig(d_model=64, n_heads=2, n_layers=2)
    assert config.causal
    lm = ContinuousTransformerLanguageModelConfig(config=config)
    assert isinstance(lm, LanguageModelConfig)
    container = AudioLanguageModelConfigContainer(
        model={"lm": lm.model_dump(exclude_none=True), "pretransform": {"type": "encodec"}},
        sample_rate=32000,
    )
    assert isinstance(container.model.lm, ContinuousTransformerLanguageModelConfig)


def test_the_union_is_open_to_further_types() -> None:
    from typing import Literal

    from whalesong.models.codec_lm import factory_config

    class ToyConfig(LanguageModelConfig):
        type: Literal["toy"] = "toy"
        config: dict[str, int]

    before = dict(factory_config.LANGUAGE_MODELS)
    try:
        register_language_model(ToyConfig)
        schema = audio_lm_json_schema()
        model = AudioLanguageModelConfigContainer(
            model={"lm": {"type": "toy", "config": {"a": 1}}, "pretransform": {}}, sample_rate=1
        ).model
    finally:
        factory_config.LANGUAGE_MODELS.clear()
        factory_config.LANGUAGE_MODELS.update(before)
    assert isinstance(model.lm, ToyConfig)
    assert {"ToyConfig", "ContinuousTransformerLanguageModelConfig"} <= schema["$defs"].keys()
