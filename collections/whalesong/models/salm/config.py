"""The `model` section of SALM's YAML (specification: speechlm2 configuration files, SALM)."""

from typing import Any, Literal

from pydantic import Field

from whalesong.core.model_config import ModelConfig, TargetConfig
from whalesong.core.schema import Schema

PERCEPTION = "nemo.collections.speechlm2.modules.perception.AudioPerceptionModule"


class PerceptionConfig(Schema):
    """NeMo's `AudioPerceptionModule`; what is left out comes from `pretrained_asr`."""

    target: Literal[PERCEPTION] = PERCEPTION
    preprocessor: dict[str, Any] | None = None
    """Overrides of the mel front end of the ASR model."""
    encoder: dict[str, Any] | None = None
    """Overrides of its encoder, such as `att_context_size`."""
    modality_adapter: TargetConfig
    """`feat_in`, `output_dim` and `d_model` that are null are taken from encoder and LLM."""
    spec_augment: TargetConfig | None = None
    """SpecAugment, applied in training only."""
    output_dim: int | None = None
    """Width of the LLM's embeddings; filled in."""


class GenerationSettings(Schema):
    """Defaults of generation; null leaves the LLM's own `GenerationConfig` as it is."""

    max_new_tokens: int = Field(256, gt=0)
    num_beams: int | None = Field(None, gt=0)
    do_sample: bool | None = None
    temperature: float | None = Field(None, gt=0)
    top_k: int | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    length_penalty: float | None = None


class SALMConfig(ModelConfig):
    """Speech-augmented language model."""

    pretrained_llm: str
    """Folder or hub name of a Hugging Face causal LM with its tokenizer."""
    pretrained_asr: str | None = None
    """Path of a NeMo ASR `.nemo`, or its published name; null builds it from `perception`."""
    pretrained_weights: bool = True
    """False takes the architectures only."""
    audio_locator_tag: str = "<audio>"
    """Stands for one audio in a text."""
    prompt_format: str | None = None
    """One of NeMo's prompt formats; null takes the chat template of the LLM's tokenizer."""
    perception: PerceptionConfig
    encoder_chunk_size_seconds: float | None = Field(None, gt=0)
    """Encode longer audio in pieces of this length."""
    encoder_chunk_overlap_seconds: float = Field(0.0, ge=0)
    """What a piece sees of its neighbours, on each side."""
    generation: GenerationSettings = Field(default_factory=GenerationSettings)
    validation_wer: bool = True
    """Generate in validation and log `val_wer`."""
