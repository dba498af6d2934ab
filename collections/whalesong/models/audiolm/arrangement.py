"""`Arrangement`: which frames of a batch are prompt, and which are target."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Arrangement:
    """Frames of B rows in their natural order; those of a span are target, all others prompt."""

    codes: Tensor
    """(B, K, F) long; any id in range behind the end of a row."""
    lens: Tensor
    """(B,) frames of each row."""
    begins: Tensor
    """(B,) first frame of the target."""
    ends: Tensor
    """(B,) frame behind the last one of the target."""
    scored_mask: Tensor
    """(B, F) frames of the target whose codes are learned."""
    closes: Tensor
    """(B,) the recording ends with the target."""

    @property
    def target_lens(self) -> Tensor:
        """(B,) frames of the target."""
        return self.ends - self.begins

    @property
    def prompt_lens(self) -> Tensor:
        """(B,) frames of the prompt."""
        return self.lens - self.target_lens

    @cached_property
    def mask(self) -> Tensor:
        """(B, F) real frames."""
        return self._frames < self.lens[:, None]

    @cached_property
    def target_mask(self) -> Tensor:
        """(B, F) frames of the target."""
        return (self._frames >= self.begins[:, None]) & (self._frames < self.ends[:, None])

    @cached_property
    def prompt_mask(self) -> Tensor:
        """(B, F) frames of the prompt."""
        return self.mask & ~self.target_mask

    @cached_property
    def _frames(self) -> Tensor:
        return torch.arange(self.codes.shape[2], device=self.codes.device)


def with_target(
    codes: Tensor, lens: Tensor, begins: Tensor, ends: Tensor | None = None
) -> Arrangement:
    """Rows whose target goes from `begins` to `ends`, or to the end, without the recording's end.

    Args:
        codes: (B, K, F).
        lens: (B,).
        begins: (B,).
        ends: (B,).
    """
    ends = lens if ends is None else ends
    nowhere = torch.zeros(codes.shape[::2], dtype=torch.bool, device=codes.device)
    plain = Arrangement(codes, lens, begins, ends, nowhere, nowhere.new_zeros(len(lens)))
    return Arrangement(codes, lens, begins, ends, plain.target_mask, plain.closes)


def arrange(batch: Mapping[str, Any]) -> Arrangement:
    """Arrange what the collator gives.

    Args:
        batch: with "codes" (B, K, F), "codes_lens", "target_span" (B, 2), "copied_span" (B, 2) and
            "closes"; where rows have prompts from elsewhere "prompt_codes" (B, K, f) and
            "prompt_codes_lens".
    """
    codes, lens = batch["codes"], batch["codes_lens"]
    clips = with_target(codes, lens, *batch["target_span"].unbind(1))
    fronts, front_lens = _fronts(batch)
    if not fronts.shape[2]:
        return Arrangement(
            codes, lens, clips.begins, clips.ends, clips.target_mask, batch["closes"]
        )
    copied = with_target(codes, lens, *batch["copied_span"].unbind(1)).target_mask
    scored = clips.target_mask & ~copied
    codes = join_left(fronts, front_lens, codes, lens)
    nothing = torch.zeros(fronts.shape[::2], dtype=torch.bool, device=codes.device)
    begins, ends = clips.begins + front_lens, clips.ends + front_lens
    joined = with_target(codes, lens + front_lens, begins, ends)
    scored = join_left(nothing[:, None], front_lens, scored[:, None], lens)[:, 0]
    # Behind the end of a row, joining repeats what stands at the end of the longest.
    scored = scored & joined.target_mask
    return Arrangement(codes, joined.lens, begins, ends, scored, batch["closes"])


def _fronts(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """What goes in front of each clip: codes (B, K, f) and their lengths (B,)."""
    codes = batch["codes"]
    begins, ends = batch["copied_span"].unbind(1)
    lens = ends - begins
    longest = int(lens.max()) if len(lens) else 0
    frames = begins[:, None] + torch.arange(longest, device=codes.device)
    frames = frames.clamp(max=max(codes.shape[2] - 1, 0))[:, None].expand(-1, codes.shape[1], -1)
    copied = codes.gather(2, frames)
    if "prompt_codes" not in batch:
        return copied, lens
    others, other_lens = batch["prompt_codes"], batch["prompt_codes_lens"]
    return join_left(copied, lens, others, other_lens), lens + other_lens


def join_left(left: Tensor, left_lens: Tensor, right: Tensor, right_lens: Tensor) -> Tensor:
    """Rows of `left` (B, X, f) with rows of `right` (B, X, g) close behind: (B, X, longest)."""
    lens = left_lens + right_lens
    longest = int(lens.max()) if len(lens) else 0
    index = torch.arange(longest, device=right.device).expand(len(lens), -1)
    behind = index - left_lens[:, None] + left.shape[2]
    source = torch.where(index < left_lens[:, None], index, behind)
    joined = torch.cat((left, right), dim=2)
    source = source.clamp(max=joined.shape[2] - 1)[:, None].expand(-1, right.shape[1], -1)
    return joined.gather(2, source)
