"""Optimizer and learning-rate schedule from the `model` section."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from whalesong.core.errors import ConfigError
from whalesong.core.instantiate import instantiate
from whalesong.core.model_config import ParameterKind
from whalesong.core.schema import validate


def build_optimizer(
    module: nn.Module,
    *,
    optimizer: Mapping[str, Any],
    lr_scheduler: Mapping[str, Any] | None,
    max_steps: int,
) -> dict[str, Any]:
    """Build what `configure_optimizers` returns, from `_target_` sections as in NeMo's speechlm2.

    Args:
        module: its parameters are trained; frozen ones are left out.
        optimizer: `{_target_, lr, ...}`, and `no_decay`: kinds of parameters without weight decay,
            see `parameter_groups`.
        lr_scheduler: `{_target_, ...}`, stepped after each optimizer step; a `max_steps` of null is
            filled in. With NeMo's classes `warmup_ratio: 0.1` is a linear warm-up over the first
            tenth of the steps.
        max_steps: `trainer.max_steps`; -1 when there is no limit.

    Raises:
        ConfigError: nothing is left to train, an unknown kind in `no_decay`, or the schedule needs
            a length that is not given.
    """
    settings = dict(optimizer)
    no_decay = validate(
        list[ParameterKind], settings.pop("no_decay", None) or [], path="model.optimizer.no_decay"
    )
    groups = parameter_groups(module, no_decay=no_decay)
    if not groups:
        raise ConfigError(
            "`model.freeze_params` freezes every parameter, so there is nothing to train."
        )
    built: torch.optim.Optimizer = instantiate(settings, params=groups)
    result: dict[str, Any] = {"optimizer": built}
    if lr_scheduler is not None:
        scheduler = instantiate(_schedule(lr_scheduler, max_steps), optimizer=built)
        result["lr_scheduler"] = {"scheduler": scheduler, "interval": "step", "frequency": 1}
    return result


def parameter_groups(
    module: nn.Module, *, no_decay: Collection[ParameterKind] = ()
) -> list[dict[str, Any]]:
    """Split the trained parameters into those with and those without weight decay.

    The split depends on the modules alone, and each group keeps the order of `named_parameters`, so
    that an optimizer state fits again after a restart.

    Args:
        module: its frozen parameters are left out.
        no_decay: kinds without decay. "norm": what a norm layer holds, by its class or by "Norm"
            in the name of the class; "embedding": what an embedding holds, likewise, also where it
            is tied to an output layer; "bias": every other parameter with fewer than two
            dimensions, such as biases and scales of channels.

    Returns:
        At most two groups for a `torch.optim` optimizer; an empty one is left out.
    """
    spared = {parameter for parameter, kind in _kinds(module) if kind in no_decay}
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed: dict[str, Any] = {"params": [p for p in trained if p not in spared]}
    kept: dict[str, Any] = {"params": [p for p in trained if p in spared], "weight_decay": 0.0}
    return [group for group in (decayed, kept) if group["params"]]


def _kinds(module: nn.Module) -> Iterator[tuple[nn.Parameter, ParameterKind | None]]:
    """The kind of each parameter, once for every module that holds it."""
    for owner in module.modules():
        for parameter in owner.parameters(recurse=False):
            yield parameter, _kind(owner, parameter)


def _kind(owner: nn.Module, parameter: nn.Parameter) -> ParameterKind | None:
    name = type(owner).__name__
    if "Norm" in name:
        return "norm"
    if isinstance(owner, nn.Embedding) or "Embedding" in name:
        return "embedding"
    return "bias" if parameter.dim() < 2 else None


def _schedule(section: Mapping[str, Any], max_steps: int) -> dict[str, Any]:
    """The section with its length filled in."""
    settings = dict(section)
    if settings.get("warmup_steps") is not None and settings.get("warmup_ratio") is not None:
        raise ConfigError(
            "`model.lr_scheduler` must have one of the keys `warmup_steps` and `warmup_ratio`, but "
            "has both; set the other one to null."
        )
    if "max_steps" not in settings:
        return settings
    if settings["max_steps"] is None:
        settings["max_steps"] = max_steps
    if settings["max_steps"] <= 0:
        raise ConfigError(
            "`model.lr_scheduler.max_steps` must be above 0, but is "
            f"{settings['max_steps']}; set `trainer.max_steps`."
        )
    return settings
