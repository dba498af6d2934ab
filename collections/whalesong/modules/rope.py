"""Rotary positions (RoFormer, arXiv 2104.09864), over a part of each head if wanted."""

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, (..., 1, T, W) in fp32, which broadcast over heads; W is the rotary width."""


def rotation_at(positions: Tensor, width: int, *, base: float = 10000.0) -> Rotation:
    """The rotation of each position.

    Args:
        positions: (T,) or (B, T), integers.
        width: W, features of a head that are rotated; even.
        base: wavelength of the slowest pair, over 2 pi.
    """
    index = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() * base ** (-index / width)
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(-3)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the first W features of queries or keys (B, H, T, dh); the others stay.

    Feature i turns together with feature i + W / 2.
    """
    cos, sin = rotation
    turned, rest = x.split((cos.shape[-1], x.shape[-1] - cos.shape[-1]), dim=-1)
    first, second = turned.chunk(2, dim=-1)
    turned = (turned * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned
