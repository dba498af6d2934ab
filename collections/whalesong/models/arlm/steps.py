"""Logits of the next token of each row, with and without a cache: the same numbers."""

import torch
from torch import Tensor

from whalesong.core.parts import Batch
from whalesong.models.arlm.model import ArlmModel


class WholeSteps:
    """Each step reads all tokens again.

    Args:
        model: in evaluation mode.
        batch: `input_ids`, `attention_mask` and `prompt_mask` (B, T) of left-padded prompts.
        num_steps: tokens that will be written at most.
    """

    def __init__(self, model: ArlmModel, batch: Batch, num_steps: int) -> None:
        self.model = model
        self._ids = batch["input_ids"]
        self._mask, self._prompt_mask = batch["attention_mask"], batch["prompt_mask"]

    def logits(self) -> Tensor:
        """Logits (B, V) of the token that follows."""
        last = torch.zeros_like(self._mask)
        last[:, -1] = True
        return self.model(self._ids, self._mask, prompt_mask=self._prompt_mask, at=last)

    def after(self, ids: Tensor) -> Tensor:
        """Put a token (B,) behind each row; logits (B, V) of the next."""
        added = torch.ones_like(ids, dtype=torch.bool)[:, None]
        self._ids = torch.cat((self._ids, ids[:, None]), dim=1)
        self._mask = torch.cat((self._mask, added), dim=1)
        self._prompt_mask = torch.cat((self._prompt_mask, ~added), dim=1)
        return self.logits()


class CachedSteps:
    """Each step reads one token; keys and values of those before it are kept.

    Args:
        model: in evaluation mode.
        batch: `input_ids`, `attention_mask` and `prompt_mask` (B, T) of left-padded prompts.
        num_steps: tokens that will be written at most.
    """

    def __init__(self, model: ArlmModel, batch: Batch, num_steps: int) -> None:
        self.model, self._batch = model, batch
        num_rows, prompt_len = batch["input_ids"].shape
        self._cache = model.init_cache(num_rows, prompt_len + num_steps)

    def logits(self) -> Tensor:
        """Logits (B, V) of the token that follows the prompt."""
        mask = self._batch["attention_mask"]
        last = torch.zeros_like(mask)
        last[:, -1] = True
        return self.model(
            self._batch["input_ids"],
            mask,
            prompt_mask=self._batch["prompt_mask"],
            cache=self._cache,
            at=last,
        )

    def after(self, ids: Tensor) -> Tensor:
        """Put a token (B,) behind each row; logits (B, V) of the next."""
        return self.model(ids[:, None], cache=self._cache)[:, 0]
