"""Rows of models that fill slots: a prompt, and as many slots for a target as a block has."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from whalesong.core.errors import DataError
from whalesong.core.parts import Batch
from whalesong.textlm.collation import TokenExample, check_lengths, left_padded, right_padded
from whalesong.textlm.tokenizers import require

IGNORED = -100
"""Label of what is not learned."""


class SlotRows:
    """Rows `[PAD] prompt BOS | target EOS PAD ...`; a text alone is a target behind BOS.

    How long a target is, the model says by EOS and PAD: in slots they are tokens like others.

    Args:
        tokenizer: its BOS, EOS, PAD and MASK are used.
        block_size: slots, and so most tokens of a target with EOS.
        input_block_size: most tokens of a prompt with BOS.
        family: named in errors.

    Raises:
        ConfigError: the tokenizer lacks a special token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        block_size: int,
        input_block_size: int,
        *,
        family: str,
    ) -> None:
        self.block_size, self.input_block_size = block_size, input_block_size
        self.bos_id, self.eos_id, self.pad_id, self.mask_id = (
            require(tokenizer, f"{name}_token", for_what=family)
            for name in ("bos", "eos", "pad", "mask")
        )

    def checked(self, example: TokenExample) -> TokenExample:
        """Refuse an example that does not fit, or whose target has a mask.

        Raises:
            DataError: one line with the example.
        """
        sized = dict(example)
        if "partial_ids" in example:
            sized["input_ids"] = example["partial_ids"]
        check_lengths(
            [sized],
            block_size=self.block_size,
            input_block_size=self.input_block_size,
            num_special_target=1,
            num_special_prompt=1,
        )
        if self.mask_id in example.get("input_ids", ()):
            raise DataError(f"example {example['id']}: its target must have no mask, but has one.")
        return example

    def clean(self, examples: Sequence[TokenExample]) -> tuple[Batch, Tensor]:
        """A batch to learn from before anything is masked, and its targets.

        Returns:
            `input_ids`, `attention_mask` and `prompt_mask` (B, T); and labels (B, T), the token in
            each slot, -100 at the prompt.
        """
        batch = self._behind_prompts(examples, self.targets(examples))
        labels = batch["input_ids"].masked_fill(~self._is_slot(batch), IGNORED)
        return batch, labels

    def to_fill(self, examples: Sequence[TokenExample]) -> Batch:
        """A batch to generate from: slots are masked, but for the known tokens of `partial_ids`.

        Returns:
            `input_ids`, `attention_mask`, `prompt_mask` (B, T), and `target_ids` (B, block_size)
            if all examples have a target.
        """
        slots = torch.full((len(examples), self.block_size), self.mask_id)
        for slot, example in zip(slots, examples, strict=True):
            if "partial_ids" in example:
                slot[:] = self._filled([example["partial_ids"]])[0]
        batch = self._behind_prompts(examples, slots)
        if all("input_ids" in example for example in examples):
            batch["target_ids"] = self.targets(examples)
        return batch

    def targets(self, examples: Sequence[TokenExample]) -> Tensor:
        """`target EOS PAD ...`, (B, block_size)."""
        return self._filled([example["input_ids"] for example in examples])

    def _filled(self, targets: Sequence[Sequence[int]]) -> Tensor:
        rows = [[*target, self.eos_id] for target in targets]
        return right_padded(rows, pad_id=self.pad_id, length=self.block_size)[0]

    def _behind_prompts(self, examples: Sequence[TokenExample], slots: Tensor) -> Batch:
        rows = [[*(example.get("prompt_ids") or ()), self.bos_id] for example in examples]
        prompt_ids, is_prompt = left_padded(rows, pad_id=self.pad_id)
        everywhere = torch.ones_like(slots, dtype=torch.bool)
        return {
            "input_ids": torch.cat((prompt_ids, slots), dim=1),
            "attention_mask": torch.cat((is_prompt, everywhere), dim=1),
            "prompt_mask": torch.cat((is_prompt, ~everywhere), dim=1),
        }

    def _is_slot(self, batch: Batch) -> Tensor:
        return batch["attention_mask"] & ~batch["prompt_mask"]


class SlotPredCollator:
    """Batches to generate from, with prompts or without; see `SlotRows.to_fill` for the keys.

    Args:
        tokenizer: its BOS, EOS, PAD and MASK are used.
        block_size: slots of a target, EOS and padding included.
        input_block_size: most tokens of a prompt with BOS.
    """

    family: ClassVar[str]
    """Named in errors."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, block_size: int, input_block_size: int
    ) -> None:
        self.rows = SlotRows(tokenizer, block_size, input_block_size, family=self.family)

    def load(self, example: TokenExample) -> TokenExample:
        """Refuse an example that does not fit."""
        return self.rows.checked(example)

    def __call__(self, examples: Sequence[TokenExample]) -> Batch:
        """Batch examples with `prompt_ids`, `partial_ids`, both or neither."""
        return self.rows.to_fill([self.load(example) for example in examples])
