"""Plain rows of what a text model generated."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from whalesong.core.parts import Batch


def plain_rows(
    tokenizer: PreTrainedTokenizerBase, batch: Batch, preds: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One plain dictionary for each row, ready for a JSON line.

    Args:
        tokenizer: turns ids into text; special tokens are left out of it.
        batch: with `input_ids` and `prompt_mask` (B, T), and perhaps `target_ids` (B, L) and
            `example_ids`.
        preds: with `ids` (B, L), and perhaps `history`, a list for each row.

    Returns:
        Rows of `id`, `prompt`, `text`, `truth`, `ids`, `target_ids` and `history`, as far as they
        are known.
    """
    columns: dict[str, Sequence[Any]] = {}
    if "example_ids" in batch:
        columns["id"] = batch["example_ids"]
    prompts = _kept(batch["input_ids"], batch["prompt_mask"])
    columns["prompt"] = [decoded(tokenizer, ids) for ids in prompts]
    columns["ids"] = preds["ids"].tolist()
    columns["text"] = [decoded(tokenizer, ids) for ids in columns["ids"]]
    if "target_ids" in batch:
        columns["target_ids"] = batch["target_ids"].tolist()
        columns["truth"] = [decoded(tokenizer, ids) for ids in columns["target_ids"]]
    if "history" in preds:
        columns["history"] = preds["history"]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of token ids without special tokens."""
    return tokenizer.decode(ids, skip_special_tokens=True)


def _kept(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
