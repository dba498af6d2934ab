"""Generation with arlm: token by token, until the end of each row."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedTokenizerBase

from whalesong.core.parallel import most_of_all_ranks
from whalesong.core.parts import Batch
from whalesong.models.arlm.model import ArlmModel
from whalesong.models.arlm.steps import CachedSteps, WholeSteps
from whalesong.modules.generation.sampling import SamplingSettings, sample
from whalesong.textlm.generating import (
    generating,
    row_noise,
    step_noise,
    told,
    unwritable_ids,
)
from whalesong.textlm.rows import plain_rows


@dataclass(frozen=True, kw_only=True)
class ArlmGeneration:
    """How arlm generates; see `ArlmPredictor`."""

    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: int
    use_cache: bool
    history: bool

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"`max_new_tokens` must be at least 1, but is {self.max_new_tokens}.")

    @property
    def sampling(self) -> SamplingSettings:
        """How a token is drawn."""
        return SamplingSettings(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


class ArlmPredictor:
    """Writes on from prompts until EOS; the default is greedy.

    Args:
        model: the network.
        tokenizer: EOS ends a row, PAD stands behind it; other special tokens are never written.
        block_size: most tokens of a target with EOS.
        temperature: divides the logits; 0 takes the most probable token.
        top_k: keep this many most probable tokens; 0 keeps all.
        top_p: of these keep the fewest whose probabilities reach this sum; 0 keeps all.
        max_new_tokens: tokens to write at most, EOS included; default `block_size`.
        use_cache: keep keys and values; without, each step reads all tokens again.
        history: `predict` also tells how each row came about.
    """

    def __init__(
        self,
        *,
        model: ArlmModel,
        tokenizer: PreTrainedTokenizerBase,
        block_size: int,
        temperature: float = 1.0,
        top_k: int = 1,
        top_p: float = 0.0,
        max_new_tokens: int | None = None,
        use_cache: bool = True,
        history: bool = False,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.settings = ArlmGeneration(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            max_new_tokens=block_size if max_new_tokens is None else max_new_tokens,
            use_cache=use_cache,
            history=history,
        )
        self._unwritable = unwritable_ids(tokenizer, allowed=[tokenizer.eos_token_id])

    def predict(
        self, batch: Batch, *, seeds: Sequence[int] | None = None, **generation: Any
    ) -> dict[str, Any]:
        """Generate for each row.

        Args:
            batch: from `ArlmSeq2SeqPredCollator`.
            seeds: one for each row, which then draws the same in every batch; None draws them.
            **generation: settings of the constructor that differ.

        Returns:
            "ids" (B, max_new_tokens), PAD behind EOS; with `history`, "history": for each row
            `{"step", "text"}` at the begin and after each token.

        Raises:
            TypeError: an unknown setting.
            ValueError: a setting out of its range, or not one seed a row.
        """
        settings = replace(self.settings, **generation)
        with generating(self.model):
            ids = self._write(batch, settings, seeds)
        if not settings.history:
            return {"ids": ids}
        return {"ids": ids, "history": [self._history(row) for row in ids.tolist()]}

    def to_dict(self, batch: Batch, preds: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of prompt, text and ids, with the truth where it is known."""
        return plain_rows(self.tokenizer, batch, preds)

    def _write(self, batch: Batch, settings: ArlmGeneration, seeds: Sequence[int] | None) -> Tensor:
        """(B, max_new_tokens)."""
        sampling, length = settings.sampling, settings.max_new_tokens
        pad_id, eos_id = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        num_rows, device = len(batch["input_ids"]), batch["input_ids"].device
        ids = torch.full((num_rows, length), pad_id, device=device)
        ended = torch.zeros(num_rows, dtype=torch.bool, device=device)
        noise = row_noise(batch, seeds, 1)
        # Sharded weights are gathered in `forward` only.
        has_cache = settings.use_cache and not isinstance(self.model, FSDPModule)
        steps = (CachedSteps if has_cache else WholeSteps)(self.model, batch, length)
        for step in range(length):
            if not most_of_all_ranks(self.model, int(not ended.all())):
                break
            logits = steps.logits() if step == 0 else steps.after(ids[:, step - 1])
            logits[:, self._unwritable] = -torch.inf
            drawn = sample(logits[:, None], sampling, step_noise(noise, step, device))[:, 0]
            ids[:, step] = drawn.masked_fill(ended, pad_id)
            ended |= drawn == eos_id
        return ids

    def _history(self, row: list[int]) -> list[dict[str, Any]]:
        eos_id = self.tokenizer.eos_token_id
        length = row.index(eos_id) if eos_id in row else len(row)
        return told(self.tokenizer, [row[:step] for step in range(length + 1)])
