"""Batches of mdlm: slots masked at a random time, or all of them to generate."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from whalesong.core.parts import Batch
from whalesong.models.mdlm.noise_schedule import mask_rate, require_schedule, sample_times
from whalesong.textlm.collation import TokenExample, without_prompt
from whalesong.textlm.slots import SlotPredCollator, SlotRows

FAMILY = "mdlm"


class MdlmSeq2SeqCollator:
    """Batches to learn targets from prompts: each row is masked as at a time of its own.

    Keys: `input_ids`, `attention_mask`, `prompt_mask` and `labels` (B, T), as rows of `SlotRows`
    with slots masked; labels are all slots, masked or not. `t`, `noise_rate` and `total_noise`
    (B,): the times and what the schedule says of them.

    Args:
        tokenizer: its BOS, EOS, PAD and MASK are used.
        block_size: slots of a target, EOS and padding included.
        input_block_size: most tokens of a prompt with BOS.
        noise_schedule: see `NoiseSchedule`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        block_size: int,
        input_block_size: int,
        noise_schedule: Any,
    ) -> None:
        self.noise_schedule = require_schedule(noise_schedule)
        self.rows = SlotRows(tokenizer, block_size, input_block_size, family=FAMILY)

    def load(self, example: TokenExample) -> TokenExample:
        """Refuse an example that does not fit."""
        return self.rows.checked(example)

    def __call__(self, examples: Sequence[TokenExample]) -> Batch:
        """Batch examples; all draws are from torch's global generator."""
        batch, labels = self.rows.clean([self.load(example) for example in examples])
        t = sample_times(len(examples), min_time=self.noise_schedule.min_time)
        total_noise = self.noise_schedule.total_noise(t)
        is_masked = torch.rand(labels.shape) < mask_rate(total_noise)[:, None]
        is_masked &= labels >= 0
        return {
            **batch,
            "input_ids": batch["input_ids"].masked_fill(is_masked, self.rows.mask_id),
            "labels": labels,
            "t": t,
            "noise_rate": self.noise_schedule.noise_rate(t),
            "total_noise": total_noise,
        }


class DefaultMdlmCollator(MdlmSeq2SeqCollator):
    """Batches to learn texts, `BOS | text EOS PAD ...`; prompts are left aside.

    Args:
        tokenizer: its BOS, EOS, PAD and MASK are used.
        block_size: slots of a text, EOS and padding included.
        noise_schedule: see `NoiseSchedule`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, block_size: int, noise_schedule: Any
    ) -> None:
        super().__init__(tokenizer, block_size, 1, noise_schedule)

    def load(self, example: TokenExample) -> TokenExample:
        """Give an example without its prompt; a `DataError` refuses one that does not fit."""
        return super().load(without_prompt(example))


class MdlmSeq2SeqPredCollator(SlotPredCollator):
    """Batches whose slots mdlm fills."""

    family = FAMILY
