"""Generation with mlm: slots are filled in the order that the model is sure of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from whalesong.core.parallel import most_of_all_ranks
from whalesong.core.parts import Batch
from whalesong.models.mlm.model import MlmModel
from whalesong.modules.generation.sampling import SamplingSettings, sample
from whalesong.textlm.generating import (
    generating,
    row_noise,
    step_noise,
    told,
    unwritable_ids,
)
from whalesong.textlm.rows import plain_rows
from whalesong.textlm.tokenizers import require
from whalesong.textlm.unmasking import Strategy, Unmasking


@dataclass(frozen=True, kw_only=True)
class MlmGeneration:
    """How mlm generates; see `MlmPredictor`."""

    strategy: Strategy
    threshold: float | None
    num_steps: int
    temperature: float
    top_k: int
    top_p: float
    history: bool

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"`num_steps` must be at least 1, but is {self.num_steps}.")

    @property
    def sampling(self) -> SamplingSettings:
        """How a token is drawn."""
        return SamplingSettings(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)

    @property
    def unmasking(self) -> Unmasking:
        """How slots are chosen."""
        return Unmasking(strategy=self.strategy, threshold=self.threshold)


class MlmPredictor:
    """Fills masked slots step by step; by default one slot a step, the surest, greedily.

    Args:
        model: the network.
        tokenizer: special tokens other than EOS and PAD are never written.
        block_size: slots of a target.
        strategy: which slots come first, see `Unmasking`.
        threshold: fill more slots a step where the model is sure, see `Unmasking`.
        num_steps: steps at most, and exactly as many without a threshold where a row has so many
            masks; default `block_size`.
        temperature: divides the logits; 0 takes the most probable token.
        top_k: keep this many most probable tokens; 0 keeps all.
        top_p: of these keep the fewest whose probabilities reach this sum; 0 keeps all.
        history: `predict` also tells how each row came about.
    """

    def __init__(
        self,
        *,
        model: MlmModel,
        tokenizer: PreTrainedTokenizerBase,
        block_size: int,
        strategy: Strategy = "top_prob",
        threshold: float | None = None,
        num_steps: int | None = None,
        temperature: float = 1.0,
        top_k: int = 1,
        top_p: float = 0.0,
        history: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.block_size = model, tokenizer, block_size
        self.settings = MlmGeneration(
            strategy=strategy,
            threshold=threshold,
            num_steps=block_size if num_steps is None else num_steps,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            history=history,
        )
        self.mask_id = require(tokenizer, "mask_token", for_what="mlm")
        allowed = [tokenizer.eos_token_id, tokenizer.pad_token_id]
        self._unwritable = unwritable_ids(tokenizer, allowed=allowed)

    def predict(
        self, batch: Batch, *, seeds: Sequence[int] | None = None, **generation: Any
    ) -> dict[str, Any]:
        """Fill the masked slots of each row; other tokens stay.

        Args:
            batch: from `MlmSeq2SeqPredCollator`.
            seeds: one for each row, which then draws the same in every batch; None draws them.
            **generation: settings of the constructor that differ.

        Returns:
            "ids" (B, block_size), as the model says, PAD behind EOS; with `history`, "history": for
            each row `{"step", "text"}` at the begin and after each step that changed it.

        Raises:
            TypeError: an unknown setting.
            ValueError: a setting out of its range, or not one seed a row.
        """
        settings = replace(self.settings, **generation)
        noise = row_noise(batch, seeds, 2 * self.block_size)
        unmasking, sampling = settings.unmasking, settings.sampling
        ids = batch["input_ids"][:, -self.block_size :].clone()
        states = [ids]
        with generating(self.model):
            for step in range(settings.num_steps):
                is_masked = ids == self.mask_id
                if not most_of_all_ranks(self.model, int(is_masked.any())):
                    break
                drawn, places = step_noise(noise, step, ids.device).chunk(2, dim=1)
                logits = self._logits(batch, ids)
                steps_left = settings.num_steps - step
                chosen = unmasking.choose(
                    is_masked, logits.softmax(-1), places, steps_left=steps_left
                )
                ids = torch.where(chosen, sample(logits, sampling, drawn), ids)
                states.append(ids)
        if not settings.history:
            return {"ids": ids}
        rows = torch.stack(states, dim=1).tolist()
        return {"ids": ids, "history": [told(self.tokenizer, row) for row in rows]}

    def to_dict(self, batch: Batch, preds: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of prompt, text and ids, with the truth where it is known."""
        return plain_rows(self.tokenizer, batch, preds)

    def _logits(self, batch: Batch, ids: Tensor) -> Tensor:
        """Logits (B, L, V) of the slots, in fp32."""
        input_ids = torch.cat((batch["input_ids"][:, : -self.block_size], ids), dim=1)
        is_slot = torch.zeros_like(input_ids, dtype=torch.bool)
        is_slot[:, -self.block_size :] = True
        logits = self.model(
            input_ids, batch["attention_mask"], prompt_mask=batch["prompt_mask"], at=is_slot
        )
        logits[:, self._unwritable] = -torch.inf
        return logits.float().unflatten(0, ids.shape)
