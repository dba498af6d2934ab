"""Repetition-aware sampling (VALL-E 2, arXiv 2406.05370, section 3.3)."""

import torch
from torch import Tensor

from whalesong.modules.generation.sampling import SamplingSettings, sample

PLAIN = SamplingSettings(top_k=0)
"""The distribution as it is."""


class RepetitionRule:
    """Draws again, from the whole distribution, what stands too often among the last ids.

    Each row and codebook has its own last ids: those that were generated, in the order of their
    steps.

    Args:
        settings: `repetition_window` and `repetition_threshold`.
        wanted: what is generated, (P, B, K) bool.
        noise: of the second draws, (P, B, K).
    """

    def __init__(self, settings: SamplingSettings, *, wanted: Tensor, noise: Tensor) -> None:
        self._threshold = settings.repetition_threshold
        self._wanted, self._noise = wanted, noise
        shape = (*wanted.shape[1:], settings.repetition_window)
        self._recent = torch.full(shape, -1, device=wanted.device)  # (B, K, W), the last one last

    def redraw(self, step: int, books: slice, ids: Tensor, log_probs: Tensor) -> Tensor:
        """From the ids (B, k) drawn at a step to those that count, and note them.

        Args:
            step: of the pattern.
            books: its codebooks.
            ids: first draws; what is not wanted is not noted.
            log_probs: (B, k, V).
        """
        recent = self._recent[:, books]
        count = (recent >= 0).sum(-1).clamp_(min=1)
        often = (recent == ids[..., None]).sum(-1) / count > self._threshold
        ids = torch.where(often, sample(log_probs, PLAIN, self._noise[step, :, books]), ids)
        moved = torch.cat((recent[..., 1:], ids[..., None]), dim=-1)
        self._recent[:, books] = torch.where(self._wanted[step, :, books, None], moved, recent)
        return ids
