"""From the `conditioning` section of a configuration to conditioners."""

import importlib
from collections.abc import Mapping
from typing import Any

from whalesong.modules.codec.codec import Codec
from whalesong.modules.conditioning.conditioner import Conditioner
from whalesong.modules.conditioning.multi import MultiConditioner
from whalesong.modules.conditioning.section import (
    ConditionerSection,
    check_conditioning,
    parse_fields,
    parse_section,
)

__all__ = ["build_conditioner", "build_multi_conditioner", "check_conditioning"]

Assets = Mapping[str, bytes]

_CLASSES = {
    "audio_prompt": "audio.AudioPromptConditioner",
    "causal_lm": "text_encoder.CausalLMConditioner",
    "clap_audio": "clap.ClapAudioConditioner",
    "clap_text": "clap.ClapTextConditioner",
    "int": "values.IntConditioner",
    "list": "values.ListConditioner",
    "lut": "token_table.TokenizerLUTConditioner",
    "number": "values.NumberConditioner",
    "phoneme": "text.PhonemeConditioner",
    "pretransform": "audio.AudioPromptConditioner",
    "source_mix": "audio.SourceMixConditioner",
    "t5": "text_encoder.T5Conditioner",
    "t5gemma": "text_encoder.T5GemmaConditioner",
    "text": "text.ByteTextConditioner",
    "tokenizer_lut": "token_table.TokenizerLUTConditioner",
}


def build_multi_conditioner(
    section: Mapping[str, Any],
    *,
    default_dim: int,
    codec: Codec | None = None,
    assets: Assets | None = None,
) -> MultiConditioner:
    """Build all conditioners of a section.

    Args:
        section: `{configs: [{id, type, config, dropout}], cond_dim, default_keys,
            pre_encoded_keys, dropout}`; see `ConditioningSection`.
        default_dim: width of the conditions where `cond_dim` is left out.
        codec: of the model, for conditions that are recordings.
        assets: of `MultiConditioner.assets`; then nothing pretrained is loaded, for the weights
            follow. None loads what the section names.

    Raises:
        ValueError: one sentence that names the conditioner and the field.
    """
    parsed = parse_section(section)
    check_conditioning(section)
    conditioners = {
        item.id: _build_item(
            item,
            output_dim=parsed.cond_dim or default_dim,
            assets=_of(item.id, assets),
            codec=codec,
        )
        for item in parsed.configs
    }
    return MultiConditioner(
        conditioners,
        default_keys=parsed.default_keys,
        pre_encoded_keys=parsed.pre_encoded_keys,
        dropouts={item.id: item.dropout for item in parsed.configs},
        dropout=parsed.dropout,
    )


def build_conditioner(
    type: str,  # noqa: A002 - as the configuration calls it
    fields: Mapping[str, Any],
    *,
    output_dim: int,
    assets: Assets | None = None,
    codec: Codec | None = None,
) -> Conditioner:
    """Build one conditioner.

    Args:
        type: one of `CONDITIONERS`.
        fields: of this type; an `output_dim` among them wins.
        output_dim: width of the embeddings.
        assets: of `Conditioner.assets`; then nothing pretrained is loaded, for the weights follow.
        codec: of the model, for conditions that are recordings.

    Raises:
        ValueError: an unknown type or field, or a pretrained part that cannot be read.
    """
    parsed = parse_fields(type, fields)
    module, name = _CLASSES[type].split(".")
    conditioner_class = getattr(importlib.import_module(f"{__package__}.{module}"), name)
    return conditioner_class.from_fields(
        parsed, parsed.output_dim or output_dim, assets=assets, codec=codec
    )


def _build_item(item: ConditionerSection, **places: Any) -> Conditioner:
    try:
        return build_conditioner(item.type, item.config, **places)
    except ValueError as error:
        raise ValueError(f"conditioner '{item.id}': {error}") from error


def _of(name: str, assets: Assets | None) -> Assets | None:
    """The assets of one conditioner of several."""
    if assets is None:
        return None
    prefix = f"{name}."
    return {
        file.removeprefix(prefix): content
        for file, content in assets.items()
        if file.startswith(prefix)
    }
