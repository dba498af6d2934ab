"""Optimizer and learning-rate schedule from the `model` section."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from whalesong.core.errors import ConfigError
from whalesong.core.instantiate import instantiate


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    *,
    optimizer: Mapping[str, Any],
    lr_scheduler: Mapping[str, Any] | None,
    max_steps: int,
) -> dict[str, Any]:
    """Build what `configure_optimizers` returns, from `_target_` sections as in NeMo's speechlm2.

    Args:
        parameters: all parameters of the model; frozen ones are left out.
        optimizer: `{_target_, lr, ...}`.
        lr_scheduler: `{_target_, ...}`, stepped after each optimizer step; a `max_steps` of null is
            filled in.
        max_steps: `trainer.max_steps`; -1 when there is no limit.

    Raises:
        ConfigError: nothing is left to train, or the schedule needs a length that is not given.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise ConfigError(
            "`model.freeze_params` freezes every parameter, so there is nothing to train."
        )
    built: torch.optim.Optimizer = instantiate(optimizer, params=trained)
    result: dict[str, Any] = {"optimizer": built}
    if lr_scheduler is not None:
        settings = dict(lr_scheduler)
        if settings.get("max_steps", 0) is None:
            if max_steps <= 0:
                raise ConfigError(
                    "`model.lr_scheduler.max_steps` is null, so `trainer.max_steps` must be set, "
                    f"but is {max_steps}."
                )
            settings["max_steps"] = max_steps
        scheduler = instantiate(settings, optimizer=built)
        result["lr_scheduler"] = {"scheduler": scheduler, "interval": "step", "frequency": 1}
    return result
