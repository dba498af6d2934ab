"""Logits of the next token of each row, with and without a cache: the same numbers."""

import torch
from torch import Tensor

from whalesong.core.parts import Batch
from whalesong.models.arlm.model import ArlmModel
from whalesong.modules.generation.decoder import StepDecoder
from whalesong.modules.kv_cache import KVCache


class WholeSteps:
    """Each step reads all tokens again.

    Args:
        model: in evaluation mode.
        batch: `input_ids`, `attention_mask` and `prompt_mask` (B, T) of left-padded prompts.
        num_steps: tokens that will be written at most.
    """

    def __init__(self, model: ArlmModel, batch: Batch, num_steps: int) -> None:
        self.model = model
        self._batch = {key: batch[key] for key in ("input_ids", "attention_mask", "prompt_mask")}

    def logits(self) -> Tensor:
        """Logits (B, V) of the token that follows."""
        return last_logits(self.model, self._batch)

    def after(self, ids: Tensor) -> Tensor:
        """Put a token (B,) behind each row; logits (B, V) of the next."""
        is_token = torch.ones_like(ids, dtype=torch.bool)
        added = {"input_ids": ids, "attention_mask": is_token, "prompt_mask": ~is_token}
        for key, values in added.items():
            self._batch[key] = torch.cat((self._batch[key], values[:, None]), dim=1)
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
        self._decoder = StepDecoder(model.transformer, num_rows=num_rows, copy_large=False)

    def logits(self) -> Tensor:
        """Logits (B, V) of the token that follows the prompt."""
        logits = last_logits(self.model, self._batch, cache=self._cache)
        self._steps = self._decoder.begin(self._cache)
        return logits

    def after(self, ids: Tensor) -> Tensor:
        """Put a token (B,) behind each row; logits (B, V) of the next."""
        hidden = self._decoder.step(self.model.embedding(ids), self._steps)
        return self.model.head(hidden)


def last_logits(model: ArlmModel, batch: Batch, *, cache: KVCache | None = None) -> Tensor:
    """Logits (B, V) at the last position."""
    mask = batch["attention_mask"]
    last = torch.zeros_like(mask)
    last[:, -1] = True
    prompt_mask = batch["prompt_mask"]
    return model(batch["input_ids"], mask, prompt_mask=prompt_mask, cache=cache, at=last)
