"""Batches of mlm: slots of which a random share is masked, or all of them to generate."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from whalesong.core.parts import Batch
from whalesong.textlm.collation import TokenExample, without_prompt
from whalesong.textlm.slots import IGNORED, SlotPredCollator, SlotRows

FAMILY = "mlm"


class MlmSeq2SeqCollator:
    """Batches to learn targets from prompts: in each row another share of the slots is masked.

    Keys, all (B, T), in rows of `SlotRows`: `input_ids`, with masks; `attention_mask`;
    `prompt_mask`, True at prompt and BOS; `labels`, the token where a mask stands, -100 elsewhere.

    Args:
        tokenizer: its BOS, EOS, PAD and MASK are used.
        block_size: slots of a target, EOS and padding included.
        input_block_size: most tokens of a prompt with BOS.
        loss_on_padding: PAD is a token like others, seen and learned: so a model says how long a
            text is. If false, padding is hidden and never masked.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        block_size: int,
        input_block_size: int,
        *,
        loss_on_padding: bool = True,
    ) -> None:
        self.rows = SlotRows(tokenizer, block_size, input_block_size, family=FAMILY)
        self.loss_on_padding = loss_on_padding

    def load(self, example: TokenExample) -> TokenExample:
        """Refuse an example that does not fit."""
        return self.rows.checked(example)

    def __call__(self, examples: Sequence[TokenExample]) -> Batch:
        """Batch examples; all draws are from torch's global generator."""
        batch, labels = self.rows.clean([self.load(example) for example in examples])
        if not self.loss_on_padding:
            is_padding = self._is_padding(examples, labels)
            labels = labels.masked_fill(is_padding, IGNORED)
            batch["attention_mask"] = batch["attention_mask"] & ~is_padding
        is_masked = draw_masks(labels >= 0)
        return {
            **batch,
            "input_ids": batch["input_ids"].masked_fill(is_masked, self.rows.mask_id),
            "labels": labels.masked_fill(~is_masked, IGNORED),
        }

    def _is_padding(self, examples: Sequence[TokenExample], labels: Tensor) -> Tensor:
        """(B, T), True at slots behind EOS."""
        kept = torch.tensor([len(example["input_ids"]) + 1 for example in examples])
        slot = torch.arange(labels.shape[1]) - (labels.shape[1] - self.rows.block_size)
        return slot >= kept[:, None]


class DefaultMlmCollator(MlmSeq2SeqCollator):
    """Batches to learn texts, `BOS | text EOS PAD ...`; prompts are left aside.

    Args:
        tokenizer: its BOS, EOS, PAD and MASK are used.
        block_size: slots of a text, EOS and padding included.
        loss_on_padding: see `MlmSeq2SeqCollator`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, block_size: int, *, loss_on_padding: bool = True
    ) -> None:
        super().__init__(tokenizer, block_size, 1, loss_on_padding=loss_on_padding)

    def load(self, example: TokenExample) -> TokenExample:
        """Give an example without its prompt; a `DataError` refuses one that does not fit."""
        return super().load(without_prompt(example))


class MlmSeq2SeqPredCollator(SlotPredCollator):
    """Batches whose slots mlm fills."""

    family = FAMILY


def draw_masks(may_mask: Tensor) -> Tensor:
    """Draw a share for each row, uniform in [0, 1), and mask each slot with that probability.

    Args:
        may_mask: (B, T), True at what may be masked.
    """
    share = torch.rand(len(may_mask), 1)
    return may_mask & (torch.rand(may_mask.shape) < share)
