"""Schemas of text models: the sections of a job, and the `model` section that they become."""

from typing import Any, Literal

from pydantic import Field, model_validator

from whalesong.core.config.model import ModelConfig, OptimizerSection, TargetConfig
from whalesong.core.config.optim import OptimConfig
from whalesong.core.schema import Schema
from whalesong.data.config import DatasetConfig, ValidationConfig


class TokenizerConfig(Schema):
    """From text to token ids and back."""

    type: Literal["numbers", "words", "characters", "bytes", "pretrained"]
    """`numbers` and `words` split at blanks; `pretrained` is a tokenizer of transformers."""
    count: int | None = Field(None, gt=0, le=10_000_000)
    """For `numbers`: how many there are, from 0 on."""
    vocabulary: list[str] | str | None = None
    """For `words` and `characters`: a list, or a text file with one of them a line."""
    path: str | None = None
    """For `pretrained`: a folder, or a name on the hub."""
    special_tokens: dict[str, str] = Field(default_factory=dict)
    """For `pretrained`: tokens to add that it has not, such as `mask_token: "[MASK]"`."""

    @model_validator(mode="after")
    def _check(self) -> "TokenizerConfig":
        needed = {"numbers": "count", "words": "vocabulary", "characters": "vocabulary"}
        needed |= {"pretrained": "path"}
        if (key := needed.get(self.type)) is not None and getattr(self, key) is None:
            raise ValueError(f"of type {self.type} must have `{key}`, but has none")
        return self


class CollatorsConfig(Schema):
    """The collators of a text model by their classes."""

    train: TargetConfig
    """Makes batches to train on."""
    validation: TargetConfig | None = None
    """Makes batches whose loss is measured; that of training if null."""
    prediction: TargetConfig | None = None
    """Makes batches to generate from; if null, validation generates nothing."""


class ModelTypeConfig(Schema):
    """The section `model_type`: all parts but the network, and how it is optimized."""

    loss: TargetConfig
    """The loss function."""
    predictor: TargetConfig
    """What generates."""
    metrics: dict[str, TargetConfig] = Field(default_factory=dict)
    """Metrics of what is generated, by names of their own."""
    noise_schedule: TargetConfig | None = None
    """How noisy each moment is, for diffusion models."""
    optimizer: OptimizerSection | None = None
    lr_scheduler: TargetConfig | None = None
    optim: OptimConfig | None = None
    """NeMo's older form of the two: `{name, lr, ..., sched: {name, ...}}`."""


class TextSizes(Schema):
    """What collators and archives need to know of the data."""

    tokenizer: TokenizerConfig
    block_size: int = Field(gt=0)
    """Tokens of a target, its end included."""
    input_block_size: int = Field(0, ge=0)
    """Tokens of a prompt, its special tokens included."""
    collators: CollatorsConfig


class DatamoduleConfig(TextSizes):
    """The section `datamodule`: tokenizer, sizes, collators and data sets."""

    train_ds: DatasetConfig | None = None
    validation_ds: ValidationConfig | None = None
    test_ds: ValidationConfig | None = None
    on_bad_cut: Literal["raise", "skip"] = "raise"
    """What an unusable example does: stop with one line, or be left out, logged and counted."""


class TextLMConfig(ModelConfig, ModelTypeConfig, TextSizes):
    """The `model` section of a text model, as archives hold it."""

    network: TargetConfig
    """The network; its section is called `model` in a job."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_lora(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("lora") is not None:
            raise ValueError("has `lora`, which is for pretrained LLMs only; leave it out")
        return data
