"""How noisy a text is at each moment between 0, clean, and 1, all masked."""

from typing import Any

import torch
from torch import Tensor

from whalesong.core.errors import ConfigError
from whalesong.core.parts import NoiseSchedule


class LogLinearNoise:
    """Masks the share `(1 - eps) t` of the tokens at time t.

    The weight of a masked token in the likelihood, `noise_rate / (exp(total_noise) - 1)`, is then
    1 / t whatever `eps` is.

    Args:
        eps: share of the tokens that is left at time 1.
        min_time: see `NoiseSchedule`.

    Raises:
        ConfigError: a value that is not between 0 and 1.
    """

    def __init__(self, eps: float = 1e-3, min_time: float = 1e-3) -> None:
        for name, value in (("eps", eps), ("min_time", min_time)):
            if not 0 < value < 1:
                raise ConfigError(f"`{name}` of the noise must be between 0 and 1, but is {value}.")
        self.eps, self.min_time = eps, min_time

    def total_noise(self, t: Tensor) -> Tensor:
        """`-log(1 - (1 - eps) t)`."""
        return -torch.log1p(-(1 - self.eps) * t)

    def noise_rate(self, t: Tensor) -> Tensor:
        """`(1 - eps) / (1 - (1 - eps) t)`."""
        return (1 - self.eps) / (1 - (1 - self.eps) * t)


def mask_rate(total_noise: Tensor) -> Tensor:
    """Probability that a token is masked."""
    return -torch.expm1(-total_noise)


def likelihood_weight(noise_rate: Tensor, total_noise: Tensor) -> Tensor:
    """Weight of a masked token in the bound of the likelihood in continuous time."""
    return noise_rate / torch.expm1(total_noise)


def sample_times(batch_size: int, *, min_time: float) -> Tensor:
    """Times of the rows of a batch (B,), from torch's global generator.

    Each is uniform between `min_time` and 1. Together they are spread evenly, one in each of B
    equal parts, which makes the loss of a batch less noisy; the order is random, so that the time
    of a row has nothing to do with its place in the batch.
    """
    part = torch.randperm(batch_size) + torch.rand(batch_size)
    return min_time + (1 - min_time) * part / max(batch_size, 1)


def require_schedule(noise_schedule: Any) -> NoiseSchedule:
    """The schedule, if it is one.

    Raises:
        ConfigError: there is none, or it lacks something.
    """
    if isinstance(noise_schedule, NoiseSchedule):
        return noise_schedule
    given = "missing" if noise_schedule is None else f"a {type(noise_schedule).__name__}"
    raise ConfigError(
        "`model_type.noise_schedule` must have min_time, total_noise and noise_rate for mdlm, such "
        f"as {{_target_: {LogLinearNoise.__module__}.LogLinearNoise}}, but is {given}."
    )
