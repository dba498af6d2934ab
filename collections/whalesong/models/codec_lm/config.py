"""The `model` section of the codec language model's YAML.

`lm`, `pretransform`, `conditioning` and `sample_rate` are those of `create_audio_lm_from_config`.
"""

from typing import Any

from pydantic import Field

from whalesong.core.config.model import ModelConfig
from whalesong.core.schema import Schema, validate
from whalesong.models.codec_lm.factory_config import language_model_union
from whalesong.modules.codec.config import pretransform_union
from whalesong.modules.conditioning.section import CheckedConditioning
from whalesong.sound.decoding_settings import DecodingSettings


class GenerationSettings(DecodingSettings):
    """Defaults of generation."""

    seconds: float = Field(10.0, gt=0)
    """Length of what is generated, a prompt included."""
    top_k: int = Field(250, ge=0)
    """Only the most probable codes; 0 for all."""
    guidance_scale: float | dict[str, float] = 1.0
    """Strength of the conditions, of all or of each by its id; 1 generates without guidance."""
    stride_seconds: float | None = Field(None, gt=0)
    """Advance of the window for what is longer than it; null for half a window."""


def generation_settings(**values: Any) -> GenerationSettings:
    """Settings from keywords.

    Raises:
        ConfigError: an unknown one, or a wrong value.
    """
    return validate(GenerationSettings, values, path="generation")


class SampleSettings(Schema):
    """Samples that go to the logs while training."""

    every_n_validations: int = Field(1, gt=0)
    """How often; without `trainer.val_check_interval` there is a validation in every epoch."""
    prompts: list[dict[str, Any]]
    """The conditions of each sample, by id; an audio prompt is the path of a file."""
    seconds: float | None = Field(None, gt=0)
    """Length; that of `generation` if null."""
    seed: int = Field(0, ge=0)
    """The same in each validation, so that samples can be compared."""


class CodecLMConfig(ModelConfig):
    """Language model on codes of an audio codec."""

    sample_rate: int = Field(gt=0)
    """Samples per second; must be that of the pretransform."""
    lm: language_model_union()
    """Backbone, codebook pattern, and which conditions go where."""
    pretransform: pretransform_union()
    """The codec: `{type, config}`."""
    conditioning: CheckedConditioning | None = None
    """The conditioners."""
    window_seconds: float | None = Field(None, gt=0)
    """Longer clips are cropped to this in training; longer generation goes window by window."""
    strict_audio: bool = False
    """Refuse audio of another sample rate or number of channels instead of converting it."""
    generation: GenerationSettings = Field(default_factory=GenerationSettings)
    samples: SampleSettings | None = None
