"""The decoding loop over one window of frames, for any model that gives logits step by step."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from whalesong.modules.generation.sampling import SamplingSettings, sample
from whalesong.modules.pattern_layout import BatchLayout


class StepModel(Protocol):
    """A language model over steps of a codebook pattern; conditions and guidance are its own.

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
        special_id: V.
    """

    def __init__(self, plan: Plan, known: Tensor, noise: Tensor, *, special_id: int) -> None:
        self.plan = plan
        self.layout = plan.layout.to(known.device)
        self._max_id = special_id - 1
        # One slice of each of these is one step: (P, B, K).
        self._tokens = _by_step(self.layout.build(known, special_id))
        self._noise = _by_step(self.layout.build(noise.to(known.device), 0))
        self._log_probs = torch.zeros_like(self._noise)
        first_steps = plan.first_steps.to(known.device)[:, None, None]
        self._scored = self.layout.mask & (self.layout.step_of >= first_steps)

    def run(self, model: StepModel, settings: SamplingSettings) -> Iterator[int]:
        """Decode step by step; yields the number of each step once it stands."""
        plan, tokens = self.plan, self._tokens
        first = plan.first_step
        for step in range(first, self.layout.num_steps):
            books = self._codebooks(step)
            if step == first:
                logits = model.prefill(
                    tokens[:first].permute(1, 2, 0).contiguous(), codebooks=books
                )
            else:
                logits = model.step(tokens[step - 1], codebooks=books)
            self._settle(step, logits, settings)
            yield step

    def codes(self, frames: slice) -> Tensor:
        """Codes of frames that are complete (B, K, f), 0 behind the end of a row."""
        return self._revert(self._tokens, self.layout.mask, frames)

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
        return values

    def _settle(self, step: int, logits: Tensor, settings: SamplingSettings) -> None:
        """Decide what stands at a step, and note its log-probabilities."""
        books = self.plan.layout.active_slices[step]
        if books.start == books.stop:
            return
        log_probs = logits.float().log_softmax(-1)
        ids = slot = self._tokens[step, :, books]  # -1 where to generate
        if self.plan.draws[step]:
            ids = sample(log_probs, settings, self._noise[step, :, books])
            if self.plan.forces[step]:
                ids = torch.where(slot < 0, ids, slot)
            slot.copy_(ids)
        if self.plan.forces[step]:
            ids = ids.clamp(max=self._max_id)  # where nothing stands, nothing reads it
        chosen = log_probs.gather(-1, ids[..., None])
        self._log_probs[step, :, books] = chosen.squeeze(-1)

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
