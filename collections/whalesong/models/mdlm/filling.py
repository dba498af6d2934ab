"""Texts that are being unmasked, and the two ways to do it."""

import torch
from torch import Tensor
from torch.nn import functional

from whalesong.core.parts import Batch, NoiseSchedule
from whalesong.models.mdlm.model import MdlmModel
from whalesong.models.mdlm.noise_schedule import mask_rate
from whalesong.modules.generation.sampling import RowNoise, SamplingSettings, sample
from whalesong.textlm.unmasking import Unmasking

NOISE_STREAMS = 4
"""Numbers that each slot takes from `RowNoise`: two, in two halves each."""


class Filling:
    """Rows with slots, the noise of each slot, and what was written so far.

    Args:
        model: sees all tokens.
        batch: see `SlotRows.to_fill`.
        noise: of each row, `NOISE_STREAMS` numbers for each slot.
        mask_id: token of an open slot.
        unwritable: tokens that are never written.
        keep_changes: remember them all.

    Attributes:
        ids: tokens (B, T).
        is_open: slots that are still masked, (B, T).
        num_slots: L, the slots at the end of all rows.
        noise: (2, B, T) in float64, uniform in [0, 1): when a slot is filled, and with what.
        changes: if kept, steps (B,), from 1 on and -1 in rows that did not change, and the slots
            after them, (B, L); first of all the begin.
    """

    def __init__(
        self,
        model: MdlmModel,
        batch: Batch,
        noise: RowNoise,
        *,
        mask_id: int,
        unwritable: list[int],
        keep_changes: bool,
    ) -> None:
        self.model, self.batch, self.keep_changes = model, batch, keep_changes
        self.ids = batch["input_ids"].clone()
        is_slot = batch["attention_mask"] & ~batch["prompt_mask"]
        self.is_open = is_slot & (self.ids == mask_id)
        self.num_slots = int(is_slot.any(0).sum())
        self.noise = self._aligned(fine_noise(noise, self.num_slots))
        self.unwritable = torch.tensor(unwritable, device=self.ids.device)
        self.changes: list[tuple[Tensor, Tensor]] = []
        self._note(torch.zeros(len(self.ids), dtype=torch.long))

    def logits(self, total_noise: Tensor, at: Tensor | None = None) -> Tensor:
        """What the model says at noise (), (B, T, V), or (M, V) of M slots, in float64.

        In fp32 the tails of large vocabularies would not be drawn as often as they should.
        """
        logits = self.model(
            self.ids,
            self.batch["attention_mask"],
            prompt_mask=self.batch["prompt_mask"],
            total_noise=total_noise.expand(len(self.ids)),
            at=at,
        )
        return logits.double().index_fill(-1, self.unwritable, -torch.inf)

    def drawn(self, logits: Tensor, at: Tensor, sampling: SamplingSettings) -> Tensor:
        """A token for each of M slots, (M,), from their logits (M, V) and their noise."""
        return sample(logits[:, None], sampling, self.noise[1][at][:, None])[:, 0]

    def write(self, at: Tensor, tokens: Tensor, step: Tensor) -> None:
        """Fill M slots; `step` (B, T) counts from 0."""
        self.ids[at] = tokens
        self.is_open &= ~at
        self._note((step + 1).where(at, -1).amax(1))

    def slots(self) -> Tensor:
        """The tokens in the slots, (B, L)."""
        return self.ids[:, self.ids.shape[1] - self.num_slots :].clone()

    def _note(self, steps: Tensor) -> None:
        if self.keep_changes:
            self.changes.append((steps, self.slots()))

    def _aligned(self, noise: Tensor) -> Tensor:
        begin = self.ids.shape[1] - self.num_slots
        return functional.pad(noise, (begin, 0)).to(self.ids.device)


def fine_noise(noise: RowNoise, num_slots: int) -> Tensor:
    """Two numbers for each slot, (2, B, L), uniform in [0, 1) in steps of 2 ** -48."""
    halves = noise.frames(0, num_slots).double()  # (B, 4, L), in steps of 2 ** -24
    return (halves[:, :2] + halves[:, 2:] * 2**-24).transpose(0, 1)


def fill_ancestrally(
    filling: Filling,
    schedule: NoiseSchedule,
    *,
    num_steps: int,
    sampling: SamplingSettings,
    use_cache: bool,
) -> None:
    """Undo the noise in `num_steps` steps, and in a last one what is left.

    A step from t to s unmasks a slot with the probability `1 - mask_rate(s) / mask_rate(t)`,
    whatever is in it. So the steps of all slots are drawn before anything is written.

    Args:
        filling: gets all its slots filled.
        schedule: of the noise that the model was trained on.
        num_steps: from time 1 to `schedule.min_time`, equally long.
        sampling: how tokens are drawn; the last step takes the most probable ones.
        use_cache: what the model says is kept while a row does not change. As each row goes from
            one change to the next, a row with n slots runs the model at most n times. The results
            are the same, if the model is not told the noise.
    """
    times = torch.linspace(1, schedule.min_time, num_steps + 1, dtype=torch.float64)
    total_noise = schedule.total_noise(times).to(filling.ids.device)
    rates = mask_rate(total_noise)
    still_masked = (rates[1:] / rates[0]).flip(0)  # after each step, the last step first
    step = num_steps - torch.searchsorted(still_masked, filling.noise[0], right=True)
    step = step.masked_fill(~filling.is_open, -1)  # (B, T)
    turn = dense_rank(step) if use_cache else step
    for number in range(_num_turns(turn, num_steps, use_cache)):
        at = turn == number
        logits = filling.logits(total_noise[number], at)
        tokens = filling.drawn(logits, at, sampling)
        filling.write(at, tokens.where(step[at] < num_steps, logits.argmax(-1)), step)


def fill_by_confidence(
    filling: Filling,
    schedule: NoiseSchedule,
    *,
    num_steps: int,
    sampling: SamplingSettings,
    unmasking: Unmasking,
) -> None:
    """Fill the slots that `unmasking` chooses, in at most `num_steps` steps."""
    times = torch.linspace(1, schedule.min_time, num_steps + 1, dtype=torch.float64)
    total_noise = schedule.total_noise(times).to(filling.ids.device)
    for step in range(num_steps):
        if not filling.is_open.any():
            return
        logits = filling.logits(total_noise[step])
        at = unmasking.choose(
            filling.is_open, logits.softmax(-1), filling.noise[0], steps_left=num_steps - step
        )
        tokens = filling.drawn(logits[at], at, sampling)
        filling.write(at, tokens, torch.full_like(filling.ids, step))


def dense_rank(values: Tensor) -> Tensor:
    """Rank of each value of a row among its different values from 0 on, (B, T); -1 stays -1."""
    ordered, order = values.sort(dim=1)
    rises = torch.diff(ordered, dim=1, prepend=torch.full_like(ordered[:, :1], -1)) > 0
    ranks = rises.cumsum(1) - 1
    return torch.empty_like(ranks).scatter_(1, order, ranks)


def _num_turns(turn: Tensor, num_steps: int, use_cache: bool) -> int:
    if not use_cache:
        return num_steps + 1
    return int(turn.max()) + 1 if turn.numel() else 0
