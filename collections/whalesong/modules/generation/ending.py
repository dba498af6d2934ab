"""The end of a row: an id that the model draws, and what it leaves of the row."""

from dataclasses import dataclass

import torch
from torch import Tensor

from whalesong.modules.pattern_layout import BatchLayout


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Rows end where the model draws id V; its logits are (B, K, V + 1).

    Attributes:
        codebooks: those in which the end may be drawn; it is never drawn in others.
        min_frames: frames of a row, known ones included, before which it does not end.

    Raises:
        ValueError: `min_frames` below 0.
    """

    codebooks: slice
    min_frames: int = 0

    def __post_init__(self) -> None:
        if self.min_frames < 0:
            raise ValueError(f"`min_frames` must be at least 0, but is {self.min_frames}.")

    def check(self, num_codebooks: int) -> None:
        """Refuse codebooks that the model does not have.

        Raises:
            ValueError: none of its codebooks is among them.
        """
        if not range(num_codebooks)[self.codebooks]:
            raise ValueError(f"`codebooks` of the ending must be among the {num_codebooks} of the "
                             f"model, but are {self.codebooks}.")  # fmt: skip


class RowEnds:
    """Where the rows of a window have ended.

    The codes of a row from its end on are id V, but for those that were drawn along with the end.

    Args:
        ending: who may end a row, and when.
        layout: of the window.
        special_id: V.

    Attributes:
        lens: (B,) frames before the end of each row, or all frames of those that have not ended.
    """

    def __init__(self, ending: Ending, layout: BatchLayout, *, special_id: int) -> None:
        self._special_id, num_frames = special_id, layout.num_frames
        self._planned = self.lens = layout.mask[:, 0].sum(-1)
        self._frames = torch.arange(num_frames, device=self.lens.device)
        # What does not stand at a step is behind every end.
        frame_of = layout.frame_of.masked_fill(layout.frame_of < 0, num_frames)
        self._frame_of = frame_of.permute(2, 0, 1).contiguous()  # (P, B, K)
        may_end = torch.zeros(layout.num_codebooks, dtype=torch.bool, device=self.lens.device)
        may_end[ending.codebooks] = True
        self._forbidden = ~may_end | (self._frame_of < ending.min_frames)
        self._forbids = self._forbidden.flatten(1).any(1).tolist()
        # The last step of the first n frames, for n from 0 to F.
        self._last_steps = torch.nn.functional.pad(layout.step_of.amax(1), (1, 0))

    @property
    def num_frames(self) -> int:
        """Frames of the longest row, the one that holds its end included."""
        return int(torch.where(self.lens < self._planned, self.lens + 1, self.lens).max())

    def allowed(self, step: int, books: slice, log_probs: Tensor) -> Tensor:
        """Log-probabilities (B, k, V + 1) without the end where it is forbidden."""
        if not self._forbids[step]:
            return log_probs
        log_probs = log_probs.clone()
        log_probs[..., -1].masked_fill_(self._forbidden[step, :, books], -torch.inf)
        return log_probs

    def settle(self, step: int, books: slice, ids: Tensor) -> Tensor:
        """Note the ends among the ids (B, k) of a step; give the ids with V behind former ends."""
        frame_of = self._frame_of[step, :, books]
        ids = ids.masked_fill(frame_of >= self.lens[:, None], self._special_id)
        last = len(self._frames)
        ends = frame_of.masked_fill(ids != self._special_id, last).amin(1)
        self.lens = torch.minimum(self.lens, ends)
        return ids

    def complete_at(self, step: int) -> bool:
        """Whether nothing is left to be generated behind a step."""
        return bool((self._last_steps.gather(1, self.lens[:, None]) <= step).all())

    def clear_codes(self, codes: Tensor, frames: slice) -> Tensor:
        """Put id V behind the end in codes (B, K, f) of these frames; the end's frame is kept."""
        at = self._frames[frames]
        ended = at > self.lens[:, None]
        absent = ended | (at >= self._planned[:, None])  # (B, f)
        return codes.masked_fill(absent[:, None] | (codes < 0), self._special_id)

    def clear_log_probs(self, log_probs: Tensor, frames: slice) -> Tensor:
        """Put 0 from the end on in (B, K, f)."""
        ended = self._frames[frames] >= self.lens[:, None]
        return log_probs.masked_fill(ended[:, None], 0)
