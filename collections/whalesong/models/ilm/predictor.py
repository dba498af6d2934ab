"""Generation with ILM: one token after the other goes where it is missed, until nothing is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from whalesong.core.parts import Batch
from whalesong.models.ilm.insertion import GrowingRows
from whalesong.models.ilm.model import IlmModel
from whalesong.modules.generation.sampling import RowNoise, SamplingSettings, sample
from whalesong.textlm.generating import generating, row_noise, step_noise, unwritable_ids
from whalesong.textlm.rows import decoded, plain_rows

Choice = Literal["joint", "position_first"]


@dataclass(frozen=True, kw_only=True)
class IlmSettings:
    """How ILM generates.

    Attributes:
        stop_threshold: probability of "complete" from which on a row stops.
        choice: "joint" draws place and token at once; "position_first" the place, by the sum over
            tokens, and then the token.
        temperature: divides the logits of each draw; 0 takes the most probable.
        top_k: draw from this many most probable ones; 0 keeps all.
        top_p: draw from the fewest most probable ones that reach this sum; 0 keeps all.
        max_length: most tokens behind the prompt.
        history: tell each insertion.

    Raises:
        ValueError: a value out of its range.
    """

    stop_threshold: float
    choice: Choice
    temperature: float
    top_k: int
    top_p: float
    max_length: int
    history: bool

    def __post_init__(self) -> None:
        if not 0 < self.stop_threshold <= 1:
            raise ValueError(
                f"`stop_threshold` must be above 0 and at most 1, but is {self.stop_threshold}."
            )
        if self.choice not in ("joint", "position_first"):
            raise ValueError(
                f"`choice` must be 'joint' or 'position_first', but is '{self.choice}'."
            )
        if self.max_length < 1:
            raise ValueError(f"`max_length` must be at least 1, but is {self.max_length}.")
        _ = self.sampling

    @property
    def sampling(self) -> SamplingSettings:
        """How one value is drawn."""
        return SamplingSettings(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


class IlmPredictor:
    """Inserts tokens until the stop head says that the text is complete.

    All rows of a batch get one token a step; a row that has stopped is left alone. Special tokens
    are never inserted.

    Args:
        model: the network.
        tokenizer: of the model.
        block_size: least width of what comes out, and the default of `max_length`.
        stop_threshold, choice, temperature, top_k, top_p, max_length, history: see `IlmSettings`;
            a call may give others.
    """

    def __init__(
        self,
        *,
        model: IlmModel,
        tokenizer: PreTrainedTokenizerBase,
        block_size: int,
        stop_threshold: float = 0.5,
        choice: Choice = "joint",
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.0,
        max_length: int | None = None,
        history: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.block_size = model, tokenizer, block_size
        self.settings = IlmSettings(
            stop_threshold=stop_threshold,
            choice=choice,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            max_length=block_size if max_length is None else max_length,
            history=history,
        )
        self.unwritable = unwritable_ids(tokenizer, allowed=())

    def predict(
        self, batch: Batch, *, seeds: Sequence[int] | None = None, **generation: Any
    ) -> dict[str, Any]:
        """Complete each row.

        Args:
            batch: from `IlmSeq2SeqPredCollator`.
            seeds: one for each row, with which a row gets what it gets alone; None draws them from
                torch's global generator.
            generation: settings for this call.

        Returns:
            `ids` (B, L), the tokens behind the prompt with PAD behind them; with `history`, for
            each row a list of `step` from 0 on, `text` after it and `confidence`, the probability
            of its insertion.

        Raises:
            TypeError: an unknown setting.
            ValueError: a setting out of its range, or not one seed a row.
        """
        settings = replace(self.settings, **generation)
        noise = row_noise(batch, seeds, 2)
        with generating(self.model):
            return self._complete(batch, settings, noise)

    def to_dict(self, batch: Batch, preds: dict[str, Any]) -> list[dict[str, Any]]:
        """One dictionary for each row, ready for a JSON line."""
        return plain_rows(self.tokenizer, batch, preds)

    def _complete(self, batch: Batch, settings: IlmSettings, noise: RowNoise) -> dict[str, Any]:
        rows = GrowingRows.start(batch)
        width = max(self.block_size, settings.max_length)
        ids = rows.input_ids.new_full((len(rows.rows), width), self.tokenizer.pad_token_id)
        history: list[list[dict[str, Any]]] = [[] for _ in rows.rows]
        if settings.history:
            self._tell(history, 0, rows, torch.ones(len(rows.rows)), width)
        bos = int(rows.prompt_mask.any(0).sum()) - 1  # its column
        for step in count():
            scores, complete = self._read(rows, bos)
            stops = complete >= settings.stop_threshold
            stops |= rows.num_tokens() >= settings.max_length
            ids[rows.rows[stops]] = self._targets(rows.select(stops), width)
            rows, scores = rows.select(~stops), scores[~stops]
            if not len(rows.rows):
                break
            drawn = step_noise(noise, step, scores.device)[rows.rows]
            gaps, tokens = choose(scores, drawn, settings)
            rows = rows.insert(bos + gaps, tokens)
            if settings.history:
                self._tell(history, step + 1, rows, probabilities(scores, gaps, tokens), width)
        return {"ids": ids, "history": history} if settings.history else {"ids": ids}

    def _read(self, rows: GrowingRows, bos: int) -> tuple[Tensor, Tensor]:
        """Logits (A, G, V) of insertions behind BOS and each later token; P(complete) (A,)."""
        hidden = self.model.hidden_states(
            rows.input_ids,
            attention_mask=rows.attention_mask,
            prompt_mask=rows.prompt_mask,
            positions=rows.positions,
        )
        scores = self.model.head(hidden[:, bos:]).float()
        scores = scores.masked_fill(~rows.gap_mask[:, bos:, None], -torch.inf)
        scores[..., self.unwritable] = -torch.inf
        stop_logits = self.model.stop_logits(hidden, rows.attention_mask).float()
        return scores, stop_logits.softmax(-1)[:, 0]

    def _targets(self, rows: GrowingRows, width: int) -> Tensor:
        return rows.target_ids(width, self.tokenizer.pad_token_id)

    def _tell(
        self,
        history: list[list[dict[str, Any]]],
        step: int,
        rows: GrowingRows,
        confidences: Tensor,
        width: int,
    ) -> None:
        """Add what a step made of each row that is still open to its history."""
        texts = [decoded(self.tokenizer, ids) for ids in self._targets(rows, width).tolist()]
        told = zip(rows.rows.tolist(), texts, confidences.tolist(), strict=True)
        for row, text, confidence in told:
            history[row].append({"step": step, "text": text, "confidence": confidence})


def choose(scores: Tensor, noise: Tensor, settings: IlmSettings) -> tuple[Tensor, Tensor]:
    """Draw a place and a token for each row.

    Args:
        scores: (A, G, V), minus infinity where nothing may be inserted.
        noise: (A, 2), uniform in [0, 1).
        settings: temperature, filters, and what is drawn first.

    Returns:
        gaps (A,) and tokens (A,).
    """
    if settings.choice == "joint":
        index = _draw(scores.flatten(1), noise[:, 0], settings.sampling)
        return index // scores.shape[-1], index % scores.shape[-1]
    gaps = _draw(scores.logsumexp(-1), noise[:, 0], settings.sampling)
    there = scores.take_along_dim(gaps[:, None, None], dim=1)[:, 0]  # (A, V)
    return gaps, _draw(there, noise[:, 1], settings.sampling)


def probabilities(scores: Tensor, gaps: Tensor, tokens: Tensor) -> Tensor:
    """Probability (A,) of each insertion among all insertions."""
    chosen = gaps * scores.shape[-1] + tokens
    return scores.flatten(1).softmax(-1).gather(1, chosen[:, None])[:, 0]


def _draw(logits: Tensor, noise: Tensor, sampling: SamplingSettings) -> Tensor:
    """Draw an index (A,) from logits (A, X) by noise (A,)."""
    return sample(logits[:, None], sampling, noise[:, None])[:, 0]
