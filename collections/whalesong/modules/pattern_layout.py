"""Layouts: where the codes of given clips stand; build, revert and align by index tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, eq=False)
class PatternLayout:
    """Where the codes of a clip of F frames stand among P steps, step 0 included.

    Attributes:
        frame_of: frame of each codebook at each step (K, P), -1 = nothing.
        step_of: step of each code (K, F).
    """

    frame_of: Tensor
    step_of: Tensor

    @classmethod
    def from_steps(cls, step_of: Tensor) -> Self:
        """The layout in which code (k, f) stands at step `step_of[k, f]`."""
        num_codebooks, num_frames = step_of.shape
        num_steps = int(step_of.max()) + 1 if num_frames else 1
        frame_of = step_of.new_full((num_codebooks, num_steps), -1)
        frames = torch.arange(num_frames).expand(num_codebooks, -1)
        return cls(frame_of.scatter_(1, step_of, frames), step_of.contiguous())

    @property
    def num_steps(self) -> int:
        """P."""
        return self.frame_of.shape[-1]

    @property
    def num_frames(self) -> int:
        """F."""
        return self.step_of.shape[-1]

    @property
    def num_codebooks(self) -> int:
        """K."""
        return self.frame_of.shape[-2]

    def to(self, device: torch.device | str) -> Self:
        """The same layout on another device."""
        return replace(self, **{name: value.to(device) for name, value in self._tensors().items()})

    def build(self, codes: Tensor, special_id: int) -> Tensor:
        """Arrange codes (B, K, F) as steps (B, K, P), `special_id` where nothing stands.

        F may be larger than the layout's: frames beyond are padding.

        Raises:
            ValueError: another number of codebooks, or fewer frames than the layout has.
        """
        if codes.shape[1] != self.num_codebooks or codes.shape[2] < self.num_frames:
            raise ValueError(
                f"`codes` must be (B, {self.num_codebooks}, {self.num_frames}) for this layout, "
                f"but are {tuple(codes.shape)}."
            )
        if not self.num_frames:
            return codes.new_full((*codes.shape[:2], self.num_steps), special_id)
        sequence = codes.gather(2, self._for_rows(self.frame_of, codes).clamp(min=0))
        return sequence.masked_fill_(self.frame_of < 0, special_id)

    def revert(self, sequence: Tensor) -> Tensor:
        """Take the codes (B, K, F) out of steps (B, K, P)."""
        return sequence.gather(2, self._for_rows(self.step_of, sequence))

    def align(self, values: Tensor) -> Tensor:
        """Give each code what position `step_of - 1` holds: (B, P, ...) -> (B, K, F, ...).

        That position is the one that predicts the code, so hidden states of the language model
        come out beside their targets. The last position predicts nothing and may be missing.
        """
        first = torch.arange(len(values), device=values.device)[:, None, None] * values.shape[1]
        positions = first + (self.step_of - 1).clamp(min=0)  # (B, K, F)
        return (
            values.flatten(0, 1).index_select(0, positions.flatten()).unflatten(0, positions.shape)
        )

    @cached_property
    def complete_frames(self) -> Tensor:
        """Leading frames whose K codes all stand at steps <= p, (P,): what can be decoded then."""
        return _complete_frames(self.step_of, self.num_steps)

    @cached_property
    def active_slices(self) -> tuple[slice, ...]:
        """For each step the codebooks that stand there, as one slice; an empty one if none do."""
        present = (self.frame_of >= 0).cpu().reshape(-1, *self.frame_of.shape[-2:]).any(0)  # (K, P)
        begin = present.int().argmax(0)
        end = self.num_codebooks - present.flip(0).int().argmax(0)
        bounds = torch.stack([begin, end]) * present.any(0)
        return tuple(slice(*pair) for pair in bounds.T.tolist())

    def _for_rows(self, index: Tensor, values: Tensor) -> Tensor:
        return index.expand(len(values), -1, -1)

    def _tensors(self) -> dict[str, Tensor]:
        return {"frame_of": self.frame_of, "step_of": self.step_of}


@dataclass(frozen=True, eq=False)
class BatchLayout(PatternLayout):
    """The layouts of rows of different lengths; each row stands exactly as it does alone.

    Attributes:
        frame_of: (B, K, P), -1 = nothing, also behind the end of a row.
        step_of: (B, K, F), 0 behind the end of a row.
        mask: (B, K, F), True where the row has a code.
    """

    mask: Tensor

    @classmethod
    def stack(cls, layouts: Sequence[PatternLayout], num_frames: int) -> Self:
        """One row for each layout, padded to `num_frames` and to the most steps."""
        # Two at least: a batch without a single frame still has a position to run a model on.
        num_steps = max(2, *(layout.num_steps for layout in layouts))
        frame_of = [
            pad(layout.frame_of, (0, num_steps - layout.num_steps), value=-1) for layout in layouts
        ]
        step_of = torch.stack(
            [pad(layout.step_of, (0, num_frames - layout.num_frames)) for layout in layouts]
        )
        return cls(torch.stack(frame_of), step_of, step_of > 0)

    def select(self, rows: Tensor) -> Self:
        """The rows of these numbers (B,)."""
        return replace(self, **{name: value[rows] for name, value in self._tensors().items()})

    def revert(self, sequence: Tensor) -> Tensor:
        """Take the codes (B, K, F) out of steps (B, K, P), 0 behind the end of a row."""
        return super().revert(sequence).masked_fill_(~self.mask, 0)

    @cached_property
    def complete_frames(self) -> Tensor:
        """For each row its complete leading frames at each step, (B, P)."""
        step_of = self.step_of.masked_fill(~self.mask, self.num_steps)
        return _complete_frames(step_of, self.num_steps)

    def _tensors(self) -> dict[str, Tensor]:
        return {**super()._tensors(), "mask": self.mask}


def _complete_frames(step_of: Tensor, num_steps: int) -> Tensor:
    """Count frames f with `step_of[..., :, :f + 1] <= p` for all steps p: (..., P)."""
    if not step_of.shape[-1]:
        return step_of.new_zeros((*step_of.shape[:-2], num_steps))
    last = step_of.amax(-2)  # (..., F), rising as codes of a codebook stand in order
    steps = torch.arange(num_steps, device=step_of.device)
    return torch.searchsorted(last, steps.expand(*last.shape[:-1], -1).contiguous(), right=True)
