"""The decoding loop over one window of frames, for any model that gives logits step by step."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from whalesong.modules.generation.ending import Ending, RowEnds
from whalesong.modules.generation.repetition import RepetitionRule
from whalesong.modules.generation.sampling import SamplingSettings, sample
from whalesong.modules.pattern_layout import BatchLayout

STEPS_BETWEEN_LOOKS = 16
"""A GPU is asked that rarely whether all rows have ended: to ask is to wait for it."""


class StepModel(Protocol):
    """A language model over steps of a codebook pattern; conditions and guidance are its own.

    Where rows may end, its logits are (B, K, V + 1); the last one is that of the end.

    Attributes:
        num_codebooks: K.
        codebook_size: V; id V stands where a step has no code.
    """

    num_codebooks: int
    codebook_size: int

    def prefill(self, tokens: Tensor, *, codebooks: slice | None = None) -> Tensor:
        """Begin anew with steps (B, K, p), p >= 1; logits (B, K, V) of what stands at step p.

        `codebooks` are those whose logits are needed; None = all.
        """

    def step(self, tokens: Tensor, *, codebooks: slice | None = None) -> Tensor:
        """Take one more step (B, K); logits (B, K, V) of the step after it."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What happens at each step of a window; made before the first step, on the CPU.

    Attributes:
        layout: of the rows in this window.
        unknown: the codes to generate (B, K, F) bool.
    """

    layout: BatchLayout
    unknown: Tensor

    @cached_property
    def wanted(self) -> Tensor:
        """Codes to generate at their steps, (B, K, P) bool."""
        return self.layout.build(self.unknown, special_id=False)

    @cached_property
    def first_steps(self) -> Tensor:
        """For each row the first step at which it generates, (B,); P if it never does."""
        wanted = self.wanted.any(1).int()
        return torch.where(wanted.any(-1), wanted.argmax(-1), self.layout.num_steps)

    @cached_property
    def first_step(self) -> int:
        """The first step that is not known in all rows; the steps before it are run at once."""
        return int(self.first_steps.min())

    @property
    def num_steps(self) -> int:
        """Steps that are decoded one by one."""
        return self.layout.num_steps - self.first_step

    @cached_property
    def draws(self) -> list[bool]:
        """For each step: is something generated?"""
        return self.wanted.flatten(0, 1).any(0).tolist()

    @cached_property
    def forces(self) -> list[bool]:
        """For each step: is something among its active codebooks not generated?"""
        wanted = self.wanted.flatten(0, 1).sum(0).tolist()
        active = self.layout.active_slices
        sizes = [len(self.unknown) * (books.stop - books.start) for books in active]
        return [count < size for count, size in zip(wanted, sizes, strict=True)]

    @cached_property
    def complete(self) -> list[int]:
        """For each step: leading frames that are complete in all rows that have them."""
        complete = self.layout.complete_frames  # (B, P)
        lens = self.layout.mask[:, 0].sum(-1, keepdim=True)
        return complete.masked_fill(complete == lens, self.layout.num_frames).amin(0).tolist()


class Window:
    """Decodes the frames of one plan; every row gives what it gives alone.

    Args:
        plan: what happens at each step.
        known: codes (B, K, F); those that the plan generates are -1.
        noise: uniform (B, K, F).
        settings: how to sample.
        special_id: V.
        redraws: noise of second draws, uniform (B, K, F), if the settings ask for them.
        ending: how rows end before their frames do.

    Attributes:
        ends: where the rows have ended so far, or None.
    """

    def __init__(
        self,
        plan: Plan,
        known: Tensor,
        noise: Tensor,
        *,
        settings: SamplingSettings,
        special_id: int,
        redraws: Tensor | None = None,
        ending: Ending | None = None,
    ) -> None:
        self.plan = plan
        self.layout = plan.layout.to(known.device)
        self._settings, self._max_id = settings, special_id - 1
        # One slice of each of these is one step: (P, B, K).
        self._tokens = _by_step(self.layout.build(known, special_id))
        self._noise = _by_step(self.layout.build(noise.to(known.device), 0))
        self._log_probs = torch.zeros_like(self._noise)
        first_steps = plan.first_steps.to(known.device)[:, None, None]
        self._scored = self.layout.mask & (self.layout.step_of >= first_steps)
        self._repetition = None if redraws is None else self._rule(redraws)
        self.ends = None
        if ending is not None:
            self.ends = RowEnds(ending, self.layout, special_id=special_id)

    def run(self, model: StepModel, *, at_once: bool = True) -> Iterator[int]:
        """Decode step by step; yields the number of each step once it stands.

        It ends as soon as all rows have ended; unless `at_once`, a few steps later on a GPU.

        Raises:
            ValueError: rows may end, but the model has no logit for it.
        """
        plan, tokens = self.plan, self._tokens
        first = plan.first_step
        for step in range(first, self.layout.num_steps):
            books = self._codebooks(step)
            if step == first:
                logits = model.prefill(
                    tokens[:first].permute(1, 2, 0).contiguous(), codebooks=books
                )
                self._check(logits)
            else:
                logits = model.step(tokens[step - 1], codebooks=books)
            self._settle(step, logits)
            yield step
            if self.ends is not None and self._ended(step, at_once):
                return

    def codes(self, frames: slice) -> Tensor:
        """Codes of frames that are complete (B, K, f), 0 behind the end of a row.

        Where rows may end, id V stands behind the end instead.
        """
        values = self._revert(self._tokens, self.layout.mask, frames)
        return values if self.ends is None else self.ends.clear_codes(values, frames)

    def log_probs(self, frames: slice) -> Tensor:
        """Log-probabilities of the codes of frames that are complete (B, K, f).

        They are those of the model itself, before temperature and filters, for all codes from the
        first step on at which the row generates, and 0 elsewhere.

        Raises:
            ValueError: NaN or infinite logits.
        """
        values = self._revert(self._log_probs, self._scored, frames)
        if values.isnan().any():
            rows = values.isnan().flatten(1).any(1).nonzero().flatten().tolist()
            raise ValueError(f"The logits of the model must be finite, but in rows {rows} are not.")
        return values if self.ends is None else self.ends.clear_log_probs(values, frames)

    def _settle(self, step: int, logits: Tensor) -> None:
        """Decide what stands at a step, and note its log-probabilities."""
        books = self.plan.layout.active_slices[step]
        if books.start == books.stop:
            return
        log_probs = logits.float().log_softmax(-1)
        ids = slot = self._tokens[step, :, books]  # -1 where to generate
        if self.plan.draws[step]:
            ids = self._draw(step, books, log_probs)
            if self.plan.forces[step]:
                ids = torch.where(slot < 0, ids, slot)
        if self.ends is not None:
            ids = self.ends.settle(step, books, ids)
        if ids is not slot:
            slot.copy_(ids)
        if self.ends is None and self.plan.forces[step]:
            ids = ids.clamp(max=self._max_id)  # where nothing stands, nothing reads it
        chosen = log_probs.gather(-1, ids[..., None])
        self._log_probs[step, :, books] = chosen.squeeze(-1)

    def _draw(self, step: int, books: slice, log_probs: Tensor) -> Tensor:
        if self.ends is not None:
            log_probs = self.ends.allowed(step, books, log_probs)
        ids = sample(log_probs, self._settings, self._noise[step, :, books])
        if self._repetition is None:
            return ids
        return self._repetition.redraw(step, books, ids, log_probs)

    def _rule(self, redraws: Tensor) -> RepetitionRule:
        device = self._noise.device
        return RepetitionRule(
            self._settings,
            wanted=_by_step(self.plan.wanted).to(device),
            noise=_by_step(self.layout.build(redraws.to(device), 0)),
        )

    def _check(self, logits: Tensor) -> None:
        size = self._max_id + 2
        if self.ends is not None and logits.shape[-1] != size:
            raise ValueError(f"Where rows may end, the model must have {size} logits for each "
                             f"code, but has {logits.shape[-1]}.")  # fmt: skip

    def _ended(self, step: int, at_once: bool) -> bool:
        looks = at_once or not self._tokens.is_cuda or step % STEPS_BETWEEN_LOOKS == 0
        return looks and self.ends.complete_at(step)

    def _codebooks(self, step: int) -> slice | None:
        books = self.plan.layout.active_slices[step]
        if books.stop - books.start == self.layout.num_codebooks:
            return None
        return slice(books.start, max(books.stop, 1))  # a model always has logits to give

    def _revert(self, by_step: Tensor, mask: Tensor, frames: slice) -> Tensor:
        values = by_step.permute(1, 2, 0).gather(2, self.layout.step_of[:, :, frames])
        return values.masked_fill_(~mask[:, :, frames], 0)


def _by_step(sequence: Tensor) -> Tensor:
    return sequence.permute(2, 0, 1).contiguous()
