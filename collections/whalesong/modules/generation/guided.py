"""`GuidedStepModel`: a language model under guidance, step by step, for the decoding loop."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from whalesong.modules.generation.cuda_graph import CapturedStep
from whalesong.modules.generation.decoder import StepDecoder
from whalesong.modules.generation.packed_linear import pack_linear
from whalesong.modules.kv_cache import KVCache
from whalesong.modules.transformer import Transformer

STEPS_THAT_PAY = 128
"""Steps from which on copies of large matrices pay back."""


class StepNetwork(Protocol):
    """One request to a language model over steps: B rows, each under all variants of conditions.

    Rows of all variants, R, stand one variant after the other.

    Attributes:
        num_codebooks: K.
        codebook_size: V; id V stands where a step has no code.
        transformer: causal; what `begin` began goes on through it.
        heads: without bias, from D to K times as many ids as are predicted of a codebook, S.
        logit_bias: (K, S), added to the guided logits, or None.
    """

    num_codebooks: int
    codebook_size: int
    transformer: Transformer
    heads: nn.Linear
    logit_bias: Tensor | None

    def begin(self, tokens: Tensor) -> tuple[Tensor, KVCache]:
        """Run steps (B, K, p), p >= 1, behind what stands in front of them.

        Returns:
            Hidden states of the last position (R, D), the last norm included, and a cache of R rows
            with room for all steps to come.
        """

    def embed_step(self, tokens: Tensor) -> Tensor:
        """From one step (B, K) to what the transformer takes, (B, D)."""


class StepEmbedding:
    """The sum over codebooks of their embeddings, in one look-up.

    Args:
        tables: of each codebook (V + 1, D); or one table with all of them, one after the other,
            which is not copied.
        num_codebooks: K.
    """

    def __init__(self, tables: Sequence[Tensor], num_codebooks: int) -> None:
        self._table = tables[0].detach() if len(tables) == 1 else torch.cat(list(tables)).detach()
        size = len(self._table) // num_codebooks
        self._offsets = torch.arange(num_codebooks, device=self._table.device) * size

    def __call__(self, tokens: Tensor) -> Tensor:
        """From one step (B, K) to (B, D)."""
        if len(self._offsets) == 1:
            return functional.embedding(tokens[:, 0], self._table)
        return functional.embedding(tokens + self._offsets, self._table).sum(dim=1)


class PackedWeights:
    """The weights of a language model in the layouts of generation.

    Packing takes seconds for hundreds of millions of weights, so that whoever generates often
    packs once; the copies stay what they are when the model is trained on.

    Args:
        transformer: of the model.
        heads: of the model.
        batch_size: B.
        num_variants: variants of the conditions; 2 with guidance, as a rule.
        packing: `weight_dtype` and `copy_large` of `pack_linear`.

    Attributes:
        rows: B and the number of variants.
    """

    @torch.no_grad()
    def __init__(
        self,
        transformer: Transformer,
        heads: nn.Linear,
        *,
        batch_size: int,
        num_variants: int = 1,
        **packing: Any,
    ) -> None:
        self.rows = (batch_size, num_variants)
        self.decoder = StepDecoder(transformer, num_rows=batch_size * num_variants, **packing)
        self.heads = pack_linear(heads, num_rows=batch_size, **packing)


class GuidedStepModel:
    """Guided logits of B rows, step by step (a `StepModel` of the decoding loop).

    All variants of the conditions run as rows of one batch. The heads are linear and have no bias,
    so hidden states are mixed, and the heads run once: the same logits for less work.

    Args:
        network: in evaluation mode.
        weights: of each variant; the guided logits are the weighted sum over them.
        packed: the weights of the network for as many rows.
        compile: "auto" captures a step as one CUDA graph where there is a GPU.

    Raises:
        ValueError: another number of variants than the weights are packed for.
    """

    @torch.no_grad()
    def __init__(
        self,
        network: StepNetwork,
        *,
        weights: Sequence[float],
        packed: PackedWeights,
        compile: Literal["auto", "never"] = "auto",
    ) -> None:
        self.network = network
        self.num_codebooks, self.codebook_size = network.num_codebooks, network.codebook_size
        self._batch_size, num_variants = packed.rows
        if num_variants != len(weights):
            raise ValueError(f"`packed` must be for {len(weights)} variants, but is for "
                             f"{num_variants}.")  # fmt: skip
        self._weights = network.heads.weight.new_tensor(weights)
        self._decoder, self._heads = packed.decoder, packed.heads
        self._captures = compile == "auto" and network.heads.weight.is_cuda

    @torch.no_grad()
    def prefill(self, tokens: Tensor, *, codebooks: slice | None = None) -> Tensor:
        """Begin anew with steps (B, K, p), p >= 1; logits (B, K, S) of what stands at step p."""
        with torch.autocast(tokens.device.type, enabled=False):  # packed weights stay what they are
            hidden, cache = self.network.begin(tokens)
            self._steps = self._decoder.begin(cache, static=self._captures)
            self._captured = None
            return self._logits(self._mixed(hidden), codebooks)

    @torch.inference_mode()
    def step(self, tokens: Tensor, *, codebooks: slice | None = None) -> Tensor:
        """Take one more step (B, K); logits (B, K, S) of the step after it."""
        with torch.autocast(tokens.device.type, enabled=False):
            if not self._captures:
                return self._logits(self._hidden(tokens), codebooks)
            if self._captured is None:
                self._captured = CapturedStep(self._hidden, tokens, self._steps)
            return self._logits(self._captured(tokens), codebooks)

    def _hidden(self, tokens: Tensor) -> Tensor:
        """From one step (B, K) to mixed hidden states (B, D)."""
        x = repeat_rows(self.network.embed_step(tokens), len(self._weights))
        return self._mixed(self._decoder.step(x, self._steps))

    def _mixed(self, hidden: Tensor) -> Tensor:
        """From the hidden states of all variants to guided ones (B, D)."""
        if len(self._weights) == 1:
            return hidden
        mixed = self._weights @ hidden.reshape(len(self._weights), -1)
        return mixed.view(self._batch_size, -1)

    def _logits(self, hidden: Tensor, codebooks: slice | None) -> Tensor:
        if codebooks is None:
            logits = self._heads(hidden).view(len(hidden), self.num_codebooks, -1)
        else:
            weights = self.network.heads.weight.unflatten(0, (self.num_codebooks, -1))[codebooks]
            logits = functional.linear(hidden, weights.flatten(0, 1))
            logits = logits.view(len(hidden), len(weights), -1)
        if (bias := self.network.logit_bias) is None:
            return logits
        return logits + (bias if codebooks is None else bias[codebooks])


def repeat_rows(x: Tensor, num_variants: int) -> Tensor:
    """From B rows to those of all variants, one variant after the other."""
    return x if num_variants == 1 else torch.cat([x] * num_variants)
