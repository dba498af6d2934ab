"""ScaledAdam: Adam whose steps are proportional to the size of what they change."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Shard

from whalesong.core.errors import ConfigError

Group = dict[str, Any]

_BUNDLE_NUMBERS = {"cpu": 2**18}
"""How much is updated together: what stays in the cache of a CPU."""
_LARGE_BUNDLE = 2**26
"""The same elsewhere, where few large calls are best."""


class ScaledAdam(torch.optim.Optimizer):
    """Adam with steps proportional to each tensor's RMS, which is learned beside its direction.

    Every `lr` means the same relative change in all tensors, whatever their size; 0.05 is usual.
    Where a tensor is about zero, it starts to move with the step of an RMS of `param_min_rms`.
    Tensors of one number take plain Adam steps of `lr * scalar_lr_scale`. There is no weight decay:
    scaling a tensor down is learned as well. A parameter without a gradient is left as it is.

    Source: Zipformer (arXiv 2310.11230), section 3.5, with the momentum over steps instead of
    gradients and the other settings of icefall's implementation.

    Args:
        params: parameters or groups.
        lr: relative change of a tensor in one step, about.
        betas: decay of the momentum and of the squared gradients.
        eps: added to the root of the squared gradients.
        scalar_lr_scale: `lr` of tensors of one number, and of the size of all others, by `lr`.
        param_min_rms: below it a tensor counts as that large, and its size is not learned.
        param_max_rms: above it a tensor shrinks as fast as its size may change.
        scalar_max: bound of tensors of one number.
        size_update_period: steps whose gradients are summed to learn the sizes.
        clipping_scale: gradients whose norm is above this many times the median of the norms before
            are scaled down to that; null switches it off. The norm of a group weighs each gradient
            by the RMS of its tensor.
        clipping_update_period: steps whose norms the median is of; at first there are fewer.

    Raises:
        ConfigError: a value out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.05,
        *,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        scalar_lr_scale: float = 0.1,
        param_min_rms: float = 1e-5,
        param_max_rms: float = 3.0,
        scalar_max: float = 10.0,
        size_update_period: int = 4,
        clipping_scale: float | None = None,
        clipping_update_period: int = 100,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "scalar_lr_scale": scalar_lr_scale,
            "param_min_rms": param_min_rms,
            "param_max_rms": param_max_rms,
            "scalar_max": scalar_max,
            "size_update_period": size_update_period,
            "clipping_scale": clipping_scale,
            "clipping_update_period": clipping_update_period,
        }
        _check(defaults)
        super().__init__(params, {**defaults, "gradient_norms": ()})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters that have a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            bundles = list(_bundles(group["params"]))
            factor = _clipping_factor(group, bundles) if group["clipping_scale"] else 1.0
            for params in bundles:
                _move(group, self._bundle(params, factor=factor))
        return loss

    def _bundle(self, params: list[Tensor], *, factor: float) -> "_Bundle":
        """What a step of these parameters needs; counts the step."""
        states = [self.state[parameter] for parameter in params]
        for parameter, state in zip(params, states, strict=True):
            if not state:
                state.update(_new_state(parameter))
            state["step"] += 1
        gradients = _local(parameter.grad for parameter in params)
        if factor < 1:
            gradients = torch._foreach_mul(gradients, factor)
        velocity = _local(state["velocity"] for state in states)
        return _Bundle(params, states, _local(params), gradients, velocity)


class _Bundle(NamedTuple):
    """Tensors that are changed together: all of one number, or all of more.

    Of sharded ones, `values`, `gradients` and `velocity` are this rank's.
    """

    params: list[Tensor]
    states: list[dict[str, Any]]
    values: list[Tensor]
    gradients: list[Tensor]
    velocity: list[Tensor]


def _new_state(parameter: Tensor) -> dict[str, Any]:
    state = {
        "step": 0,
        "velocity": torch.zeros_like(parameter),
        "square": torch.zeros_like(parameter),
    }
    if parameter.numel() > 1:
        kind = {"device": parameter.device, "dtype": parameter.dtype}
        state["size_gradient"] = torch.zeros(2, **kind)  # sums of it and of its square
        state["size_square"] = torch.zeros((), **kind)
    return state


def _move(group: Group, bundle: _Bundle) -> None:
    """Change the parameters of a bundle by one step."""
    torch._foreach_mul_(bundle.velocity, group["betas"][0])
    if bundle.params[0].numel() > 1:
        rms = _rms(bundle.params)
        _learn_sizes(group, bundle, rms)
        _add_directions(group, bundle, group["lr"] * rms.clamp_min(group["param_min_rms"]))
        torch._foreach_add_(bundle.values, bundle.velocity)
    else:
        rate = group["lr"] * group["scalar_lr_scale"]
        rates = torch.full((len(bundle.params),), rate, device=bundle.values[0].device)
        _add_directions(group, bundle, rates)
        torch._foreach_add_(bundle.values, bundle.velocity)
        torch._foreach_clamp_max_(bundle.values, group["scalar_max"])
        torch._foreach_clamp_min_(bundle.values, -group["scalar_max"])


def _add_directions(group: Group, bundle: _Bundle, rates: Tensor) -> None:
    """Add Adam's step, at the given rate for each tensor, to the velocity."""
    momentum, decay = group["betas"]
    squares = _local(state["square"] for state in bundle.states)
    torch._foreach_mul_(squares, decay)
    torch._foreach_addcmul_(squares, bundle.gradients, bundle.gradients, 1 - decay)
    scales = torch._foreach_sqrt(squares)
    seen = [math.sqrt(1 - decay ** state["step"]) for state in bundle.states]
    torch._foreach_div_(scales, seen)
    torch._foreach_add_(scales, group["eps"])
    divisors = ((momentum - 1) * rates).reciprocal().to(scales[0].dtype)
    torch._foreach_mul_(scales, list(divisors.unbind()))
    torch._foreach_addcdiv_(bundle.velocity, bundle.gradients, scales)


def _learn_sizes(group: Group, bundle: _Bundle, rms: Tensor) -> None:
    """Gather the gradients of the sizes; each `size_update_period` steps, change them."""
    pairs = zip(bundle.values, bundle.gradients, strict=True)
    slopes = torch.stack([torch.dot(p.flatten(), g.flatten()).float() for p, g in pairs])
    slopes = sum_over_shards(slopes, bundle.params[0])
    gathered = [state["size_gradient"] for state in bundle.states]
    torch._foreach_add_(gathered, list(torch.stack((slopes, slopes * slopes), dim=1).unbind()))
    period = group["size_update_period"]
    due = [i for i, state in enumerate(bundle.states) if state["step"] % period == 0]
    if not due:
        return
    rates = _size_rates(group, [bundle.states[i] for i in due], rms[due])
    rates = ((1 - group["betas"][0]) * rates).to(bundle.velocity[0].dtype)
    changes = torch._foreach_mul([bundle.values[i] for i in due], list(rates.unbind()))
    torch._foreach_add_([bundle.velocity[i] for i in due], changes)


def _size_rates(group: Group, states: Sequence[dict[str, Any]], rms: Tensor) -> Tensor:
    """Relative changes of the sizes of tensors, from what has been gathered; starts anew."""
    period, decay = group["size_update_period"], group["betas"][1] ** group["size_update_period"]
    slope, square = torch.stack([state["size_gradient"] for state in states]).float().unbind(1)
    squares = torch.stack([state["size_square"] for state in states]).float()
    squares = decay * squares + (1 - decay) * square / period
    for state, new in zip(states, squares.unbind(), strict=True):
        state["size_square"].copy_(new)
        state["size_gradient"].zero_()
    seen = squares.new_tensor([1 - decay ** (state["step"] // period) for state in states])
    rate = group["lr"] * group["scalar_lr_scale"]
    learned = -rate * slope / ((squares / seen).sqrt() + group["eps"])
    learned = torch.where(rms < group["param_min_rms"], 0.0, learned)
    too_large = (rms > group["param_max_rms"]) & (square > 0)
    return torch.where(too_large, -rate * period, learned)


def _check(settings: dict[str, Any]) -> None:
    """Refuse values out of their range."""
    above_zero = ("lr", "eps", "param_min_rms", "param_max_rms", "scalar_max", "scalar_lr_scale")
    for key in (*above_zero, "size_update_period", "clipping_update_period", "clipping_scale"):
        value = settings[key]
        if value is not None and not value > 0:
            raise ConfigError(f"`{key}` of ScaledAdam must be above 0, but is {value}.")
    for beta in settings["betas"]:
        if not 0 <= beta < 1:
            raise ConfigError(f"`betas` of ScaledAdam must be from 0 to below 1, but has {beta}.")


def _bundles(params: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters with a gradient, in runs of one kind that are not too large."""
    bundle: list[Tensor] = []
    numbers = 0
    for parameter in params:
        if parameter.grad is None:
            continue
        numbers += parameter.numel()
        limit = _BUNDLE_NUMBERS.get(parameter.device.type, _LARGE_BUNDLE)
        if bundle and (numbers > limit or _kind(parameter) != _kind(bundle[0])):
            yield bundle
            bundle, numbers = [], parameter.numel()
        bundle.append(parameter)
    if bundle:
        yield bundle


def _kind(parameter: Tensor) -> tuple[Any, ...]:
    placed = (parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else ()
    return parameter.dtype, parameter.device, parameter.numel() == 1, *placed


def _clipping_factor(group: Group, bundles: Sequence[Sequence[Tensor]]) -> float:
    """What to multiply the gradients of a group by; remembers their norm."""
    norm = math.sqrt(sum(_relative_square(group, params) for params in bundles))
    before = group["gradient_norms"]
    threshold = group["clipping_scale"] * median(before) if before else math.inf
    if 0 < norm < math.inf:
        group["gradient_norms"] = (*before, norm)[-group["clipping_update_period"] :]
    return threshold / norm if norm > threshold else 1.0


def _relative_square(group: Group, params: Sequence[Tensor]) -> float:
    """Sum of squared gradients, each weighted by how far a step moves its tensor."""
    squares = _squares([parameter.grad for parameter in params])
    if params[0].numel() > 1:
        squares = squares * _rms(params).clamp_min(group["param_min_rms"]).square()
    return squares.sum().item()


def _rms(params: Sequence[Tensor]) -> Tensor:
    """Root of the mean square of each tensor, (tensors,)."""
    counts = torch.tensor([float(p.numel()) for p in params])
    return (_squares(params) / counts.to(params[0].device, non_blocking=True)).sqrt()


def _squares(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of squares of each tensor, (tensors,)."""
    norms = torch._foreach_norm(_local(tensors), dtype=torch.float32)
    return sum_over_shards(torch.stack(norms).square(), tensors[0])


def sum_over_shards(sums: Tensor, tensor: Tensor) -> Tensor:
    """Add up what each rank has summed over its part of `tensor`, where that is sharded."""
    if not isinstance(tensor, DTensor):
        return sums
    parts = [Partial() if isinstance(p, Shard) else p for p in tensor.placements]
    return DTensor.from_local(sums, tensor.device_mesh, parts).full_tensor()


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor; all of it, unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _local(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [local_part(tensor) for tensor in tensors]
