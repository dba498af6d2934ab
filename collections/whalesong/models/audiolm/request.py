"""What is asked of AudioLM, row by row: by a user, and in codes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from whalesong.models.audiolm.arrangement import Arrangement, join_left, with_target
from whalesong.sound.rows import Clip, Metadata, check_rows, count_rows, row_seconds, row_seeds

Variant = tuple[Tensor | None, float]
"""Condition (B, G) of all rows, and its weight in the guided logits."""


@dataclass(frozen=True)
class Request:
    """What to generate, as a user says it.

    Attributes:
        begin: what each row goes on from.
        end: what each row leads to; None where it just goes on.
        metadata: conditions of each row; None generates without conditions.
        seconds: longest new audio of each row; its exact length where rows lead to something.
        seeds: one for each row.
    """

    begin: Sequence[Clip]
    end: Sequence[Clip]
    metadata: Metadata | None
    seconds: Sequence[float]
    seeds: Sequence[int]

    def __len__(self) -> int:
        return len(self.seeds)


def make_request(
    *,
    begin: Sequence[Clip] | None = None,
    end: Sequence[Clip] | None = None,
    conditioning: Metadata | None = None,
    seconds: float | Sequence[float],
    batch_size: int | None = None,
    seeds: int | Sequence[int] | None = None,
) -> Request:
    """Bring the arguments of a user to one entry for each row.

    Raises:
        ValueError: they speak of different numbers of rows, or a length is not above 0.
    """
    rows = count_rows(begin, end, conditioning, seconds, seeds, batch_size=batch_size)
    lengths = row_seconds(seconds, rows)
    begin, end = begin or [None] * rows, end or [None] * rows
    own_seeds = row_seeds(seeds, rows)
    check_rows(
        rows, begin=begin, end=end, conditioning=conditioning, seconds=lengths, seeds=own_seeds
    )
    return Request(begin, end, conditioning, lengths, own_seeds)


@dataclass(frozen=True, eq=False, kw_only=True)
class CodesRequest:
    """New frames to be generated between given ones, in codes of B rows."""

    left: Tensor
    """(B, K, f) what is before the new frames."""
    left_lens: Tensor
    """(B,)"""
    right: Tensor
    """(B, K, g) what is behind them."""
    right_lens: Tensor
    """(B,)"""
    max_frames: Tensor
    """(B,) new frames at most."""
    seeds: Sequence[int]
    """One for each row."""
    variants: Sequence[Variant]
    """Of the conditions."""
    exact: bool = False
    """All rows have exactly `max_frames`, and the second half takes them at once."""

    @classmethod
    def onward(cls, left: Tensor, left_lens: Tensor, **others: Any) -> "CodesRequest":
        """With nothing behind the new frames."""
        nothing = torch.zeros_like(left_lens)
        return cls(
            left=left, left_lens=left_lens, right=left[:, :, :0], right_lens=nothing, **others
        )

    def select(self, rows: Tensor) -> "CodesRequest":
        """The rows of these numbers (B',), as often as they are named."""
        index = rows.to(self.left.device)
        names = ("left", "left_lens", "right", "right_lens", "max_frames")
        variants = [
            (None if condition is None else condition[index], weight)
            for condition, weight in self.variants
        ]
        seeds = [self.seeds[row] for row in rows.tolist()]
        tensors = {name: getattr(self, name)[index] for name in names}
        return replace(self, **tensors, variants=variants, seeds=seeds)

    def arrange(self, new: Tensor, lens: Tensor) -> Arrangement:
        """Codes (B, K, n) with these lengths (B,) as the target between what is given."""
        codes, ends = self._joined(new, lens), self.left_lens + lens
        codes = join_left(codes, ends, self.right, self.right_lens)
        return with_target(codes, ends + self.right_lens, self.left_lens, ends)

    def arrange_nothing(self) -> Arrangement:
        """Room for `max_frames`."""
        shape = (*self.left.shape[:2], int(self.max_frames.max()))
        return self.arrange(self.left.new_zeros(shape), self.max_frames)

    def behind(self, new: Tensor, lens: Tensor) -> "CodesRequest":
        """The same behind finished codes (B, K, n) with these lengths (B,)."""
        return replace(self, left=self._joined(new, lens), left_lens=self.left_lens + lens)

    def _joined(self, new: Tensor, lens: Tensor) -> Tensor:
        return join_left(self.left, self.left_lens, new, lens)


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
