"""The autoregressive half: the first quantizers of each frame, step by step, behind a prompt."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from whalesong.models.audiolm.arrangement import Arrangement
from whalesong.modules.attention import prompt_target_mask
from whalesong.modules.codebook_patterns import PatternProvider, build_pattern
from whalesong.modules.pattern_layout import BatchLayout
from whalesong.modules.transformer import Transformer

IGNORED = -100
"""Label of what is not learned."""

PATTERNS = {"parallel": "parallel", "delayed": "delay"}


class Prompt(NamedTuple):
    """The steps of the prompt of each row, close to each other from the left on."""

    embeds: Tensor
    """(B, S, D)"""
    lens: Tensor
    """(B,) steps of the prompt."""
    positions: Tensor
    """(B, S)"""
    start: Tensor
    """(B,) position of the separator, behind which the target goes on counting."""


class Score(NamedTuple):
    """Logits of everything that is learned of a batch, with its labels."""

    logits: Tensor
    """(M, V + 1)"""
    labels: Tensor
    """(M,): codes, or V where the recording ends."""
    quantizers: Tensor
    """(M,): the quantizer of each."""


class Target(NamedTuple):
    """The steps of the target of each row."""

    tokens: Tensor
    """(B, C, P), V where nothing stands; the first step is empty."""
    layout: BatchLayout
    labels: Tensor
    """(B, C, n): codes, V where the recording ends, or `IGNORED`."""
    num_steps: Tensor
    """(B,): steps of a row that the model takes."""


class ARDecoder(nn.Module):
    """Predicts the first k quantizers of G frames at a time: C = k * G columns a step.

    The prompt stands in front, all quantizers of a frame summed, and sees itself in both
    directions; then comes a step in which nothing stands, whose embedding is the learned separator;
    then the target, causally. The heads are not tied to embeddings, and each column has its own.

    Args:
        num_quantizers: K.
        codebook_sizes: ids of each quantizer; V is the largest number.
        ar_quantizers: k.
        ar_pattern: order of the k quantizers: all of a frame in one step, or each one step behind
            the one before.
        ar_group: G.
        predict_eos: the end of a recording can be predicted.
        restart_positions: positions of prompt and target both begin at 0; else they run on.
        causal_prompt: the prompt sees only what is before.
        transformer: arguments of `Transformer`.

    Attributes:
        num_columns: C; column q * G + g is quantizer q of frame g of a step.
        codebook_size: V; as an input V says that nothing stands there, as an output it is the end.
        pattern: of the columns over the steps.
    """

    def __init__(
        self,
        *,
        num_quantizers: int,
        codebook_sizes: Sequence[int],
        ar_quantizers: int = 1,
        ar_pattern: Literal["parallel", "delayed"] = "parallel",
        ar_group: int = 1,
        predict_eos: bool = True,
        restart_positions: bool = False,
        causal_prompt: bool = False,
        transformer: dict[str, Any],
    ) -> None:
        super().__init__()
        if ar_pattern == "delayed" and ar_group > 1:
            raise ValueError("`ar_pattern` must be 'parallel' where `ar_group` is above 1, but is "
                             "'delayed'.")  # fmt: skip
        self.ar_quantizers, self.ar_group = ar_quantizers, ar_group
        self.codebook_size = max(codebook_sizes)
        self.num_columns = ar_quantizers * ar_group
        self.restart_positions, self.causal_prompt = restart_positions, causal_prompt
        self.pattern: PatternProvider = build_pattern(PATTERNS[ar_pattern], self.num_columns)
        self.transformer = Transformer(causal=True, **transformer)
        width = self.transformer.d_model
        self.prompt_embeddings = self._tables(num_quantizers * ar_group, width)
        self.target_embeddings = self._tables(self.num_columns, width)
        self.heads = nn.Linear(width, self.num_columns * (self.codebook_size + 1), bias=False)
        nn.init.normal_(self.heads.weight, std=0.02)
        bias = self._logit_bias(codebook_sizes, predict_eos)
        self.register_buffer("logit_bias", bias, persistent=False)

    def _tables(self, count: int, width: int) -> nn.ModuleList:
        tables = nn.ModuleList(nn.Embedding(self.codebook_size + 1, width) for _ in range(count))
        # Absolute positions are of the size of 1, and would drown smaller embeddings.
        std = width**-0.5 if self.transformer.positions is None else 1.0
        for table in tables:
            nn.init.normal_(table.weight, std=std)
        return tables

    def _logit_bias(self, codebook_sizes: Sequence[int], predict_eos: bool) -> Tensor:
        """(C, V + 1): 0, or minus infinity for what a column can never be."""
        ids = torch.arange(self.codebook_size + 1)
        sizes = torch.tensor(codebook_sizes[: self.ar_quantizers])[:, None]
        possible = ids < sizes  # (k, V + 1)
        possible[0, self.codebook_size] = predict_eos
        bias = torch.zeros(possible.shape).masked_fill_(~possible, -torch.inf)
        return bias.repeat_interleave(self.ar_group, dim=0)

    # -- steps ------------------------------------------------------------------------------------

    def to_columns(self, frames: Tensor, fill: int | bool) -> Tensor:
        """From frames (B, q, F) to steps (B, q * G, ceil(F / G)), `fill` behind the last frame."""
        missing = -frames.shape[2] % self.ar_group
        padded = nn.functional.pad(frames, (0, missing), value=fill)
        return padded.unflatten(2, (-1, self.ar_group)).transpose(2, 3).flatten(1, 2)

    def from_columns(self, steps: Tensor) -> Tensor:
        """From steps (B, q * G, n) to frames (B, q, n * G)."""
        return steps.unflatten(1, (-1, self.ar_group)).transpose(2, 3).flatten(2, 3)

    def embed_steps(self, tokens: Tensor) -> Tensor:
        """Sum of the embeddings of each step's ids: (B, C, p) -> (B, p, D)."""
        return sum_embeddings(self.target_embeddings, tokens)

    def prompt(self, arrangement: Arrangement) -> Prompt:
        """Embed the prompt: what is before the target, then what is behind it.

        Frames are grouped so that those next to the target stand in full steps.
        """
        group, device = self.ar_group, arrangement.codes.device
        before = ceil_div(arrangement.begins, group)
        behind = ceil_div(arrangement.lens - arrangement.ends, group)
        lens = before + behind
        steps = torch.arange(int(lens.max()), device=device).expand(len(lens), -1)
        is_before = steps < before[:, None]
        first = torch.where(
            is_before,
            steps * group - (before * group - arrangement.begins)[:, None],
            (steps - before[:, None]) * group + arrangement.ends[:, None],
        )
        frames = (first[..., None] + torch.arange(group, device=device)).flatten(1)  # (B, S * G)
        nothing = (frames < 0) | (frames >= arrangement.lens[:, None])
        codes = _take_frames(arrangement.codes, frames).masked_fill(
            nothing[:, None], self.codebook_size
        )
        embeds = sum_embeddings(self.prompt_embeddings, self.to_columns(codes, self.codebook_size))
        skipped = 1 + ceil_div(arrangement.target_lens, group)
        positions = torch.where(is_before, steps, steps + skipped[:, None])
        start = torch.zeros_like(before) if self.restart_positions else before
        return Prompt(embeds, lens, positions, start)

    def target(self, arrangement: Arrangement) -> Target:
        """The target as steps, and what is to be learned of it."""
        lens = arrangement.target_lens
        closes = arrangement.closes & (lens > 0)
        num_frames = int((lens + closes).max())
        index = torch.arange(num_frames, device=lens.device)
        frames = arrangement.begins[:, None] + index
        codes = _take_frames(arrangement.codes, frames)[:, : self.ar_quantizers]
        real = (index < lens[:, None])[:, None]
        scored = _take_frames(arrangement.scored_mask[:, None], frames) & real
        labels = codes.masked_fill(~scored, IGNORED)
        is_end = closes[:, None] & (index == lens[:, None])
        labels[:, 0].masked_fill_(is_end, self.codebook_size)
        columns = self.to_columns(codes.masked_fill(~real, self.codebook_size), self.codebook_size)
        layout = self.pattern.batch_layout(
            ceil_div(lens + closes, self.ar_group), num_frames=columns.shape[2]
        )
        return Target(
            layout.build(columns, self.codebook_size),
            layout,
            self.to_columns(labels, IGNORED),
            layout.step_of.flatten(1).amax(1) if num_frames else torch.zeros_like(lens),
        )

    # -- learning ---------------------------------------------------------------------------------

    def score(self, arrangement: Arrangement, condition: Tensor | None = None) -> Score:
        """Logits of all codes of the target that count, and of its end.

        Args:
            arrangement: of B rows.
            condition: (B, G).
        """
        prompt, target = self.prompt(arrangement), self.target(arrangement)
        hidden = self._hidden(prompt, target, condition)
        slots = prompt.lens[:, None, None] + target.layout.step_of - 1  # (B, C, n)
        rows = torch.arange(len(slots), device=slots.device)[:, None, None] * hidden.shape[1]
        places, hidden = rows + slots, hidden.flatten(0, 1)
        logits, labels = [], []
        weights = self.heads.weight.unflatten(0, (self.num_columns, -1))
        for column in range(self.num_columns):
            wanted = target.labels[:, column]
            counts = wanted != IGNORED
            at = hidden.index_select(0, places[:, column][counts])
            logits.append(nn.functional.linear(at, weights[column]) + self.logit_bias[column])
            labels.append(wanted[counts])
        quantizers = [
            torch.full_like(part, column // self.ar_group) for column, part in enumerate(labels)
        ]
        return Score(torch.cat(logits), torch.cat(labels), torch.cat(quantizers))

    def _hidden(self, prompt: Prompt, target: Target, condition: Tensor | None) -> Tensor:
        """What comes out at prompt and target steps, which stand close to each other, (B, T, D)."""
        steps = self.embed_steps(target.tokens[:, :, :-1])  # the last step predicts nothing
        longest = int((prompt.lens + target.num_steps).max().clamp_min(1))
        index = torch.arange(longest, device=steps.device)
        is_prompt = index < prompt.lens[:, None]
        behind = index - prompt.lens[:, None]
        source = torch.where(is_prompt, index, behind + prompt.embeds.shape[1])
        embeds = torch.cat((prompt.embeds, steps), dim=1)
        source = source.clamp(max=embeds.shape[1] - 1)
        first = torch.arange(len(embeds), device=steps.device)[:, None] * embeds.shape[1]
        x = embeds.flatten(0, 1).index_select(0, (first + source).flatten())
        seen = prompt_target_mask(
            is_prompt,
            behind < target.num_steps[:, None],
            causal_prompt=self.causal_prompt,
            causal_target=True,
        )
        positions = behind + prompt.start[:, None]
        if prompt.embeds.shape[1]:
            of_prompt = prompt.positions.gather(1, source.clamp(max=prompt.embeds.shape[1] - 1))
            positions = torch.where(is_prompt, of_prompt, positions)
        return self.transformer(
            x.unflatten(0, source.shape), seen=seen, positions=positions, condition=condition
        )


def sum_embeddings(tables: nn.ModuleList, ids: Tensor) -> Tensor:
    """Sum over tables of the embeddings of ids (B, number of tables, T): (B, T, D)."""
    total = tables[0](ids[:, 0])
    for table, column in zip(tables[1:], ids[:, 1:].unbind(1), strict=True):
        total = total + table(column)
    return total


def ceil_div(lens: Tensor, size: int) -> Tensor:
    """Lengths in pieces of `size`, the last one perhaps not full."""
    return (lens + size - 1) // size


def _take_frames(values: Tensor, frames: Tensor) -> Tensor:
    """Values (B, X, F) at frames (B, n), clamped to those that there are: (B, X, n)."""
    if not values.shape[2]:
        return values.new_zeros((*values.shape[:2], frames.shape[1]))
    index = frames.clamp(0, values.shape[2] - 1)[:, None].expand(-1, values.shape[1], -1)
    return values.gather(2, index)
