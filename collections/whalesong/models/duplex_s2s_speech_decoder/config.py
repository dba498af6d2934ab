"""The `model` section of DuplexS2SSpeechDecoderModel (specification: speechlm2 configuration)."""

from typing import Literal

from pydantic import Field

from whalesong.core.config.kinds import MAX_LAYERS, MAX_WIDTH
from whalesong.core.schema import Schema
from whalesong.duplex.config import DuplexConfig

NEMO_DECODER = "nemo.collections.speechlm2.modules.speech_generation.TransformerARSpeechDecoder"
DECODER = "whalesong.modules.speech_decoder.TransformerARSpeechDecoder"


class SpeechDecoderConfig(Schema):
    """A causal transformer from the LLM's hidden states and the codes before to codes."""

    target: Literal[NEMO_DECODER, DECODER] = DECODER
    """NeMo's name stands for ours, which has other weights."""
    d_model: int = Field(1024, gt=0, le=MAX_WIDTH)
    """Width."""
    n_layers: int = Field(12, gt=0, le=MAX_LAYERS)
    n_heads: int = Field(16, gt=0, le=MAX_WIDTH)
    d_kv: int = Field(64, gt=0, le=MAX_WIDTH)
    """Width of a head."""
    d_ff: int = Field(4096, gt=0, le=MAX_WIDTH)
    """Inner width of the feed-forward."""
    max_seq_len: int = Field(2048, ge=2)
    """Frames that it looks back, itself included; recordings may be longer."""
    dropout: float = Field(0.1, ge=0, lt=1)
    layernorm_epsilon: float = Field(1e-5, gt=0)
    activation_function: Literal["gelu_new", "gelu", "relu", "silu"] = "gelu_new"
    init_method_std: float = Field(0.02, gt=0)
    """Standard deviation of weights at the start."""
    use_cache: bool = True
    """False computes all that a frame depends on again, as a reference."""
    unconditional_prob: float = Field(0.0, ge=0, lt=1)
    """Share of training rows without the LLM's hidden states, for `guidance_scale`."""


class DuplexS2SSpeechDecoderConfig(DuplexConfig):
    """The LLM predicts the text; a speech decoder makes codes of its hidden states."""

    speech_decoder: SpeechDecoderConfig = Field(default_factory=SpeechDecoderConfig)
