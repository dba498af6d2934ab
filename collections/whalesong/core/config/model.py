"""What the `model` sections of all families have in common."""

from typing import Literal

from pydantic import ConfigDict, Field

from whalesong.core.config.kinds import MAX_WIDTH, ClassName
from whalesong.core.config.optim import OptimConfig
from whalesong.core.schema import Schema

ParameterKind = Literal["norm", "bias", "embedding"]


class TargetConfig(Schema):
    """A class by its dotted name and its arguments, which are checked against its signature."""

    model_config = ConfigDict(extra="allow")

    target: ClassName = Field(alias="_target_")
    """Dotted name of the class; only classes that Whalesong knows may stand here."""


class OptimizerSection(TargetConfig):
    """An optimizer by its class, and which parameters it leaves without weight decay."""

    no_decay: list[ParameterKind] = Field(default_factory=list)
    """Kinds of parameters without weight decay: those of norm layers and of embeddings, and, as
    "bias", all others with fewer than two dimensions."""


class LoraSettings(Schema):
    """Fields of `peft.LoraConfig` that can be merged back into the plain model."""

    task_type: Literal["CAUSAL_LM"] | None = "CAUSAL_LM"
    r: int = Field(8, gt=0, le=MAX_WIDTH)
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


class ModelConfig(Schema):
    """Keys that every family's `model` section has."""

    target: str | None = None
    """Dotted name of the model class, as NeMo writes it into every archive."""
    nemo_version: str | None = None
    """Written by NeMo."""
    freeze_params: list[str] = Field(default_factory=list)
    """Regular expressions of parameters to freeze, over names as they are without LoRA."""
    prevent_freeze_params: list[str] = Field(default_factory=list)
    """Regular expressions that win over `freeze_params` and over what `lora` freezes."""
    init_from: str | None = None
    """An archive of the same model class and sizes, with whose weights training begins."""
    lora: LoraSettings | None = None
    """Train low-rank updates and freeze the weights under them."""
    activation_checkpointing: bool = False
    """Recompute the blocks in the backward pass instead of keeping what is inside them."""
    save_slim_nemo: bool = False
    """Archives hold only what was trained, with name and fingerprint of the frozen parts."""
    optimizer: OptimizerSection | None = None
    lr_scheduler: TargetConfig | None = None
    optim: OptimConfig | None = None
    """NeMo's older form of the two: `{name, lr, ..., sched: {name, ...}}`."""
