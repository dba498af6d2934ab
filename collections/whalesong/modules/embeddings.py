"""Absolute positions: sinusoidal and learned."""

import math

import torch
from torch import Tensor, nn


class SinusoidalPositions(nn.Module):
    """Fixed waves, cosines before sines, frequencies from 1 down to 1 / 10000.

    The table of tensor2tensor and of Musicgen. It is computed from the positions themselves, so
    that it has no end and no half-precision weights could blur it.

    Args:
        d_model: D, width of an embedding; even.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        if d_model % 2 or d_model < 4:
            raise ValueError(f"`d_model` must be even and at least 4 with sinusoidal positions, "
                             f"but is {d_model}.")  # fmt: skip
        self.d_model = d_model

    def forward(self, positions: Tensor) -> Tensor:
        """Embed positions (..., T), integers from 0, as (..., T, D) in fp32."""
        half = self.d_model // 2
        index = torch.arange(half, device=positions.device, dtype=torch.float32)
        angles = positions[..., None].float() * torch.exp(index * -(math.log(10000) / (half - 1)))
        return torch.cat((angles.cos(), angles.sin()), dim=-1)


class LearnedPositions(nn.Embedding):
    """One learned vector for each position up to a limit.

    Args:
        max_positions: positions that there are.
        d_model: D, width of an embedding.
    """

    def __init__(self, max_positions: int, d_model: int) -> None:
        super().__init__(max_positions, d_model)
        nn.init.normal_(self.weight, std=0.02)
