"""From examples of text to what the collators of text models get, and what these share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from whalesong.core.errors import DataError
from whalesong.core.parts import Batch
from whalesong.data.conversation import Example, text_of
from whalesong.data.text_example import TextExample
from whalesong.textlm.tokenizers import encode

TokenExample = dict[str, Any]
"""`id`, `input_ids` (the target), and perhaps `prompt_ids` or `partial_ids`; lists of ints without
special tokens."""


class TextCollator:
    """The collators of a text model, as loaders want them: examples are tokenized as they load.

    Args:
        tokenizer: of the model.
        collate: the part that makes batches with targets.
        predict: the part that makes batches to generate from, which stand under "prediction"; None
            makes none.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, collate: Any, *, predict: Any = None
    ) -> None:
        self.tokenizer, self.collate, self.predict = tokenizer, collate, predict

    def load(self, example: Example) -> TokenExample:
        """Tokenize an example; the parts may refuse it in a `load` of their own.

        Raises:
            DataError: no target, a token outside the vocabulary, or what a part says of it.
        """
        tokens = self.tokenized(example)
        check_tokens([tokens], vocab_size=len(self.tokenizer))
        for part in (self.collate, self.predict):
            if hasattr(part, "load"):
                tokens = part.load(tokens)
        return tokens

    def __call__(self, examples: Sequence[TokenExample]) -> Batch:
        """Batch tokenized examples; no examples give a batch without targets.

        Where no example has a prompt, there is nothing that what is generated could be compared to.
        """
        batch = self.collate(list(examples))
        if self.predict is not None and any("prompt_ids" in example for example in examples):
            batch["prediction"] = self.prediction_batch(examples)
        return batch

    def prediction_batch(self, examples: Sequence[TokenExample]) -> Batch:
        """What the predictor takes, with the names of the examples."""
        batch = self.predict(list(examples))
        return {**batch, "example_ids": [example["id"] for example in examples]}

    def measure_tokens(self, example: Example) -> int:
        """Tokens of prompt and target, for `batch_tokens` and token filters."""
        tokens = self.tokenized(example)
        return len(tokens["input_ids"]) + len(tokens.get("prompt_ids", ()))

    def tokenized(self, example: Example) -> TokenExample:
        """The token ids of a text with its prompt, if it has one.

        Raises:
            DataError: the example is no text, or has a number that the tokenizer does not know.
        """
        return self._of_text(text_of(example))

    def _of_text(self, example: TextExample) -> TokenExample:
        tokens: TokenExample = {"id": example.id}
        sides = (
            ("input_ids", example.input_ids, example.text),
            ("prompt_ids", example.prompt_ids, example.prompt),
        )
        for key, ids, text in sides:
            if ids is not None:
                tokens[key] = list(ids)
            elif text is not None:
                tokens[key] = self.encoded(text)
        return tokens

    def encoded(self, text: str) -> list[int]:
        """Token ids of a text without special tokens."""
        return encode(self.tokenizer, text)


def without_prompt(example: TokenExample) -> TokenExample:
    """The example as a text alone."""
    return {key: value for key, value in example.items() if key != "prompt_ids"}


def check_tokens(examples: Sequence[TokenExample], *, vocab_size: int) -> None:
    """Refuse examples without a target, or with token ids that no embedding has.

    Raises:
        DataError: one line with the example.
    """
    for example in examples:
        if not example.get("input_ids"):
            raise DataError(f"example {example['id']}: has no target tokens.")
        ids = [*example["input_ids"], *example.get("prompt_ids", ())]
        if wrong := [token for token in ids if not 0 <= token < vocab_size]:
            raise DataError(
                f"example {example['id']}: token id {wrong[0]} is outside the vocabulary of "
                f"{vocab_size} tokens."
            )


def check_lengths(
    examples: Sequence[TokenExample],
    *,
    block_size: int,
    input_block_size: int,
    num_special_target: int = 0,
    num_special_prompt: int = 0,
) -> None:
    """Refuse examples that do not fit into the blocks with their special tokens.

    Raises:
        DataError: one line with the example, its length and the key to set.
    """
    for example in examples:
        sides = (
            ("target", "input_ids", num_special_target, "block_size", block_size),
            ("prompt", "prompt_ids", num_special_prompt, "input_block_size", input_block_size),
        )
        for side, ids, num_special, key, limit in sides:
            if (length := len(example.get(ids) or ()) + num_special) > limit and ids in example:
                raise DataError(
                    f"example {example['id']}: its {side} has {length} tokens with the special "
                    f"ones, but `{key}` is {limit}."
                )


def right_padded(
    rows: Sequence[Sequence[int]], *, pad_id: int, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Pad rows at their right to `length`, or to the longest.

    Returns:
        ids (B, T) and mask (B, T), True = keep.
    """
    return _padded(rows, pad_id=pad_id, length=length, at_left=False)


def left_padded(
    rows: Sequence[Sequence[int]], *, pad_id: int, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Pad rows at their left to `length`, or to the longest.

    Returns:
        ids (B, T) and mask (B, T), True = keep.
    """
    return _padded(rows, pad_id=pad_id, length=length, at_left=True)


def _padded(
    rows: Sequence[Sequence[int]], *, pad_id: int, length: int | None, at_left: bool
) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows), default=0) if length is None else length
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        place = slice(width - len(tokens), width) if at_left else slice(len(tokens))
        ids[row, place] = torch.as_tensor(tokens, dtype=torch.long)
        mask[row, place] = True
    return ids, mask
