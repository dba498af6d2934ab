"""What the `model` sections of the duplex families have in common.

Specification: speechlm2 configuration files, DuplexS2SModel and DuplexS2SSpeechDecoderModel.
"""

from typing import Any

from pydantic import Field

from whalesong.core.schema import Schema
from whalesong.speech.config import SpeechLMConfig


class SpecialTokens(Schema):
    """Tokens of the text channel; null takes the tokenizer's own."""

    bos: str | None = None
    """Where a turn begins."""
    eos: str | None = None
    """Where it ends."""
    pad: str | None = None
    """At frames without text; the tokenizer's padding token, or else its unknown one."""


class TokenLossWeights(Schema):
    """Weights of single tokens in the loss of the text channel."""

    bos: float = Field(1.0, ge=0)
    """Frames in which a turn begins."""
    eos: float = Field(1.0, ge=0)
    """Frames in which it ends."""
    pad: float = Field(1.0, ge=0)
    """Frames without text."""


class DuplexGeneration(Schema):
    """How text and codes are drawn, frame by frame."""

    text_temperature: float = Field(0.0, ge=0)
    """Of the text channel; 0 takes the most probable token."""
    temperature: float = Field(0.0, ge=0)
    """Of codes; 0 takes the most probable ones."""
    top_k: int = Field(0, ge=0)
    """Only the most probable codes; 0 for all."""
    top_p: float = Field(0.0, ge=0, le=1)
    """Only the smallest set of codes with this probability; 0 for all."""
    guidance_scale: float = Field(1.0, ge=0)
    """How much farther than by themselves codes follow the LLM; needs a speech decoder that was
    trained with `unconditional_prob`."""
    seed: int = Field(0, ge=0)
    """Of the draws; row n of a batch draws with `seed + n`."""


class DuplexConfig(SpeechLMConfig):
    """Listens and speaks at the same time, on one grid of frames."""

    pretrained_audio_codec: str
    """Codec of the agent's audio: a NeMo `.nemo` or its published name, a `.safetensors` of ours,
    a Hugging Face folder of EnCodec, DAC or Mimi, or a YAML with a `pretransform` section."""
    audio_codec: dict[str, Any] | None = None
    """Its pretransform section, as archives keep it; filled in."""
    scoring_asr: str | None = None
    """Recognizer that listens to the agent in validation; null scores the text only."""
    audio_loss_weight: float = Field(4.0, ge=0)
    """Of the mean over frames and codebooks."""
    text_loss_weight: float = Field(3.0, ge=0)
    """Of the mean over frames."""
    codebook_loss_weights: list[float] | None = None
    """One for each codebook; null weighs all the same."""
    token_loss_weights: TokenLossWeights = Field(default_factory=TokenLossWeights)
    duplex_user_channel_weight: float = 1.0
    """Factor of what perception gives."""
    attention_window: int | None = Field(None, ge=2)
    """Frames that the LLM looks back, itself included, in training and in use; null for all, which
    bounds a session by the LLM's context."""
    special_tokens: SpecialTokens = Field(default_factory=SpecialTokens)
    generation: DuplexGeneration = Field(default_factory=DuplexGeneration)
    validation_generation: bool = True
    """Answer in validation and log BLEU, ASR-BLEU and turn-taking."""
