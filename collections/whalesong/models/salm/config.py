"""The `model` section of SALM's YAML (specification: speechlm2 configuration files, SALM)."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from whalesong.core.schema import Schema
from whalesong.core.trainer_config import OptimConfig

PERCEPTION = "nemo.collections.speechlm2.modules.perception.AudioPerceptionModule"


class TargetConfig(Schema):
    """A class by its dotted name and its arguments, which are checked against its signature."""

    model_config = ConfigDict(extra="allow")

    target: str = Field(alias="_target_")
    """Dotted name of the class; only classes that Whalesong knows may stand here."""


class LoraSettings(Schema):
    """Fields of `peft.LoraConfig` that can be merged back into the plain LLM."""

    task_type: Literal["CAUSAL_LM"] = "CAUSAL_LM"
    r: int = Field(8, gt=0)
    """Rank of the update."""
    lora_alpha: float = Field(8, gt=0)
    """The update is scaled by `lora_alpha / r`."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] | str | None = None
    """Names or a regular expression; null takes PEFT's default, 'all-linear' every linear layer."""
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    use_rslora: bool = False
    init_lora_weights: bool | Literal["gaussian", "orthogonal"] = True
    fan_in_fan_out: bool = False


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


class SALMConfig(Schema):
    """Speech-augmented language model."""

    target: str | None = None
    """Dotted name of the model class, as NeMo writes it into every archive."""
    nemo_version: str | None = None
    """Written by NeMo."""
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
    freeze_params: list[str] = Field(default_factory=list)
    """Regular expressions of parameters to freeze, over names as they are without LoRA."""
    prevent_freeze_params: list[str] = Field(default_factory=list)
    """Regular expressions that win over `freeze_params` and over what `lora` freezes."""
    lora: LoraSettings | None = None
    """Train low-rank updates of the LLM and freeze its own weights."""
    perception: PerceptionConfig
    encoder_chunk_size_seconds: float | None = Field(None, gt=0)
    """Encode longer audio in pieces of this length."""
    encoder_chunk_overlap_seconds: float = Field(0.0, ge=0)
    """What a piece sees of its neighbours, on each side."""
    generation: GenerationSettings = Field(default_factory=GenerationSettings)
    validation_wer: bool = True
    """Generate in validation and log `val_wer`."""
    activation_checkpointing: bool = False
    """Recompute the blocks of LLM and encoder in the backward pass."""
    save_slim_nemo: bool = False
    """Archives hold only what was trained, with name and fingerprint of the frozen parts."""
    optimizer: TargetConfig | None = None
    lr_scheduler: TargetConfig | None = None
    optim: OptimConfig | None = None
    """NeMo's older form of the two: `{name, lr, ..., sched: {name, ...}}`."""
