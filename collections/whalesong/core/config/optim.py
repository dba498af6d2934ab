"""Schemas of optimizers and learning-rate schedules by name.

They declare the keys of those that are known by name without importing any of them; a test
compares them with the real signatures.
"""

from pydantic import Field, model_validator

from whalesong.core.config.kinds import BelowOne, ClassName, Count, NotNegative, Positive, Share
from whalesong.core.config.trainer import LibrarySchema


class SchedulerConfig(LibrarySchema):
    """A learning-rate schedule by name, NeMo's or Eden, or by class; a key counts where that one
    has it."""

    name: str | None = None
    target: ClassName | None = Field(None, alias="_target_")
    max_steps: int | None = None
    warmup_steps: Count | None = None
    warmup_ratio: Share | None = None
    hold_steps: Count | None = None
    hold_ratio: Share | None = None
    constant_steps: Count | None = None
    constant_ratio: Share | None = None
    min_lr: NotNegative | None = None
    last_epoch: int | None = Field(None, ge=-1)
    d_model: int | None = Field(None, gt=0)
    decay_rate: Positive | None = None
    power: NotNegative | None = None
    cycle: bool | None = None
    gamma: Positive | None = None
    step_size: int | None = Field(None, gt=0)
    lr_batches: Positive | None = None
    lr_epochs: Positive | None = None
    warmup_batches: Count | None = None
    warmup_start: Share | None = None

    @model_validator(mode="after")
    def _one_name(self) -> "SchedulerConfig":
        if (self.name is None) == (self.target is None):
            raise ValueError("must have one of the keys `name` and `_target_`")
        return self


class OptimConfig(LibrarySchema):
    """An optimizer by name, NeMo's or scaled_adam, or by class; a key counts where that one has
    it."""

    name: str | None = None
    """For example "adamw"."""
    target: ClassName | None = Field(None, alias="_target_")
    """For example torch.optim.AdamW."""
    lr: float = Field(gt=0)
    """Learning rate at the peak."""
    weight_decay: NotNegative | None = None
    betas: tuple[BelowOne, BelowOne] | None = None
    eps: NotNegative | tuple[NotNegative, NotNegative] | None = None
    amsgrad: bool | None = None
    momentum: NotNegative | None = None
    dampening: float | None = None
    nesterov: bool | None = None
    grad_averaging: bool | None = None
    luc: bool | None = None
    scale_parameter: bool | None = None
    relative_step: bool | None = None
    warmup_init: bool | None = None
    clip_threshold: Positive | None = None
    decay_rate: float | None = None
    scalar_lr_scale: NotNegative | None = None
    param_min_rms: NotNegative | None = None
    param_max_rms: NotNegative | None = None
    scalar_max: NotNegative | None = None
    size_update_period: int | None = Field(None, gt=0)
    clipping_scale: Positive | None = None
    clipping_update_period: int | None = Field(None, gt=0)
    foreach: bool | None = None
    fused: bool | None = None
    sched: SchedulerConfig | None = None
    """How the learning rate changes; constant if null."""

    @model_validator(mode="after")
    def _one_name(self) -> "OptimConfig":
        if (self.name is None) == (self.target is None):
            raise ValueError("must have one of the keys `name` and `_target_`")
        return self
