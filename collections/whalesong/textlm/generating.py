"""What predictors of text models share: evaluation mode, and seeds that belong to rows."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from whalesong.core.parts import Batch
from whalesong.modules.evaluating import evaluating
from whalesong.modules.generation.sampling import RowNoise


@contextmanager
def generating(model: nn.Module) -> Iterator[None]:
    """Without gradients and dropout; afterwards every part is in its mode again."""
    with evaluating(model), torch.inference_mode():
        yield


def row_noise(batch: Batch, seeds: Sequence[int] | None, num_values: int) -> RowNoise:
    """Noise of each row: `num_values` uniform numbers a step, a function of the row's seed only.

    Args:
        batch: with `input_ids` (B, T).
        seeds: one for each row; None draws them from torch's global generator.
        num_values: numbers that a row needs in one step.

    Raises:
        ValueError: not one seed a row.
    """
    num_rows = len(batch["input_ids"])
    if seeds is None:
        seeds = torch.randint(2**62, (num_rows,)).tolist()
    if len(seeds) != num_rows:
        raise ValueError(f"`seeds` must be {num_rows}, one for each row, but are {len(seeds)}.")
    return RowNoise(seeds, num_values)


def step_noise(noise: RowNoise, step: int, device: torch.device) -> Tensor:
    """The numbers of one step, (B, num_values), in [0, 1)."""
    return noise.frames(step, step + 1)[:, :, 0].to(device)


def unwritable_ids(tokenizer: PreTrainedTokenizerBase, *, allowed: Sequence[int]) -> list[int]:
    """Special tokens that a model must not write: all but the `allowed` ones."""
    return sorted(set(tokenizer.all_special_ids) - set(allowed))


def told(
    tokenizer: PreTrainedTokenizerBase, states: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    """How a row came about: `{"step", "text"}` of each state that differs from the one before.

    Args:
        tokenizer: turns ids into text; masks show, other special tokens do not.
        states: token ids at the begin, and after each step.
    """
    hidden = set(tokenizer.all_special_ids) - {tokenizer.mask_token_id}
    return [
        {"step": step, "text": tokenizer.decode([token for token in ids if token not in hidden])}
        for step, ids in enumerate(states)
        if step == 0 or ids != states[step - 1]
    ]
