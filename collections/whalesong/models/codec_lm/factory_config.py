"""The schema of `create_audio_lm_from_config` (specification: language model factory).

All of it is light: nothing of torch is imported before a backbone is built.
"""

from collections.abc import Callable
from enum import StrEnum
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    TypeAdapter,
    create_model,
    field_validator,
)

from whalesong.models.codec_lm.backbone_config import ContinuousTransformerConfig
from whalesong.modules.codec.config import pretransform_union
from whalesong.modules.conditioning.section import ConditioningSection


class LanguageModelType(StrEnum):
    """Types of language models that come with Whalesong."""

    CONTINUOUS_TRANSFORMER = "continuous_transformer"


class CodebookPattern(StrEnum):
    """How the codebooks of a frame are spread over the steps of the sequence."""

    PARALLEL = "parallel"
    DELAY = "delay"
    UNROLL = "unroll"
    MUSICLM = "musiclm"
    COARSE_FIRST = "coarse_first"


class FactoryModel(BaseModel):
    """Base of the factory's models."""

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


class LanguageModelConfig(FactoryModel):
    """Configuration for language model"""

    type: str
    """Language model type"""
    config: dict[str, Any]
    """Model-specific configuration"""
    codebook_pattern: CodebookPattern = CodebookPattern.DELAY
    """Codebook pattern type"""
    codebook_pattern_config: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the pattern: `delays`, `flattening` or `group_by`."""
    cross_attention_cond_ids: list[str] = Field(default_factory=list)
    """Cross attention conditioning IDs"""
    prepend_cond_ids: list[str] = Field(default_factory=list)
    """Prepend conditioning IDs"""
    global_cond_ids: list[str] = Field(default_factory=list)
    """Global conditioning IDs"""

    @property
    def cond_ids(self) -> list[str]:
        """All conditions that the model uses, each once."""
        ids = self.cross_attention_cond_ids + self.prepend_cond_ids + self.global_cond_ids
        return list(dict.fromkeys(ids))

    @property
    def default_cond_dim(self) -> int:
        """Width of conditions where `conditioning.cond_dim` is left out."""
        raise NotImplementedError(f"{type(self).__name__} must tell `default_cond_dim`.")

    def build_backbone(self, *, memory_dim: int, prepend_dim: int, global_dim: int) -> Any:
        """Build the backbone for conditions of these widths; 0 where there are none."""
        raise NotImplementedError(f"{type(self).__name__} must build its backbone.")


class ContinuousTransformerLanguageModelConfig(LanguageModelConfig):
    """A language model on the continuous transformer."""

    type: Literal[LanguageModelType.CONTINUOUS_TRANSFORMER] = (
        LanguageModelType.CONTINUOUS_TRANSFORMER
    )
    config: ContinuousTransformerConfig
    """Continuous transformer configuration"""

    @property
    def default_cond_dim(self) -> int:
        """The width of the model."""
        return self.config.embed_dim

    def build_backbone(self, *, memory_dim: int, prepend_dim: int, global_dim: int) -> Any:
        """A `ContinuousTransformerAudioLMBackbone`."""
        from whalesong.models.codec_lm.backbone import ContinuousTransformerAudioLMBackbone

        needed = {
            "cross_attn_cond_dim": memory_dim,
            "prepend_cond_dim": prepend_dim,
            "global_cond_dim": global_dim,
        }
        for name, width in needed.items():
            if (given := getattr(self.config, name)) not in (None, 0, width):
                raise ValueError(
                    f"`model.lm.config.{name}` must be the width of its conditions ({width}), "
                    f"but is {given}."
                )
        return ContinuousTransformerAudioLMBackbone(**{**self.config.model_dump(), **needed})


LANGUAGE_MODELS: dict[str, type[LanguageModelConfig]] = {
    LanguageModelType.CONTINUOUS_TRANSFORMER.value: ContinuousTransformerLanguageModelConfig
}
"""Type -> its configuration; `register_language_model` adds to it."""


def register_language_model(config: type[LanguageModelConfig]) -> type[LanguageModelConfig]:
    """Add a language model type to the union that the schema accepts; usable as a decorator.

    Args:
        config: a subclass whose field `type` is a `Literal` with that type as default.
    """
    LANGUAGE_MODELS[str(config.model_fields["type"].default)] = config
    return config


class AudioLanguageModelConfig(FactoryModel):
    """Configuration for audio language model"""

    lm: SerializeAsAny[LanguageModelConfig]
    """Language model configuration"""
    pretransform: dict[str, Any]
    """Pretransform configuration"""
    conditioning: dict[str, Any] | None = None
    """Conditioning configuration"""

    @field_validator("lm", mode="wrap")
    @classmethod
    def _by_type(cls, value: Any, handler: Callable[[Any], Any]) -> LanguageModelConfig:
        """Validate against the registered configuration of the type."""
        name = value.get("type") if isinstance(value, dict) else None
        known = LANGUAGE_MODELS.get(str(name))
        return handler(value) if known is None else known.model_validate(value)


class AudioLanguageModelConfigContainer(FactoryModel):
    """Container for audio language model configuration"""

    model: AudioLanguageModelConfig
    """Model configuration"""
    sample_rate: int = Field(gt=0)
    """Audio sample rate"""
    model_type: Literal["lm"] = "lm"
    """As stable-audio-tools' files have it."""
    sample_size: int | None = Field(None, gt=0)
    """Samples of a training clip; kept, but not used in building the model."""
    audio_channels: int | None = Field(None, gt=0)
    """Channels of the audio; must be those of the pretransform."""
    training: dict[str, Any] | None = None
    """Settings of stable-audio-tools' trainer; kept, but not used in building the model."""


def language_model_union() -> Any:
    """All registered language model configurations as one type, told apart by `type`."""
    union = reduce(or_, LANGUAGE_MODELS.values())
    return union if len(LANGUAGE_MODELS) == 1 else Annotated[union, Field(discriminator="type")]


def container_type(**sections: Any) -> type[AudioLanguageModelConfigContainer]:
    """The container with every registered language model type.

    Args:
        sections: types of further sections of the model.
    """
    lm = (language_model_union(), Field(description="Language model configuration"))
    model = create_model(
        "AudioLanguageModelConfig", __base__=AudioLanguageModelConfig, lm=lm, **sections
    )
    return create_model(
        "AudioLanguageModelConfigContainer",
        __base__=AudioLanguageModelConfigContainer,
        model=(model, Field(description="Model configuration")),
    )


def audio_lm_json_schema() -> dict[str, Any]:
    """JSON Schema of the factory's configuration, with every type that there is."""
    container = container_type(
        pretransform=(pretransform_union(), Field(description="Pretransform configuration")),
        conditioning=(
            ConditioningSection | None,
            Field(None, description="Conditioning configuration"),
        ),
    )
    return TypeAdapter(container).json_schema()
