"""Batches of arlm: prompts are padded at their left, so that targets follow them without a gap."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from whalesong.core.errors import DataError
from whalesong.core.parts import Batch
from whalesong.textlm.collation import (
    TokenExample,
    check_lengths,
    left_padded,
    right_padded,
    without_prompt,
)
from whalesong.textlm.tokenizers import require

IGNORED = -100
"""Label of what is not learned."""


class ArlmSeq2SeqPredCollator:
    """Prompts to write on from: `[PAD] prompt BOS`; without a prompt, BOS alone.

    Keys: `input_ids`, `attention_mask` (False at padding) and `prompt_mask` (the same), all (B, T);
    if all examples have a target, `target_ids` (B, block_size), padded at the right.

    Args:
        tokenizer: its BOS, EOS and PAD stand around the tokens.
        block_size: most tokens of a target with EOS.
        input_block_size: most tokens of a prompt with BOS.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, block_size: int, input_block_size: int
    ) -> None:
        self.block_size, self.input_block_size = block_size, input_block_size
        self.bos_id, self.eos_id, self.pad_id = (
            require(tokenizer, name, for_what="arlm")
            for name in ("bos_token", "eos_token", "pad_token")
        )

    def load(self, example: TokenExample) -> TokenExample:
        """Give an example back.

        Raises:
            DataError: it is too long, or has gaps to fill.
        """
        if "partial_ids" in example:
            raise DataError(
                f"example {example['id']}: arlm writes from left to right and must not have gaps "
                "to fill; use mlm, ilm or mdlm."
            )
        sizes = {"block_size": self.block_size, "input_block_size": self.input_block_size}
        check_lengths([example], **sizes, num_special_target=1, num_special_prompt=1)
        return example

    def __call__(self, examples: Sequence[TokenExample]) -> Batch:
        """Batch examples; no examples give no rows."""
        ids, mask = left_padded(self.prompts(examples), pad_id=self.pad_id)
        batch = {"input_ids": ids, "attention_mask": mask, "prompt_mask": mask}
        if examples and all("input_ids" in example for example in examples):
            targets = self.targets(examples)
            length = self.block_size
            batch["target_ids"], _ = right_padded(targets, length=length, pad_id=self.pad_id)
        return batch

    def prompts(self, examples: Sequence[TokenExample]) -> list[list[int]]:
        """The prompt of each example with BOS behind it."""
        return [[*self.load(example).get("prompt_ids", ()), self.bos_id] for example in examples]

    def targets(self, examples: Sequence[TokenExample]) -> list[list[int]]:
        """The target of each example with its end."""
        return [[*self.load(example)["input_ids"], self.eos_id] for example in examples]


class DefaultArlmPredCollator(ArlmSeq2SeqPredCollator):
    """Beginnings of texts to write on from: `[PAD] BOS prompt`; without a prompt, BOS alone.

    Keys as with `ArlmSeq2SeqPredCollator`.

    Args:
        tokenizer: its BOS, EOS and PAD stand around the tokens.
        block_size: most tokens of a text with EOS, and of a beginning with BOS.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, block_size: int) -> None:
        super().__init__(tokenizer, block_size, input_block_size=block_size)

    def prompts(self, examples: Sequence[TokenExample]) -> list[list[int]]:
        """The beginning of each example with BOS before it."""
        return [[self.bos_id, *self.load(example).get("prompt_ids", ())] for example in examples]


class ArlmSeq2SeqCollator(ArlmSeq2SeqPredCollator):
    """Prompts and targets to learn from: `[PAD] prompt BOS target EOS [PAD]`.

    Keys, all (B, T): `input_ids`; `attention_mask`, False at padding; `prompt_mask`, True at prompt
    and BOS; `labels`, at each position the token that follows it, -100 where nothing is learned.

    Args:
        tokenizer: its BOS, EOS and PAD stand around the tokens.
        block_size: most tokens of a target with EOS.
        input_block_size: most tokens of a prompt with BOS.
        loss_on_prompt: the tokens of the prompt are learned as well.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        block_size: int,
        input_block_size: int,
        *,
        loss_on_prompt: bool = False,
    ) -> None:
        super().__init__(tokenizer, block_size, input_block_size)
        self.loss_on_prompt = loss_on_prompt

    def __call__(self, examples: Sequence[TokenExample]) -> Batch:
        """Batch examples; no examples give a row without labels."""
        prompts = self.prompts(examples) or [[self.bos_id]]
        targets = self.targets(examples) or [[self.eos_id]]
        prompt_ids, prompt_mask = left_padded(prompts, pad_id=self.pad_id)
        target_ids, target_mask = right_padded(targets, pad_id=self.pad_id)
        ids = torch.cat((prompt_ids, target_ids), dim=1)
        mask = torch.cat((prompt_mask, target_mask), dim=1)
        is_prompt = torch.cat((prompt_mask, torch.zeros_like(target_mask)), dim=1)
        learned = (mask if self.loss_on_prompt else mask & ~is_prompt)[:, 1:] & mask[:, :-1]
        labels = ids[:, 1:].masked_fill(~learned, IGNORED)
        if not examples:
            labels.fill_(IGNORED)
        return {
            "input_ids": ids[:, :-1],
            "attention_mask": mask[:, :-1],
            "prompt_mask": is_prompt[:, :-1],
            "labels": labels,
        }


class DefaultArlmCollator(ArlmSeq2SeqCollator):
    """Texts to learn from: `BOS text EOS [PAD]`; prompts are left aside.

    Keys as with `ArlmSeq2SeqCollator`; `prompt_mask` is True at BOS.

    Args:
        tokenizer: its BOS, EOS and PAD stand around the tokens.
        block_size: most tokens of a text with EOS.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, block_size: int) -> None:
        super().__init__(tokenizer, block_size, input_block_size=1)

    def load(self, example: TokenExample) -> TokenExample:
        """Give an example without its prompt; a `DataError` refuses one that is too long."""
        return super().load(without_prompt(example))
