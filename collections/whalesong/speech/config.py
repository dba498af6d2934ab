"""What the `model` sections of families with perception and an LLM have in common."""

from typing import Literal

from whalesong.core.config.model import ModelConfig, TargetConfig
from whalesong.core.config.own_parts import EncoderConfig
from whalesong.core.schema import Schema

PERCEPTION = "nemo.collections.speechlm2.modules.perception.AudioPerceptionModule"


class PerceptionConfig(Schema):
    """NeMo's `AudioPerceptionModule`; what is left out comes from `pretrained_asr`."""

    target: Literal[PERCEPTION] = PERCEPTION
    preprocessor: EncoderConfig | None = None
    """Overrides of the mel front end of the ASR model."""
    encoder: EncoderConfig | None = None
    """Overrides of its encoder, such as `att_context_size`."""
    modality_adapter: TargetConfig
    """`feat_in`, `output_dim` and `d_model` that are null are taken from encoder and LLM."""
    spec_augment: TargetConfig | None = None
    """SpecAugment, applied in training only."""
    output_dim: int | None = None
    """Width of the LLM's embeddings; filled in."""


class SpeechLMConfig(ModelConfig):
    """A pretrained LLM that hears through the encoder of a pretrained recognizer."""

    pretrained_llm: str
    """Folder or hub name of a Hugging Face causal LM with its tokenizer."""
    pretrained_asr: str | None = None
    """Path of a NeMo ASR `.nemo`, or its published name; null builds it from `perception`."""
    pretrained_weights: bool = True
    """False takes the architectures only."""
    perception: PerceptionConfig
