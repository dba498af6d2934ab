"""Conditioners of single values: whole numbers, numbers, and names from a list."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from whalesong.modules.conditioning.conditioner import Condition, Conditioner, require_texts, single

NUM_FREQUENCIES = 128
_LOWEST_FREQUENCY, _HIGHEST_FREQUENCY = 0.5, 10000.0


class IntConditioner(Conditioner):
    """A learned embedding for each whole number of a range, (B, 1, C).

    Args:
        output_dim: C.
        min_val: smaller numbers count as this one.
        max_val: greater numbers count as this one.
    """

    def __init__(self, output_dim: int, *, min_val: int = 0, max_val: int = 512) -> None:
        super().__init__(output_dim)
        self.min_val = min_val
        self.max_val = max_val
        self.int_embedder = nn.Embedding(max_val - min_val + 1, output_dim)

    def embed(self, values: Sequence[Any]) -> Condition:
        """Embed whole numbers."""
        numbers = torch.tensor([_whole_number(value) for value in values], device=self.device)
        return single(self.int_embedder(numbers.clamp(self.min_val, self.max_val) - self.min_val))


class NumberConditioner(Conditioner):
    """A number as Fourier features of its place in a range, mapped linearly, (B, 1, C).

    Args:
        output_dim: C.
        min_val: smaller numbers count as this one.
        max_val: greater numbers count as this one.
        fourier_features_type: frequencies are learned, or fixed and exponentially spaced.
    """

    def __init__(
        self,
        output_dim: int,
        *,
        min_val: float = 0.0,
        max_val: float = 1.0,
        fourier_features_type: Literal["learned", "expo"] = "learned",
    ) -> None:
        super().__init__(output_dim)
        self.min_val = min_val
        self.max_val = max_val
        if fourier_features_type == "learned":
            self.frequencies = nn.Parameter(torch.randn(NUM_FREQUENCIES))
        else:
            bounds = math.log(_LOWEST_FREQUENCY), math.log(_HIGHEST_FREQUENCY)
            spaced = torch.linspace(*bounds, NUM_FREQUENCIES).exp()
            self.register_buffer("frequencies", spaced, persistent=False)
        self.proj_out = nn.Linear(2 * NUM_FREQUENCIES + 1, output_dim)

    def embed(self, values: Sequence[Any]) -> Condition:
        """Embed numbers."""
        numbers = torch.tensor([_finite_number(value) for value in values], device=self.device)
        place = (numbers.clamp(self.min_val, self.max_val) - self.min_val) / (
            self.max_val - self.min_val
        )
        phases = 2 * math.pi * place[:, None] * self.frequencies.float()
        features = torch.cat([place[:, None], phases.sin(), phases.cos()], dim=1)
        return single(self.proj_out(features.to(self.dtype)))


class ListConditioner(Conditioner):
    """A learned embedding for each name of a list, and one for all other names, (B, 1, C).

    Args:
        output_dim: C.
        options: the names.
    """

    def __init__(self, output_dim: int, *, options: Sequence[str]) -> None:
        super().__init__(output_dim)
        self.index = {option: number for number, option in enumerate(options, start=1)}
        self.embedder = nn.Embedding(len(self.index) + 1, output_dim)

    def embed(self, values: Sequence[Any]) -> Condition:
        """Embed names."""
        require_texts("list", values)
        numbers = [self.index.get(value, 0) for value in values]
        return single(self.embedder(torch.tensor(numbers, device=self.device)))


def _finite_number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, str) or not math.isfinite(number):
        raise ValueError(f"a `number` condition must be a finite number, but is {value!r}.")
    return number


def _whole_number(value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if isinstance(value, str) or number is None or number != value:
        raise ValueError(f"an `int` condition must be a whole number, but is {value!r}.")
    return number
