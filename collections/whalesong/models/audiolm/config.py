"""The `model` section of AudioLM's YAML."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from whalesong.core.config.kinds import MAX_LAYERS, MAX_WIDTH
from whalesong.core.config.model import ModelConfig
from whalesong.core.schema import Schema, validate
from whalesong.modules.codec.config import pretransform_union
from whalesong.modules.conditioning.section import CheckedConditioning
from whalesong.sound.decoding_settings import DecodingSettings

PromptMode = Literal["prefix", "infill", "none", "segment", "neighbour"]
NARStage = Literal["batch", "sample", "all"]


class NARSizes(Schema):
    """Where the second half differs from the first."""

    d_model: int | None = Field(None, gt=0, le=MAX_WIDTH)
    """Width; null takes that of the first half."""
    num_heads: int | None = Field(None, gt=0, le=MAX_WIDTH)
    """Heads of attention, likewise."""
    num_layers: int | None = Field(None, gt=0, le=MAX_LAYERS)
    """Layers, likewise."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout, likewise."""


class PromptSettings(Schema):
    """How a clip becomes a prompt and a target."""

    modes: dict[PromptMode, float] = Field(default_factory=lambda: {"prefix": 1.0})
    """Weights of the ways, drawn for each example; evaluation takes the heaviest. prefix: the
    begin of the clip is the prompt of the rest; infill: what is before and behind a span is its
    prompt; none: no prompt; segment: a piece of the clip is copied in front of it and not learned
    (VALL-E's prefix mode 2); neighbour: a piece of the cut's attribute `prompt` (mode 4)."""
    split: float | tuple[float, float] = 0.4
    """Share of the clip that is prompt, or the range from which it is drawn in training; then
    evaluation takes the middle."""
    segment_seconds: float = Field(3.0, gt=0)
    """Longest prompt of the modes segment and neighbour."""

    @field_validator("modes")
    @classmethod
    def _weights(cls, modes: dict[str, float]) -> dict[str, float]:
        if min(modes.values(), default=0) < 0 or not sum(modes.values()) > 0:
            raise ValueError("must have weights of at least 0, and one above 0")
        return modes

    @field_validator("split")
    @classmethod
    def _share(cls, split: float | tuple[float, float]) -> float | tuple[float, float]:
        low, high = split if isinstance(split, tuple) else (split, split)
        if not 0 < low <= high < 1:
            raise ValueError("must lie between 0 and 1, a range with its lower end first")
        return split


class GenerationSettings(DecodingSettings):
    """Defaults of generation."""

    max_seconds: float = Field(10.0, gt=0)
    """Longest new audio."""
    min_seconds: float = Field(0.0, ge=0)
    """Shortest new audio; before, the model cannot end it."""
    stop_on_eos: bool = True
    """End where the model ends the recording; else always at `max_seconds`."""
    repetition_window: int = Field(0, ge=0)
    """Repetition-aware sampling (VALL-E 2): codes that are looked back on; 0 for none."""
    repetition_threshold: float = Field(0.1, ge=0, le=1)
    """A code with a greater share of them is drawn again from the full distribution."""
    nar_temperature: float = Field(0.0, ge=0)
    """Of the other half; 0 takes the most probable codes."""
    guidance_scale: float = 1.0
    """Strength of the conditions; 1 generates without guidance."""
    nar_chunk_seconds: float | None = Field(None, gt=0)
    """The other half takes new audio in pieces of this length, as streaming does; null at once."""
    return_prompt: bool = True
    """What comes out begins with the prompt."""

    @model_validator(mode="after")
    def _lengths(self) -> "GenerationSettings":
        if self.min_seconds > self.max_seconds:
            raise ValueError(
                f"`min_seconds` must be at most `max_seconds` ({self.max_seconds}), but is "
                f"{self.min_seconds}"
            )
        return self


def generation_settings(**values: Any) -> GenerationSettings:
    """Settings from keywords.

    Raises:
        ConfigError: an unknown one, or a wrong value.
    """
    return validate(GenerationSettings, values, path="generation")


class AudioLMSamples(Schema):
    """Continuations that go to the logs while training."""

    every_n_validations: int = Field(1, gt=0)
    """How often; without `trainer.val_check_interval` there is a validation in every epoch."""
    begin: list[str]
    """Audio files to go on from."""
    conditions: dict[str, Any] = Field(default_factory=dict)
    """Conditions of all of them, by id."""
    seed: int = Field(0, ge=0)
    """The same in each validation, so that samples can be compared."""


class AudioLMConfig(ModelConfig):
    """Language model on codes: the first quantizers autoregressive, the others all at once."""

    sample_rate: int = Field(gt=0)
    """Samples per second; must be that of the pretransform."""
    pretransform: pretransform_union()
    """The codec: `{type, config}`."""
    d_model: int = Field(1024, gt=0, le=MAX_WIDTH)
    """Width (--decoder-dim)."""
    num_heads: int = Field(16, gt=0, le=MAX_WIDTH)
    """Heads of attention (--nhead)."""
    num_layers: int = Field(12, gt=0, le=MAX_LAYERS)
    """Layers of each half (--num-decoder-layers)."""
    num_quantizers: int = Field(4, gt=0, le=MAX_LAYERS)
    """Codes of a frame (--num-quantizers); must be those of the pretransform."""
    codebook_size: int | list[int] = 2048
    """Ids of all quantizers, or of each; must hold those of the pretransform."""
    ff_mult: float = Field(4.0, gt=0)
    """Inner width of the feed-forward over `d_model`."""
    activation: Literal["gelu", "relu", "silu", "swiglu"] = "gelu"
    """Of the feed-forward."""
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    """Kind of all norms."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Of inputs and branches."""
    positions: Literal["rope", "sinusoidal"] = "rope"
    """Rotary positions, or those of VALL-E."""
    position_mode: Literal["continuous", "restart"] = "continuous"
    """Positions run on from prompt to target, or begin again."""
    prompt_attention: Literal["bidirectional", "causal"] = "bidirectional"
    """Whether frames of the prompt see later ones of the prompt."""
    nar: NARSizes = Field(default_factory=NARSizes)
    """Where the second half differs (--scale-factor)."""
    ar_quantizers: int = Field(1, gt=0, le=MAX_LAYERS)
    """Quantizers that are generated autoregressively; all of them leave no second half."""
    ar_pattern: Literal["parallel", "delayed"] = "parallel"
    """They stand in one step, or each one step behind the one before."""
    ar_group: int = Field(1, gt=0, le=MAX_LAYERS)
    """Frames of one step (VALL-E 2)."""
    predict_eos: Literal["auto", "always", "never"] = "auto"
    """Where the end is learned: where the recording really ends, at the end of every clip, or
    nowhere."""
    nar_stage: NARStage = "batch"
    """Stages learned in a step: one for the batch, one for each row, or all; validation always
    takes all."""
    train_stage: Literal[0, 1, 2] = 0
    """What is trained: both halves, the first, or the second (--train-stage)."""
    prompt: PromptSettings = Field(default_factory=PromptSettings)
    """How a clip becomes a prompt and a target."""
    conditioning: CheckedConditioning | None = None
    """Conditions of the whole clip, such as a style or a speaker, which go into every block."""
    window_seconds: float | None = Field(None, gt=0)
    """Longer clips are cropped to this."""
    strict_audio: bool = False
    """Refuse audio of another sample rate or number of channels instead of converting it."""
    generation: GenerationSettings = Field(default_factory=GenerationSettings)
    samples: AudioLMSamples | None = None
