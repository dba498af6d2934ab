"""Sampling: from logits and given noise to ids, and the noise of each row of a batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK_FRAMES = 128
_REDRAW = 0x5EC0_4D0D_4A57
"""Keeps the seeds of second draws apart from those of candidates."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How ids are drawn. Filters apply in the order of the fields, each to what the last one left.

    Attributes:
        temperature: divides the logits; 0 takes the most probable id.
        top_k: keep this many most probable ids; 0 keeps all.
        top_p: keep the fewest most probable ids whose probabilities reach this sum; 0 keeps all.
            Where other code lets `top_p` replace `top_k`, set `top_k` to 0 for the same draw.
        min_p: keep ids that are at least this fraction as probable as the most probable one.
        repetition_window: look at this many ids that were generated last in the same row and
            codebook, or at as many as there are: an id that is drawn too often is drawn again, from
            the whole distribution at temperature 1; 0 does not look.
        repetition_threshold: the share of them above which an id is drawn again.

    Raises:
        ValueError: a value out of its range.
    """

    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 0.0
    min_p: float = 0.0
    repetition_window: int = 0
    repetition_threshold: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"`temperature` must be finite and at least 0, but is {self.temperature}."
            )
        for name in ("top_k", "repetition_window"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"`{name}` must be an integer of at least 0, but is {value}.")
        for name in ("top_p", "min_p", "repetition_threshold"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"`{name}` must be between 0 and 1, but is {value}.")

    @property
    def greedy(self) -> bool:
        """Whether the noise of the first draw has no influence."""
        return self.temperature == 0 or self.top_k == 1


def sample(logits: Tensor, settings: SamplingSettings, noise: Tensor) -> Tensor:
    """Draw ids (B, K) by inverting the distribution function at the noise.

    Each id depends on its own logits and noise only. An id of probability 0 is never drawn. Logits
    are not checked here: what NaN gives is an id in range, and nothing more.

    Args:
        logits: (B, K, V); log-probabilities serve as well. What is float64 stays so.
        settings: temperature and filters; the rule about repetition is `RepetitionRule`'s.
        noise: uniform in [0, 1), (B, K).
    """
    if settings.greedy:
        return logits.argmax(-1)
    values = logits if logits.dtype == torch.float64 else logits.float()
    ids = None
    if settings.top_k or settings.top_p or settings.min_p:
        size = logits.shape[-1]
        values, ids = values.topk(min(settings.top_k or size, size))  # most probable first
    if settings.temperature != 1:
        values = values / settings.temperature
    probs = values.softmax(-1)
    cdf = probs.cumsum(-1)
    last = _last_kept(probs, cdf, settings)  # (B, K, 1), or None where all are kept
    mass = cdf[..., -1:] if last is None else cdf.gather(-1, last)
    position = torch.searchsorted(cdf, noise[..., None] * mass, right=True)
    # Rounding may lead past the end.
    position = position.clamp(max=cdf.shape[-1] - 1) if last is None else position.minimum(last)
    return (position if ids is None else ids.gather(-1, position)).squeeze(-1)


def _last_kept(probs: Tensor, cdf: Tensor, settings: SamplingSettings) -> Tensor | None:
    """Position of the last id that `top_p` and `min_p` keep; `probs` fall from first to last."""
    if not settings.top_p and not settings.min_p:
        return None
    keep = probs >= settings.min_p * probs[..., :1]
    if settings.top_p:
        keep &= cdf - probs < settings.top_p
    return (keep.sum(-1, keepdim=True) - 1).clamp(min=0)


class RowNoise:
    """Uniform noise for each row, codebook and frame: a function of the row's seed and of these.

    It depends on no other row, nor on pattern, order or length, so that a row draws the same in
    every batch and in every window.

    Args:
        seeds: one integer for each row.
        num_codebooks: K.

    Raises:
        ValueError: a seed that does not fit into 64 bits with a sign.
    """

    def __init__(self, seeds: Sequence[int], num_codebooks: int) -> None:
        self.num_codebooks = num_codebooks
        self._generators = [_seeded(int(seed)) for seed in seeds]
        self._blocks: list[Tensor] = []

    def frames(self, begin: int, end: int) -> Tensor:
        """Noise of frames `begin` to `end`, (B, K, end - begin), on the CPU."""
        while len(self._blocks) * _BLOCK_FRAMES < end:
            rows = [
                torch.rand(self.num_codebooks, _BLOCK_FRAMES, generator=generator)
                for generator in self._generators
            ]
            self._blocks.append(torch.stack(rows))
        first = begin // _BLOCK_FRAMES
        blocks = self._blocks[first : max(-(-end // _BLOCK_FRAMES), first + 1)]
        offset = first * _BLOCK_FRAMES
        return torch.cat(blocks, dim=2)[:, :, begin - offset : end - offset]


def candidate_seeds(seeds: Sequence[int], num_candidates: int) -> list[int]:
    """Seeds of N candidates for each row, (B * N), row by row; the first is the row's own."""
    result = []
    for seed in seeds:
        others = torch.randint(2**62, (num_candidates - 1,), generator=_seeded(int(seed)))
        result += [int(seed), *others.tolist()]
    return result


def redraw_seeds(seeds: Sequence[int]) -> list[int]:
    """Seeds of the noise of second draws (B,), which has nothing to do with that of the first."""
    return [
        int(torch.randint(2**62, (1,), generator=_seeded(int(seed) ^ _REDRAW))) for seed in seeds
    ]


def _seeded(seed: int) -> torch.Generator:
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"`seeds` must fit into 64 bits with a sign, but one is {seed}.")
    return torch.Generator().manual_seed(seed)
