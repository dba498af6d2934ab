"""`Refiner`: adds the quantizers of the second half to those of the first, piece by piece."""

from collections.abc import Sequence

import torch
from torch import Tensor

from whalesong.models.audiolm.arrangement import Arrangement, join_left, whole_spans
from whalesong.models.audiolm.nar import NARDecoder
from whalesong.modules.generation.sampling import RowNoise, SamplingSettings, sample

Variant = tuple[Tensor | None, float]
"""Condition (B, G) of all rows, and its weight in the guided logits."""

_NOISE = 0x4E41_5200
"""Keeps the noise of the second half apart from that of the first."""


def guided(condition: Tensor | None, nothing: Tensor | None, scale: float) -> list[Variant]:
    """Variants whose weighted sum is `nothing + scale * (condition - nothing)`, in logits.

    Args:
        condition: (B, G); None for none.
        nothing: the null condition.
        scale: 1 is no guidance, and costs nothing.
    """
    if condition is None:
        return [(nothing, 1.0)]
    steps = [(nothing, 1.0 - scale), (condition, scale)]
    return [(variant, weight) for variant, weight in steps if weight]


class Refiner:
    """New frames of B rows between what is before and behind them.

    Each piece is the target of the second half, and its prompt is what is before and behind it,
    with the pieces that are finished.

    Args:
        nar: in evaluation mode; None where the first half has all quantizers.
        left: codes (B, K, f) before the new frames.
        left_lens: (B,).
        right: codes (B, K, g) behind them.
        right_lens: (B,).
        variants: of the conditions.
        seeds: one for each row.
        temperature: 0 takes the most probable codes.
    """

    def __init__(
        self,
        nar: NARDecoder | None,
        *,
        left: Tensor,
        left_lens: Tensor,
        right: Tensor,
        right_lens: Tensor,
        variants: Sequence[Variant],
        seeds: Sequence[int],
        temperature: float = 0.0,
    ) -> None:
        self._nar, self._variants = nar, variants
        self._left, self._left_lens = left, left_lens
        self._right, self._right_lens = right, right_lens
        self._settings = SamplingSettings(temperature=temperature, top_k=0)
        stages = 0 if nar is None else len(nar.stages)
        self._noise = RowNoise([seed ^ _NOISE for seed in seeds], max(stages, 1))
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
        new = coarse.new_zeros(len(coarse), self._left.shape[1], count)
        new[:, : coarse.shape[1]] = coarse
        new.masked_fill_(~inside[:, None], 0)
        if self._nar is not None and inside.any():
            arrangement = self._arrange(new, lens)
            noise = self._noise.frames(self._num_done, self._num_done + count).to(coarse.device)
            for stage, stage_noise in zip(self._nar.stages, noise.unbind(1), strict=True):
                ids = sample(self._logits(arrangement, stage, count), self._settings, stage_noise)
                new[:, stage] = ids.masked_fill(~inside, 0)
                arrangement.codes[:, stage][arrangement.target_mask] = ids[inside]
        self._left = join_left(self._left, self._left_lens, new, lens)
        self._left_lens = self._left_lens + lens
        self._num_done += count
        return new

    def _arrange(self, new: Tensor, lens: Tensor) -> Arrangement:
        ends = self._left_lens + lens
        codes = join_left(self._left, self._left_lens, new, lens)
        codes = join_left(codes, ends, self._right, self._right_lens)
        return whole_spans(codes, ends + self._right_lens, self._left_lens, ends)

    def _logits(self, arrangement: Arrangement, stage: int, count: int) -> Tensor:
        """Guided logits (B, n, V) of the target."""
        with torch.autocast(arrangement.codes.device.type, enabled=False):
            logits = sum(
                weight * self._nar.logits(arrangement, stage, condition).float()
                for condition, weight in self._variants
            )
        frames = torch.arange(count, device=logits.device) + arrangement.begins[:, None]
        frames = frames.clamp(max=logits.shape[1] - 1)
        return logits.gather(1, frames[..., None].expand(-1, -1, logits.shape[2]))
