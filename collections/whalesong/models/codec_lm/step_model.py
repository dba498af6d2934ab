"""`GuidedStepModel`: the language model under guidance, step by step, for the decoding loop."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from whalesong.models.codec_lm.model import AudioLanguageModel, RoutedConditions
from whalesong.modules.conditioning.conditioner import Condition
from whalesong.modules.generation.cuda_graph import CapturedStep
from whalesong.modules.generation.decoder import StepDecoder
from whalesong.modules.generation.packed_linear import WeightDtype, pack_linear
from whalesong.modules.kv_cache import KVCache

STEPS_THAT_PAY = 128
"""Steps from which on copies of large matrices pay back."""

Variant = tuple[Mapping[str, Condition], float]
"""Conditions of B rows, and their weight in the guided logits."""


class PackedWeights:
    """The weights of a language model in the layouts of generation.

    Packing takes seconds for hundreds of millions of weights, so that whoever generates often
    packs once; the copies stay what they are when the model is trained on.

    Args:
        lm: the language model.
        batch_size: B.
        num_variants: variants of the conditions; 2 with guidance, as a rule.
        packing: `weight_dtype` and `copy_large` of `pack_linear`.
    """

    @torch.no_grad()
    def __init__(
        self, lm: AudioLanguageModel, *, batch_size: int, num_variants: int, **packing: Any
    ) -> None:
        self.rows = (batch_size, num_variants)
        self.decoder = StepDecoder(
            lm.backbone.transformer, num_rows=batch_size * num_variants, **packing
        )
        self.heads = pack_linear(lm.heads, num_rows=batch_size, **packing)


class GuidedStepModel:
    """Guided logits of B rows, step by step (a `StepModel` of the decoding loop).

    All variants of the conditions run as rows of one batch. The heads are linear and have no bias,
    so hidden states are mixed, and the heads run once: the same logits for less work.

    Args:
        lm: in evaluation mode.
        variants: conditions and weights; the guided logits are the weighted sum over them.
        batch_size: B.
        max_steps: P, steps of the pattern that a sequence can have, the empty one included.
        compile: "auto" captures a step as one CUDA graph where there is a GPU.
        weight_dtype: see `pack_linear`.
        packed: the weights for as many rows, packed before; `weight_dtype` then does not count.
    """

    @torch.no_grad()
    def __init__(
        self,
        lm: AudioLanguageModel,
        variants: Sequence[Variant],
        *,
        batch_size: int,
        max_steps: int,
        compile: Literal["auto", "never"] = "auto",
        weight_dtype: WeightDtype | None = None,
        packed: PackedWeights | None = None,
    ) -> None:
        self.lm = lm
        self.num_codebooks, self.codebook_size = lm.num_codebooks, lm.codebook_size
        self._batch_size, self._max_steps = batch_size, max_steps
        self._weights = lm.heads.weight.new_tensor([weight for _, weight in variants])
        self._conditions = joined([lm.route(conditions) for conditions, _ in variants])
        if packed is None:
            packed = PackedWeights(
                lm,
                batch_size=batch_size,
                num_variants=len(variants),
                weight_dtype=weight_dtype,
                copy_large=max_steps >= STEPS_THAT_PAY,
            )
        if packed.rows != (rows := (batch_size, len(variants))):
            raise ValueError(f"`packed` must be for {rows} rows and variants, but is for "
                             f"{packed.rows}.")  # fmt: skip
        self._decoder, self._heads = packed.decoder, packed.heads
        self._captures = compile == "auto" and lm.heads.weight.is_cuda

    @torch.no_grad()
    def prefill(self, tokens: Tensor, *, codebooks: slice | None = None) -> Tensor:
        """Begin anew with steps (B, K, p), p >= 1; logits (B, K, V) of what stands at step p."""
        with torch.autocast(tokens.device.type, enabled=False):  # packed weights stay what they are
            cache = self._new_cache()
            embeds = self._rows(self.lm.embed(tokens))
            hidden = self.lm.backbone(embeds, prepend=self._conditions.prepend, cache=cache)
            self._steps = self._decoder.begin(cache, static=self._captures)
            self._captured = None
            return self._logits(self._mixed(hidden[:, -1]), codebooks)

    @torch.inference_mode()
    def step(self, tokens: Tensor, *, codebooks: slice | None = None) -> Tensor:
        """Take one more step (B, K); logits (B, K, V) of the step after it."""
        with torch.autocast(tokens.device.type, enabled=False):
            if not self._captures:
                return self._logits(self._hidden(tokens), codebooks)
            if self._captured is None:
                self._captured = CapturedStep(self._hidden, tokens, self._steps)
            return self._logits(self._captured(tokens), codebooks)

    def _new_cache(self) -> KVCache:
        return self.lm.backbone.init_cache(
            len(self._weights) * self._batch_size,
            self._max_steps,
            prepend=self._conditions.prepend,
            memory=self._conditions.memory,
            global_cond=self._conditions.global_cond,
        )

    def _hidden(self, tokens: Tensor) -> Tensor:
        """From one step (B, K) to mixed hidden states (B, D)."""
        ids = tokens + self.lm.offsets[:, 0]
        x = functional.embedding(ids, self.lm.embedding.weight).sum(dim=1)
        return self._mixed(self._decoder.step(self._rows(x), self._steps))

    def _rows(self, x: Tensor) -> Tensor:
        """From B rows to those of all variants, one variant after the other."""
        variants = len(self._weights)
        return x if variants == 1 else torch.cat([x] * variants)

    def _mixed(self, hidden: Tensor) -> Tensor:
        """From the hidden states of all variants to guided ones (B, D)."""
        if len(self._weights) == 1:
            return hidden
        mixed = self._weights @ hidden.reshape(len(self._weights), -1)
        return mixed.view(self._batch_size, -1)

    def _logits(self, hidden: Tensor, codebooks: slice | None) -> Tensor:
        if codebooks is None:
            return self._heads(hidden).view(len(hidden), self.num_codebooks, -1)
        weights = self.lm.head_weights()[codebooks]
        return functional.linear(hidden, weights.flatten(0, 1)).view(len(hidden), len(weights), -1)


def joined(variants: Sequence[RoutedConditions]) -> RoutedConditions:
    """The conditions of all variants as rows of one batch, one variant after the other."""
    return RoutedConditions(
        memory=_stacked([variant.memory for variant in variants]),
        prepend=_stacked([variant.prepend for variant in variants]),
        global_cond=None
        if variants[0].global_cond is None
        else torch.cat([variant.global_cond for variant in variants]),
    )


def _stacked(conditions: Sequence[Condition | None]) -> Condition | None:
    """Rows of all conditions, without the columns that no row keeps; None if nothing is kept."""
    if conditions[0] is None:
        return None
    longest = max(condition.mask.shape[1] for condition in conditions)
    embeds, masks = [], []
    for embed, mask in conditions:
        missing = longest - mask.shape[1]
        embeds.append(functional.pad(embed, (0, 0, 0, missing)))
        masks.append(functional.pad(mask, (0, missing)))
    embed, mask = torch.cat(embeds), torch.cat(masks)
    kept = mask.any(dim=0)
    return Condition(embed[:, kept], mask[:, kept]) if bool(kept.any()) else None
