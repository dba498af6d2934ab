"""Phases for magnitudes by Griffin and Lim's iteration, in blocks, so that it can stream."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whalesong.modules.codec.spectrum import ShortTimeFourier


@dataclass(frozen=True)
class Blocks:
    """How frames are cut: block b holds the frames [b * length, (b + 1) * length).

    Attributes:
        length: frames of a block.
        context: frames on each side of a block that are computed with it.
        fade: frames over which a block takes over from the one before; at most `context`.
    """

    length: int = 32
    context: int = 8
    fade: int = 3

    @property
    def receptive_field(self) -> tuple[int, int]:
        """Frames to the left and to the right on which a frame depends at most."""
        right = self.length + self.context - 1
        return right + self.fade, right


class BlockGriffinLim(nn.Module):
    """Audio from magnitudes by the fast Griffin-Lim iteration from a fixed phase.

    Every block is computed alone and faded into its neighbour, so that the result depends on few
    frames around. The first phase advances like the bins' own frequencies in absolute time, which
    is why neighbours agree where they overlap.

    Args:
        transform: the spectra.
        blocks: the cut into blocks; best where `length * hop_length` is a multiple of `n_fft`.
        num_iterations: rounds; each costs two Fourier transforms.
        momentum: of the fast iteration; 0 is the plain one.
    """

    phase_offsets: Tensor
    fade_in: Tensor

    def __init__(
        self,
        transform: ShortTimeFourier,
        *,
        blocks: Blocks,
        num_iterations: int = 24,
        momentum: float = 0.99,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.blocks = blocks
        self.num_iterations = num_iterations
        self.momentum = momentum
        self.register_buffer("phase_offsets", _smooth_phases(transform.num_bins), persistent=False)
        samples = blocks.fade * transform.hop_length
        ramp = (torch.arange(samples) + 0.5) / max(samples, 1)
        self.register_buffer("fade_in", (torch.pi / 2 * ramp).sin().square(), persistent=False)

    def forward(self, magnitudes: Tensor) -> Tensor:
        """Magnitudes (B, F, num_bins) -> audio (B, F * hop_length)."""
        num_frames = magnitudes.shape[1]
        context, missing = self.blocks.context, -num_frames % self.blocks.length
        padded = nn.functional.pad(magnitudes, (0, 0, context, missing + context))
        return self.render(padded, None)[0][:, : num_frames * self.transform.hop_length]

    def render(self, magnitudes: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute whole blocks.

        Args:
            magnitudes: (B, context + n * length + context, num_bins): n blocks with what stands
                before and behind them, zeros where there is nothing.
            tail: what the block before gave beyond its end; None at the beginning.

        Returns:
            audio (B, n * length * hop_length), and the tail (B, fade * hop_length) for what comes.
        """
        size = self.blocks.length + 2 * self.blocks.context
        windows = magnitudes.unfold(1, size, self.blocks.length).transpose(2, 3)  # (B, n, size, .)
        waves = self._iterate(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])
        hop, fade = self.transform.hop_length, len(self.fade_in)
        begin = self.blocks.context * hop
        end = begin + self.blocks.length * hop
        bodies, tails = waves[..., begin:end].clone(), waves[..., end : end + fade]
        first = bodies[:, :1, :fade] if tail is None else tail[:, None]
        before = torch.cat([first, tails[:, :-1]], dim=1)
        bodies[..., :fade] = before + (bodies[..., :fade] - before) * self.fade_in
        return bodies.flatten(1), tails[:, -1]

    def _iterate(self, magnitudes: Tensor) -> Tensor:
        """Magnitudes (B, F, num_bins) -> audio (B, F * hop_length), blocks as they are."""
        spectra = torch.polar(magnitudes, self._first_phases(magnitudes.shape[1]))
        previous = torch.zeros_like(torch.view_as_real(spectra))
        for _ in range(self.num_iterations):
            possible = torch.view_as_real(self.transform(self.transform.inverse(spectra)))
            ahead = torch.lerp(previous, possible, 1 + self.momentum)
            gains = magnitudes * ahead.square().sum(-1).clamp_min(1e-18).rsqrt()
            spectra = torch.view_as_complex(ahead * gains[..., None])
            previous = possible
        return self.transform.inverse(spectra)

    def _first_phases(self, num_frames: int) -> Tensor:
        """(num_frames, num_bins)"""
        n_fft = self.transform.n_fft
        frames = torch.arange(num_frames, device=self.phase_offsets.device)
        bins = torch.arange(self.transform.num_bins, device=frames.device)
        turns = (frames[:, None] * bins * self.transform.hop_length % n_fft) / n_fft
        return 2 * torch.pi * turns + self.phase_offsets


def _smooth_phases(num_bins: int) -> Tensor:
    """First phases of the bins: neighbours nearly agree in the middle of the window.

    That is how the bins around a tone are, which a random start finds only after many rounds; the
    drift keeps the sound from being gathered in one pulse.
    """
    drift = torch.randn(num_bins, generator=torch.Generator().manual_seed(0)).cumsum(0) / 2
    return drift - torch.pi * torch.arange(num_bins)


def unmix_bands(bands: Tensor, filters: Tensor, *, num_iterations: int = 10) -> Tensor:
    """Magnitudes (..., num_bins) without negative values whose bands come near to those given.

    Args:
        bands: (..., n_mels), positive.
        filters: weights of each band (n_mels, num_bins).
        num_iterations: multiplicative updates for the Kullback-Leibler divergence.
    """
    total = filters.sum(0)
    covered = total > 0
    total = total.clamp_min(1e-9)
    magnitudes = (bands @ filters / total).masked_fill(~covered, 0)
    for _ in range(num_iterations):
        ratios = bands / (magnitudes @ filters.T).clamp_min(1e-9)
        magnitudes = magnitudes * (ratios @ filters / total)
    return magnitudes
