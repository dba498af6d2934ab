"""The `model` section of SALM's YAML (specification: speechlm2 configuration files, SALM)."""

from pydantic import Field

from whalesong.core.schema import Schema
from whalesong.speech.config import SpeechLMConfig


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


class SALMConfig(SpeechLMConfig):
    """Speech-augmented language model."""

    audio_locator_tag: str = "<audio>"
    """Stands for one audio in a text."""
    prompt_format: str | None = None
    """One of NeMo's prompt formats; null takes the chat template of the LLM's tokenizer."""
    encoder_chunk_size_seconds: float | None = Field(None, gt=0)
    """Encode longer audio in pieces of this length."""
    encoder_chunk_overlap_seconds: float = Field(0.0, ge=0)
    """What a piece sees of its neighbours, on each side."""
    generation: GenerationSettings = Field(default_factory=GenerationSettings)
    validation_wer: bool = True
    """Generate in validation and log `val_wer`."""
