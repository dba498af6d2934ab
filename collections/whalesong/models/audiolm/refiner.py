"""`Refiner`: adds the quantizers of the second half to those of the first, piece by piece."""

import torch
from torch import Tensor

from whalesong.models.audiolm.arrangement import Arrangement
from whalesong.models.audiolm.nar import NARDecoder
from whalesong.models.audiolm.request import CodesRequest
from whalesong.modules.generation.sampling import RowNoise, SamplingSettings, sample

_NOISE = 0x4E41_5200
"""Keeps the noise of the second half apart from that of the first."""


class Refiner:
    """Gives new frames of B rows all their quantizers.

    Each piece is the target of the second half, and its prompt is what is before and behind it,
    with the pieces that are finished.

    Args:
        nar: in evaluation mode; None where the first half has all quantizers.
        request: what is before and behind the new frames, conditions, and seeds.
        temperature: 0 takes the most probable codes.
    """

    def __init__(
        self, nar: NARDecoder | None, request: CodesRequest, *, temperature: float = 0.0
    ) -> None:
        self._nar, self._request = nar, request
        self._settings = SamplingSettings(temperature=temperature, top_k=0)
        self._stages = range(0) if nar is None else nar.stages
        self._noise = RowNoise([seed ^ _NOISE for seed in request.seeds], len(self._stages))
        self._num_done = 0

    @torch.no_grad()
    def refine(self, coarse: Tensor, lens: Tensor) -> Tensor:
        """The next frames with all quantizers, (B, K, n), 0 behind the end of a row.

        Args:
            coarse: codes (B, k, n) of the first half.
            lens: (B,) of these frames; a row that has ended before has none.
        """
        count = coarse.shape[2]
        inside = torch.arange(count, device=coarse.device) < lens[:, None]
        new = coarse.new_zeros(len(coarse), self._request.left.shape[1], count)
        new[:, : coarse.shape[1]] = coarse.masked_fill(~inside[:, None], 0)
        if self._stages and inside.any():
            self._add_stages(new, lens, inside)
        self._request = self._request.behind(new, lens)
        self._num_done += count
        return new

    def _add_stages(self, new: Tensor, lens: Tensor, inside: Tensor) -> None:
        """Fill in the other quantizers of (B, K, n), one after the other."""
        arrangement, count = self._request.arrange(new, lens), new.shape[2]
        noise = self._noise.frames(self._num_done, self._num_done + count).to(new.device)
        for stage, stage_noise in zip(self._stages, noise.unbind(1), strict=True):
            ids = sample(self._logits(arrangement, stage, count), self._settings, stage_noise)
            new[:, stage] = ids.masked_fill(~inside, 0)
            arrangement.codes[:, stage][arrangement.target_mask] = ids[inside]

    def _logits(self, arrangement: Arrangement, stage: int, count: int) -> Tensor:
        """Guided logits (B, n, V) of the target."""
        with torch.autocast(arrangement.codes.device.type, enabled=False):
            logits = sum(
                weight * self._nar.logits(arrangement, stage, condition).float()
                for condition, weight in self._request.variants
            )
        frames = torch.arange(count, device=logits.device) + arrangement.begins[:, None]
        frames = frames.clamp(max=logits.shape[1] - 1)
        return logits.gather(1, frames[..., None].expand(-1, -1, logits.shape[2]))
