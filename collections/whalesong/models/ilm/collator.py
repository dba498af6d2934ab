"""Batches of ILM: texts from which random tokens are missing, and texts to complete."""

from collections.abc import Sequence

import torch
from torch import Tensor
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


class DefaultIlmCollator:
    """Texts without prompts, some of whose tokens are missing, to train on.

    A row is `[CLS, BOS, kept tokens, PAD]`. Of L tokens, any number from 0 to L is equally likely
    to be missing, and any choice of so many tokens.

    Args:
        tokenizer: of the model; it needs CLS, BOS and PAD.
        block_size: longest target.
        input_block_size: longest prompt with its two special tokens; 0 if there are no prompts.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, block_size: int, input_block_size: int = 0
    ) -> None:
        self.tokenizer = tokenizer
        self.block_size, self.input_block_size = block_size, input_block_size
        self.cls_id = require(tokenizer, "cls_token", for_what="ilm")
        self.bos_id = require(tokenizer, "bos_token", for_what="ilm")
        self.pad_id = require(tokenizer, "pad_token", for_what="ilm")

    def load(self, example: TokenExample) -> TokenExample:
        """Refuse an example that is too long.

        Raises:
            DataError: its prompt or its target does not fit.
        """
        check_lengths(
            [example],
            block_size=self.block_size,
            input_block_size=self.input_block_size,
            num_special_prompt=2,
        )
        return example

    def __call__(self, examples: Sequence[TokenExample]) -> Batch:
        """Batch examples; what is missing is drawn from torch's global generator.

        Returns:
            `input_ids` (B, T), `attention_mask` (B, T), `prompt_mask` (B, T), True up to BOS, and
            `gap_mask` (B, T), True where tokens may be missing right behind; the missing tokens as
            `labels` (B, N), -100 = ignored, each in the gap behind the position in `gaps` (B, N).
        """
        targets, mask = right_padded(
            [example["input_ids"] for example in examples], pad_id=self.pad_id
        )
        missing = draw_missing(mask)
        kept = mask & ~missing
        rank = kept.cumsum(1)  # kept tokens up to here
        prompts, prompt_mask = self._prompts(examples)
        bos = prompts.shape[1] - 1
        num_kept = kept.sum(1, keepdim=True)
        width = int(num_kept.max()) if len(num_kept) else 0
        kept_mask = torch.arange(width) < num_kept
        kept_ids = targets.new_full(kept_mask.shape, self.pad_id)
        kept_ids[kept_mask] = targets[kept]
        return {
            **self._joined(prompts, prompt_mask, kept_ids, kept_mask),
            "gap_mask": torch.cat((_last_only(prompt_mask), kept_mask), dim=1),
            "labels": targets.masked_fill(~missing, -100),
            "gaps": (bos + rank).masked_fill(~missing, 0),
        }

    def _prompts(self, examples: Sequence[TokenExample]) -> tuple[Tensor, Tensor]:
        rows = [self._prompt(example) for example in examples]
        width = max(map(len, rows), default=2)  # a batch of no rows needs columns, too
        return left_padded(rows, pad_id=self.pad_id, length=width)

    def _prompt(self, example: TokenExample) -> list[int]:
        return [self.cls_id, self.bos_id]

    def _joined(
        self, prompts: Tensor, prompt_mask: Tensor, ids: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        """What every batch of the family has: prompts, and tokens behind them."""
        return {
            "input_ids": torch.cat((prompts, ids), dim=1),
            "attention_mask": torch.cat((prompt_mask, mask), dim=1),
            "prompt_mask": torch.cat((prompt_mask, torch.zeros_like(mask)), dim=1),
        }


class IlmSeq2SeqCollator(DefaultIlmCollator):
    """The same with prompts: `[PAD, CLS, prompt, BOS, kept tokens, PAD]`."""

    def _prompt(self, example: TokenExample) -> list[int]:
        return [self.cls_id, *example.get("prompt_ids", ()), self.bos_id]


class IlmSeq2SeqPredCollator(IlmSeq2SeqCollator):
    """Prompts, with the known tokens behind them, to generate from; the prompt may be empty.

    Where `partial_ids` have one mask token or several on end, any number of tokens may be inserted;
    without one, anywhere. An example without `partial_ids` has no known tokens.
    """

    def load(self, example: TokenExample) -> TokenExample:
        """Refuse an example that is too long.

        Raises:
            DataError: its prompt, its target or its known tokens do not fit.
        """
        known, _ = self._known(example.get("partial_ids", ()))
        if len(known) > self.block_size:
            raise DataError(
                f"example {example['id']}: has {len(known)} known tokens, but `block_size` is "
                f"{self.block_size}."
            )
        return super().load(example)

    def __call__(self, examples: Sequence[TokenExample]) -> Batch:
        """Batch examples to complete.

        Returns:
            `input_ids`, `attention_mask`, `prompt_mask` and `gap_mask` as in training, and
            `target_ids` (B, block_size), the targets with PAD behind them, if all have one.

        Raises:
            DataError: an example is too long.
        """
        examples = [self.load(example) for example in examples]
        prompts, prompt_mask = self._prompts(examples)
        known = [self._known(example.get("partial_ids", ())) for example in examples]
        ids, mask = right_padded([ids for ids, _ in known], pad_id=self.pad_id)
        gaps, _ = right_padded([gaps for _, gaps in known], pad_id=0)
        gap_mask = gaps.bool()
        batch = self._joined(prompts, prompt_mask, ids, mask)
        batch["gap_mask"] = torch.cat((torch.zeros_like(prompt_mask[:, 1:]), gap_mask), dim=1)
        if examples and all("input_ids" in example for example in examples):
            targets = [example["input_ids"] for example in examples]
            batch["target_ids"], _ = right_padded(
                targets, pad_id=self.pad_id, length=self.block_size
            )
        return batch

    def _known(self, partial: Sequence[int]) -> tuple[list[int], list[bool]]:
        """The known tokens, and for BOS and each of them whether anything may come behind it."""
        mask_id = self.tokenizer.mask_token_id
        anywhere = mask_id not in partial
        ids, gaps = [], [anywhere]
        for token in partial:
            if token == mask_id:
                gaps[-1] = True
            else:
                ids.append(token)
                gaps.append(anywhere)
        return ids, gaps


class DefaultIlmPredCollator(IlmSeq2SeqPredCollator):
    """Texts to complete, or none, to generate from; a prompt is the beginning of a text."""

    def load(self, example: TokenExample) -> TokenExample:
        """Take a prompt for known tokens after which text may follow; refuse what is too long."""
        if prompt := example.get("prompt_ids"):
            example = {**example, "partial_ids": [*prompt, self.tokenizer.mask_token_id]}
        return super().load(without_prompt(example))


def draw_missing(mask: Tensor) -> Tensor:
    """Draw how many tokens of each row are missing, from none to all, and which ones.

    Args:
        mask: (B, L), True where a token is.

    Returns:
        (B, L), True where a token is missing.
    """
    lengths = mask.sum(1, keepdim=True)
    num_missing = (torch.rand(lengths.shape, dtype=torch.float64) * (lengths + 1)).long()
    order = torch.rand(mask.shape).masked_fill(~mask, torch.inf).argsort(1)
    chosen = torch.arange(mask.shape[1]) < num_missing
    return torch.zeros_like(mask).scatter(1, order, chosen)


def _last_only(mask: Tensor) -> Tensor:
    """The mask (B, T) with its last column only."""
    return torch.cat((torch.zeros_like(mask[:, :-1]), mask[:, -1:]), dim=1)
