"""The half that is not autoregressive: one quantizer after the other, all frames at once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from whalesong.models.audiolm.ar import Score
from whalesong.models.audiolm.arrangement import Arrangement
from whalesong.modules.attention import prompt_target_mask
from whalesong.modules.transformer import Transformer


class NARDecoder(nn.Module):
    """Predicts quantizer j (the stage) of all frames of the target from the quantizers below it.

    Frames of the prompt carry all quantizers and see each other; frames of the target carry those
    below the stage and see everything. The stage goes into every block (adaLN), which starts as if
    there were none. The head of a stage is its own embedding table, so its start is small.

    Args:
        num_quantizers: K.
        codebook_sizes: ids of each quantizer; V is the largest number.
        first_stage: k, the lowest quantizer that is predicted here.
        restart_positions: positions of prompt and target both begin at 0; else they run on.
        causal_prompt: the prompt sees only what is before.
        condition_dim: width of a global condition beside the stage.
        transformer: arguments of `Transformer`.

    Attributes:
        stages: the stages, k to K - 1.
        stage_vectors: one for each; without gradient in a step in which the stage is not drawn.
    """

    def __init__(
        self,
        *,
        num_quantizers: int,
        codebook_sizes: Sequence[int],
        first_stage: int,
        restart_positions: bool = False,
        causal_prompt: bool = False,
        condition_dim: int | None = None,
        transformer: dict[str, Any],
    ) -> None:
        super().__init__()
        self.num_quantizers, self.first_stage = num_quantizers, first_stage
        self.restart_positions, self.causal_prompt = restart_positions, causal_prompt
        self.condition_dim = condition_dim
        width = transformer["d_model"]
        self.transformer = Transformer(
            causal=False, condition_dim=width + (condition_dim or 0), **transformer
        )
        # The tables are small for the sake of the heads; absolute positions would drown them.
        self.input_scale = 1.0 if self.transformer.positions is None else width**0.5
        size = max(codebook_sizes)
        self.embeddings = nn.ModuleList(nn.Embedding(size, width) for _ in range(num_quantizers))
        for table in self.embeddings:
            nn.init.normal_(table.weight, std=width**-0.5)
        self.stage_vectors = nn.ParameterList(torch.randn(width) for _ in self.stages)
        impossible = torch.arange(size) >= torch.tensor(codebook_sizes)[:, None]
        bias = torch.zeros(impossible.shape).masked_fill_(impossible, -torch.inf)
        self.register_buffer("logit_bias", bias, persistent=False)

    @property
    def stages(self) -> range:
        """The quantizers that are predicted here."""
        return range(self.first_stage, self.num_quantizers)

    def hidden(
        self, arrangement: Arrangement, stage: int | Tensor, condition: Tensor | None = None
    ) -> Tensor:
        """What each frame's code of the stage is predicted from, (B, F, D).

        Args:
            arrangement: codes of the target from the stage on are not looked at.
            stage: of all rows, or of each (B,).
            condition: (B, G).
        """
        rows = len(arrangement.codes)
        stages = torch.as_tensor(stage, device=arrangement.codes.device).expand(rows)
        seen = prompt_target_mask(
            arrangement.prompt_mask,
            arrangement.mask,
            causal_prompt=self.causal_prompt,
            causal_target=False,
        )
        return self.transformer(
            self._embed(arrangement, stages),
            seen=seen,
            positions=self._positions(arrangement),
            condition=self._condition(stages, condition),
        )

    def logits(
        self, arrangement: Arrangement, stage: int, condition: Tensor | None = None
    ) -> Tensor:
        """Logits of the codes of a stage at all frames, (B, F, V); see `hidden`."""
        return self._head(self.hidden(arrangement, stage, condition), stage)

    def score(
        self, arrangement: Arrangement, stage: int | Tensor, condition: Tensor | None = None
    ) -> Score:
        """Logits (M, V) of the codes of the stage at all frames that count; see `hidden`."""
        hidden = self.hidden(arrangement, stage, condition)
        if isinstance(stage, int):
            return self._score(hidden, arrangement, stage)
        parts = []
        for drawn in stage.unique().tolist():
            of_stage = arrangement.scored_mask & (stage == drawn)[:, None]
            parts.append(self._score(hidden, arrangement, drawn, of_stage))
        return Score(*map(torch.cat, zip(*parts, strict=True)))

    def _score(
        self, hidden: Tensor, arrangement: Arrangement, stage: int, mask: Tensor | None = None
    ) -> Score:
        mask = arrangement.scored_mask if mask is None else mask
        labels = arrangement.codes[:, stage][mask]
        return Score(self._head(hidden[mask], stage), labels, torch.full_like(labels, stage))

    def _head(self, hidden: Tensor, stage: int) -> Tensor:
        weight = self.embeddings[stage].weight
        return nn.functional.linear(hidden, weight, self.logit_bias[stage])

    def _embed(self, arrangement: Arrangement, stages: Tensor) -> Tensor:
        """(B, F, D): all quantizers in the prompt, those below the stage in the target."""
        is_prompt, total = arrangement.prompt_mask, 0.0
        for quantizer, table in enumerate(self.embeddings):
            known = is_prompt | (quantizer < stages)[:, None]
            total = total + table(arrangement.codes[:, quantizer]) * known[..., None]
        return total * self.input_scale

    def _positions(self, arrangement: Arrangement) -> Tensor:
        frames = torch.arange(arrangement.codes.shape[2], device=arrangement.codes.device)
        if not self.restart_positions:
            return frames
        since = frames - arrangement.begins[:, None]
        return torch.where(arrangement.target_mask, since, frames)

    def _condition(self, stages: Tensor, condition: Tensor | None) -> Tensor:
        """The vector of each row's stage, beside the global condition, (B, D + G)."""
        vectors = torch.stack([*self.stage_vectors])[stages - self.first_stage]
        if self.condition_dim is None:
            return vectors
        if condition is None:
            condition = vectors.new_zeros(len(vectors), self.condition_dim)
        return torch.cat((vectors, condition.to(vectors.dtype)), dim=1)
