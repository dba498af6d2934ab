"""Oobleck: the convolutional autoencoder of stable-audio-tools (Evans et al., arXiv:2402.04825).

Its modules carry the names of the published weights; weight norm is folded when these are loaded.
"""

import math

import torch
from torch import Tensor, nn

_DILATIONS = (1, 3, 9)


class SnakeBeta(nn.Module):
    """`x + sin(a x)^2 / b` with `a`, `b` per channel, kept as logarithms (arXiv:2206.04658)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N) -> (B, C, N)."""
        alpha, beta = self.alpha.exp()[:, None], self.beta.exp()[:, None]
        return x + torch.sin(alpha * x).square() / (beta + 1e-9)


def _activation(channels: int, use_snake: bool) -> nn.Module:
    return SnakeBeta(channels) if use_snake else nn.ELU()


class ResidualUnit(nn.Module):
    """A dilated convolution and a pointwise one, added to the input."""

    def __init__(self, channels: int, *, dilation: int, use_snake: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _activation(channels, use_snake),
            nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation),
            _activation(channels, use_snake),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N) -> (B, C, N)."""
        return x + self.layers(x)


def _residual_units(channels: int, use_snake: bool) -> list[nn.Module]:
    return [ResidualUnit(channels, dilation=d, use_snake=use_snake) for d in _DILATIONS]


class _Block(nn.Module):
    """Holds its layers under the name of the published weights."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class OobleckEncoder(_Block):
    """Audio (B, C, N) to latents (B, latent_dim, F); arguments as in `OobleckEncoderFields`."""

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        latent_dim: int,
        c_mults: list[int],
        strides: list[int],
        use_snake: bool,
    ) -> None:
        widths = [channels, *(mult * channels for mult in c_mults)]
        layers: list[nn.Module] = [nn.Conv1d(in_channels, widths[0], 7, padding=3)]
        for width, wider, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            layers.append(_encoder_block(width, wider, stride=stride, use_snake=use_snake))
        layers.append(_activation(widths[-1], use_snake))
        layers.append(nn.Conv1d(widths[-1], latent_dim, 3, padding=1))
        super().__init__(*layers)


class OobleckDecoder(_Block):
    """Latents (B, latent_dim, F) to audio (B, C, N); arguments as in `OobleckDecoderFields`."""

    def __init__(
        self,
        *,
        out_channels: int,
        channels: int,
        latent_dim: int,
        c_mults: list[int],
        strides: list[int],
        use_snake: bool,
        use_nearest_upsample: bool,
        final_tanh: bool,
    ) -> None:
        widths = [channels, *(mult * channels for mult in c_mults)]
        layers: list[nn.Module] = [nn.Conv1d(latent_dim, widths[-1], 7, padding=3)]
        for level in reversed(range(len(strides))):
            wider, width, stride = widths[level + 1], widths[level], strides[level]
            make = _nearest_upsampling if use_nearest_upsample else _learned_upsampling
            upsampling = make(wider, width, stride)
            units = _residual_units(width, use_snake)
            layers.append(_Block(_activation(wider, use_snake), upsampling, *units))
        layers.append(_activation(widths[0], use_snake))
        layers.append(nn.Conv1d(widths[0], out_channels, 7, padding=3, bias=False))
        layers.append(nn.Tanh() if final_tanh else nn.Identity())
        super().__init__(*layers)


def _encoder_block(width: int, wider: int, *, stride: int, use_snake: bool) -> nn.Module:
    conv = nn.Conv1d(width, wider, 2 * stride, stride=stride, padding=math.ceil(stride / 2))
    return _Block(*_residual_units(width, use_snake), _activation(width, use_snake), conv)


def _learned_upsampling(wider: int, width: int, stride: int) -> nn.Module:
    padding = math.ceil(stride / 2)
    return nn.ConvTranspose1d(wider, width, 2 * stride, stride=stride, padding=padding)


def _nearest_upsampling(wider: int, width: int, stride: int) -> nn.Module:
    conv = nn.Conv1d(wider, width, 2 * stride, padding="same", bias=False)
    return nn.Sequential(nn.Upsample(scale_factor=stride, mode="nearest"), conv)
