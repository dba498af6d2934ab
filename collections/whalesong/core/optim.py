"""Optimizer and learning-rate schedule from the `model` section."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from whalesong.core.config.model import ParameterKind
from whalesong.core.errors import ConfigError
from whalesong.core.instantiate import instantiate
from whalesong.core.scaled_adam import local_part, sum_over_shards
from whalesong.core.schema import validate

SCALED_ADAM = "whalesong.core.scaled_adam.ScaledAdam"
EDEN = "whalesong.core.eden.Eden"
_OPTIMIZERS = {
    "scaled_adam": SCALED_ADAM,
    "adam": "torch.optim.Adam",
    "adamw": "torch.optim.AdamW",
    "sgd": "torch.optim.SGD",
}


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
    built: torch.optim.Optimizer = instantiate(settings, path="model.optimizer", params=groups)
    result: dict[str, Any] = {"optimizer": built}
    if lr_scheduler is not None:
        settings = _schedule(lr_scheduler, max_steps)
        scheduler = instantiate(settings, path="model.lr_scheduler", optimizer=built)
        result["lr_scheduler"] = {"scheduler": scheduler, "interval": "step", "frequency": 1}
    return result


def optimizer_sections(
    model: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
    """The sections that `build_optimizer` takes.

    Args:
        model: the `model` section, with `optimizer` and perhaps `lr_scheduler`, or with `optim`,
            NeMo's older form.

    Returns:
        Optimizer and schedule, which may be null; or null where `optim` has neither `scaled_adam`
        nor `Eden`, and is for NeMo itself.

    Raises:
        ConfigError: there is no optimizer, or one that cannot be built together with Eden.
    """
    if model.get("optimizer") is not None:
        return model["optimizer"], model.get("lr_scheduler")
    if model.get("optim") is None:
        raise ConfigError("`model.optimizer` is mandatory for training, but has no value.")
    optim = model["optim"]
    optimizer, schedule = _optimizer_by_class(optim), _schedule_by_class(optim.get("sched"))
    targets = {optimizer["_target_"], None if schedule is None else schedule["_target_"]}
    if not targets & {SCALED_ADAM, EDEN}:
        return None
    if optimizer["_target_"] is None:
        raise ConfigError(
            f"`model.optim.name` must be one of {', '.join(_OPTIMIZERS)} where the schedule is "
            f"Eden, but is {optim['name']}."
        )
    return optimizer, schedule


def _optimizer_by_class(optim: Mapping[str, Any]) -> dict[str, Any]:
    target = optim.get("_target_") or _OPTIMIZERS.get(optim["name"])
    settings = {key: value for key, value in optim.items() if key not in ("name", "sched")}
    return {**settings, "_target_": target}


def _schedule_by_class(sched: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if sched is None:
        return None
    settings = {key: value for key, value in sched.items() if key != "name"}
    if sched.get("name") == "Eden" or sched.get("_target_") == EDEN:
        return {**settings, "_target_": EDEN}
    target = sched.get("_target_") or f"nemo.core.optim.lr_scheduler.{sched['name']}"
    return {"max_steps": None, **settings, "_target_": target}


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


@torch.no_grad()
def drop_zero_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Set gradients to None that are zero everywhere.

    An optimizer then leaves the parameter as it is: what no example of a step has used moves by
    neither momentum nor weight decay. Gradients must be those of all ranks together.

    Args:
        parameters: all on one device; every rank gives the same ones in the same order.
    """
    given = [parameter for parameter in parameters if parameter.grad is not None]
    if not given:
        return
    counts = torch.stack([_count_nonzero(parameter.grad) for parameter in given])
    for parameter, count in zip(given, counts.tolist(), strict=True):
        if not count:
            parameter.grad = None


def _count_nonzero(tensor: Tensor) -> Tensor:
    return sum_over_shards(local_part(tensor).count_nonzero(), tensor)
