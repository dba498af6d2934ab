"""`GuidedStepModel`: the codec language model under guidance, for the decoding loop."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from whalesong.models.codec_lm.model import AudioLanguageModel, RoutedConditions
from whalesong.modules.conditioning.conditioner import Condition
from whalesong.modules.generation import guided
from whalesong.modules.generation.guided import STEPS_THAT_PAY, StepEmbedding, repeat_rows
from whalesong.modules.generation.packed_linear import WeightDtype
from whalesong.modules.kv_cache import KVCache

Variant = tuple[Mapping[str, Condition], float]
"""Conditions of B rows, and their weight in the guided logits."""


class PackedWeights(guided.PackedWeights):
    """The weights of a language model in the layouts of generation.

    Args:
        lm: the language model.
        batch_size: B.
        num_variants: variants of the conditions; 2 with guidance, as a rule.
        packing: `weight_dtype` and `copy_large` of `pack_linear`.
    """

    def __init__(
        self, lm: AudioLanguageModel, *, batch_size: int, num_variants: int, **packing: Any
    ) -> None:
        super().__init__(
            lm.backbone.transformer,
            lm.heads,
            batch_size=batch_size,
            num_variants=num_variants,
            **packing,
        )


class GuidedStepModel(guided.GuidedStepModel):
    """Guided logits of B rows, step by step.

    Args:
        lm: in evaluation mode.
        variants: conditions and weights; the guided logits are the weighted sum over them.
        batch_size: B.
        max_steps: P, steps of the pattern that a sequence can have, the empty one included.
        compile: "auto" captures a step as one CUDA graph where there is a GPU.
        weight_dtype: see `pack_linear`.
        packed: the weights for as many rows, packed before; `weight_dtype` then does not count.

    Raises:
        ValueError: `packed` is for other rows.
    """

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
        super().__init__(
            ConditionedNetwork(lm, variants, batch_size=batch_size, max_steps=max_steps),
            weights=[weight for _, weight in variants],
            packed=packed,
            compile=compile,
        )


class ConditionedNetwork:
    """The language model under all variants of the conditions of a request, a `StepNetwork`."""

    logit_bias = None

    @torch.no_grad()
    def __init__(
        self,
        lm: AudioLanguageModel,
        variants: Sequence[Variant],
        *,
        batch_size: int,
        max_steps: int,
    ) -> None:
        self.lm, self.heads, self.transformer = lm, lm.heads, lm.backbone.transformer
        self.num_codebooks, self.codebook_size = lm.num_codebooks, lm.codebook_size
        self.embed_step = StepEmbedding([lm.embedding.weight], lm.num_codebooks)
        self._num_variants, self._batch_size = len(variants), batch_size
        self._max_steps = max_steps
        self._conditions = joined([lm.route(conditions) for conditions, _ in variants])

    def begin(self, tokens: Tensor) -> tuple[Tensor, KVCache]:
        """Run steps (B, K, p); hidden states of the last one (R, D), and the cache."""
        cache = self.lm.backbone.init_cache(
            self._num_variants * self._batch_size,
            self._max_steps,
            prepend=self._conditions.prepend,
            memory=self._conditions.memory,
            global_cond=self._conditions.global_cond,
        )
        embeds = repeat_rows(self.lm.embed(tokens), self._num_variants)
        hidden = self.lm.backbone(embeds, prepend=self._conditions.prepend, cache=cache)
        return hidden[:, -1], cache


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
