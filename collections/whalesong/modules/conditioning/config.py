"""Fields of the conditioning section and of each type of conditioner; light to import.

Names and defaults are those of stable-audio-tools where it has the type.
"""

from collections.abc import Collection
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

T5_MODELS: tuple[str, ...] = (
    "t5-small", "t5-base", "t5-large", "t5-3b", "t5-11b",
    "google/flan-t5-small", "google/flan-t5-base", "google/flan-t5-large",
    "google/flan-t5-xl", "google/flan-t5-xxl", "google/t5-v1_1-xl", "google/t5-v1_1-xxl",
)  # fmt: skip
"""Names of T5 encoders on the hub."""

PaddingMode = Literal["none", "zero", "learned"]


class ConditionerFields(BaseModel):
    """Base: unknown fields are refused."""

    model_config = ConfigDict(
        extra="forbid", protected_namespaces=(), use_attribute_docstrings=True, allow_inf_nan=False
    )

    output_dim: int | None = Field(None, gt=0)
    """Width of the embeddings; null takes `cond_dim`."""

    def settings(self, *, without: Collection[str] = ()) -> dict[str, Any]:
        """What a conditioner takes as arguments: all fields with a value, but some."""
        return self.model_dump(exclude={"output_dim", *without}, exclude_none=True)


class TextEncoderFields(ConditionerFields):
    """What all pretrained text encoders take."""

    model_path: str | None = None
    """Local folder of the encoder with its tokenizer; null takes the name on the hub."""
    max_length: int = Field(128, gt=0)
    """Tokens at most; longer texts are cut."""
    enable_grad: bool = False
    """Train the encoder."""
    project_out: bool = False
    """A linear layer even where the widths agree."""
    padding_mode: PaddingMode = "zero"
    """`learned` fills up to `max_length` with one learned vector; else padding is masked."""


class T5Fields(TextEncoderFields):
    """A T5 encoder."""

    t5_model_name: str = "t5-base"
    """One of `T5_MODELS`, or a local folder."""


class T5GemmaFields(TextEncoderFields):
    """The encoder of a T5Gemma."""

    model_name: str = "google/t5gemma-b-b-ul2"
    """Name on the hub, or a local folder."""
    repo_id: str | None = None
    """Another repository of the hub that holds it."""
    subfolder: str | None = None
    """Folder inside of it."""


class CausalLMFields(TextEncoderFields):
    """The body of a causal LM."""

    model_name: str = "google/gemma-2-2b"
    """Name on the hub, or a local folder."""
    learned_scale: bool = True
    """Multiply the embeddings by a learned number."""


class ClapFields(ConditionerFields):
    """What both sides of CLAP take."""

    clap_ckpt_path: str
    """Folder of a `ClapModel` of transformers, or its name on the hub."""
    audio_model_type: str = "HTSAT-base"
    """Of laion_clap; the folder knows it."""
    enable_fusion: bool = True
    """Of laion_clap; the folder knows it."""
    project_out: bool = False
    """A linear layer even where the widths agree."""
    finetune: bool = False
    """Train the encoder."""


class ClapTextFields(ClapFields):
    """The text side of CLAP."""

    use_text_features: bool = False
    """Hidden states of all tokens instead of the one embedding that CLAP compares."""
    feature_layer_ix: int = -1
    """Which hidden states."""
    padding_mode: PaddingMode = "none"
    """As in `t5`; only with `use_text_features`."""
    max_length: int = Field(77, gt=0)
    """Tokens at most; longer texts are cut."""

    @model_validator(mode="after")
    def _padding_of_tokens(self) -> "ClapTextFields":
        if self.padding_mode == "learned" and not self.use_text_features:
            raise ValueError("`padding_mode` may be 'learned' only with `use_text_features`")
        return self


class ClapAudioFields(ClapFields):
    """The audio side of CLAP."""


class IntFields(ConditionerFields):
    """A learned embedding for each whole number of a range."""

    min_val: int = 0
    """Smaller numbers count as this one."""
    max_val: int = 512
    """Greater numbers count as this one."""

    @model_validator(mode="after")
    def _ordered(self) -> "IntFields":
        if self.max_val < self.min_val:
            raise ValueError(
                f"`max_val` must be at least `min_val` ({self.min_val}), but is {self.max_val}"
            )
        return self


class NumberFields(ConditionerFields):
    """Fourier features of a number."""

    min_val: float = 0.0
    """Smaller numbers count as this one."""
    max_val: float = 1.0
    """Greater numbers count as this one."""
    fourier_features_type: Literal["learned", "expo"] = "learned"
    """Frequencies are learned, or exponentially spaced and fixed."""

    @model_validator(mode="after")
    def _ordered(self) -> "NumberFields":
        if not self.max_val > self.min_val:
            raise ValueError(
                f"`max_val` must be greater than `min_val` ({self.min_val}), but is {self.max_val}"
            )
        return self


class ListFields(ConditionerFields):
    """A learned embedding for each name of a list."""

    options: list[str] = Field(min_length=1)
    """The names; any other counts as unknown."""

    @model_validator(mode="after")
    def _distinct(self) -> "ListFields":
        for name in self.options:
            if self.options.count(name) > 1:
                raise ValueError(f"`options` must be distinct, but names '{name}' twice")
        return self


class PhonemeFields(ConditionerFields):
    """Phonemes, given as lists or made from English text by g2p_en where it is installed."""

    max_length: int = Field(1024, gt=0)
    """Phonemes at most; what is longer is cut."""
    project_out: bool = False
    """A linear layer behind the embedding."""
    symbols: list[str] | None = Field(None, min_length=1)
    """The phonemes; null takes those of the CMU pronouncing dictionary."""


class TokenizerLUTFields(ConditionerFields):
    """A learned embedding for each token of a tokenizer."""

    tokenizer_name: str
    """Local folder or name on the hub."""
    max_length: int = Field(1024, gt=0)
    """Tokens at most; longer texts are cut."""
    use_abs_pos_emb: bool = False
    """Add a learned embedding of the position."""
    project_out: bool = False
    """A linear layer behind the embedding."""
    special_tokens: list[str] = Field(default_factory=list)
    """Added to the tokenizer."""


class TextFields(ConditionerFields):
    """Bytes of a text through a small encoder; needs nothing pretrained."""

    max_length: int = Field(256, gt=1)
    """Bytes at most, plus the end; longer texts are cut."""
    width: int = Field(128, gt=0)
    """Width inside the encoder."""
    num_layers: int = Field(1, ge=0)
    """Transformer layers; 0 leaves the embeddings of bytes and positions."""
    num_heads: int = Field(4, gt=0)
    """Attention heads; divides `width`."""

    @model_validator(mode="after")
    def _divisible(self) -> "TextFields":
        if self.width % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide `width` ({self.width}), but is {self.num_heads}"
            )
        return self


class AudioPromptFields(ConditionerFields):
    """A short recording as codes of the model's own codec, embedded and summed over codebooks."""

    kind: ClassVar[str] = "audio_prompt"
    use_model_pretransform: ClassVar[bool] = True

    max_seconds: float | None = Field(3.0, gt=0)
    """What is longer is cut; null takes all."""
    sample_rate: int | None = Field(None, gt=0)
    """Of audio that comes without its rate; null means that of the codec."""
    positions: bool = True
    """Add sinusoidal positions, so that attention can tell the order."""


class PretransformFields(ConditionerFields):
    """A recording as codes of a pretransform, embedded and summed over codebooks."""

    kind: ClassVar[str] = "pretransform"

    sample_rate: int | None = Field(None, gt=0)
    """Of audio that comes without its rate."""
    use_model_pretransform: bool = False
    """Take the codec of the model."""
    pretransform_config: dict[str, Any] | None = None
    """A codec of its own: a pretransform section."""
    pretransform_ckpt_path: str | None = None
    """Weights for the codec of its own."""
    save_pretransform: bool = False
    """Kept for stable-audio-tools' files: a codec of its own is always saved."""
    max_seconds: float | None = Field(None, gt=0)
    """What is longer is cut; null takes all."""
    positions: bool = True
    """Add sinusoidal positions, so that attention can tell the order."""

    @model_validator(mode="after")
    def _complete(self) -> "PretransformFields":
        if self.sample_rate is None:
            raise ValueError(f"Sample rate must be specified for {self.kind} conditioners")
        if self.use_model_pretransform == (self.pretransform_config is not None):
            raise ValueError(
                "exactly one of `use_model_pretransform` and `pretransform_config` must be given"
            )
        return self


class SourceMixFields(PretransformFields):
    """The sum of several recordings by name, each with its own embedding."""

    kind: ClassVar[str] = "source_mix"

    source_keys: list[str] = Field(default_factory=list)
    """Names of the recordings; a value is a mapping from some of them to audio or codes."""
    pre_encoded: bool = False
    """Values are codes."""
    allow_null_source: bool = False
    """A value without any recording is a learned embedding, `source_length` positions long."""
    source_length: int | None = Field(None, gt=0)
    """Positions of a value without any recording."""

    @model_validator(mode="after")
    def _null_source(self) -> "SourceMixFields":
        if self.allow_null_source and self.source_length is None:
            raise ValueError("Source length must be specified if allowing null sources")
        return self


CONDITIONERS: dict[str, type[ConditionerFields]] = {
    "audio_prompt": AudioPromptFields,
    "causal_lm": CausalLMFields,
    "clap_audio": ClapAudioFields,
    "clap_text": ClapTextFields,
    "int": IntFields,
    "list": ListFields,
    "lut": TokenizerLUTFields,
    "number": NumberFields,
    "phoneme": PhonemeFields,
    "pretransform": PretransformFields,
    "source_mix": SourceMixFields,
    "t5": T5Fields,
    "t5gemma": T5GemmaFields,
    "text": TextFields,
    "tokenizer_lut": TokenizerLUTFields,
}
"""Fields of each type."""
