"""The guided step model around any network with tables, a transformer and heads."""

import pytest
import torch
from torch import Tensor, nn

from whalesong.modules.codebook_patterns import build_pattern
from whalesong.modules.generation.ending import Ending
from whalesong.modules.generation.generate import generate_codes
from whalesong.modules.generation.guided import (
    GuidedStepModel,
    PackedWeights,
    StepEmbedding,
    repeat_rows,
)
from whalesong.modules.generation.sampling import SamplingSettings
from whalesong.modules.kv_cache import KVCache
from whalesong.modules.transformer import Transformer

K, V, WIDTH, ROWS = 3, 9, 32, 2
WEIGHTS = [-0.5, -1.0, 2.5]


class PromptedNetwork(nn.Module):
    """Prompts of different lengths before the steps, and a condition for each variant."""

    num_codebooks, codebook_size = K, V

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.transformer = Transformer(
            d_model=WIDTH, num_layers=2, num_heads=2, rotary_dim=16, condition_dim=4
        ).eval()
        self.tables = nn.ModuleList(nn.Embedding(V + 1, WIDTH) for _ in range(K))
        self.heads = nn.Linear(WIDTH, K * (V + 1), bias=False)
        for parameter in self.parameters():
            parameter.requires_grad_(False).add_(torch.randn_like(parameter) * 0.1)
        self.logit_bias = torch.zeros(K, V + 1)
        self.logit_bias[0, 4] = self.logit_bias[1:, V] = -torch.inf
        self.embed_step = StepEmbedding([table.weight for table in self.tables], K)
        self.prompt = torch.randn(ROWS, 4, WIDTH)
        self.keep = torch.tensor([[False, False, True, True], [True] * 4])
        self.conditions = torch.randn(len(WEIGHTS) * ROWS, 4)

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, K, p) to (B, p, D)."""
        return sum(table(ids) for table, ids in zip(self.tables, tokens.unbind(1), strict=True))

    def begin(self, tokens: Tensor) -> tuple[Tensor, KVCache]:
        cache = self.transformer.init_cache(len(self.conditions), 40, condition=self.conditions)
        x, mask = self._inputs(tokens)
        return self.transformer(x, mask=mask, cache=cache)[:, -1], cache

    def logits(self, tokens: Tensor) -> Tensor:
        """Guided logits behind steps (B, K, p), by one whole pass: each variant has its own."""
        x, mask = self._inputs(tokens)
        hidden = self.transformer(x, mask=mask, condition=self.conditions)[:, -1]
        logits = self.heads(hidden).view(len(WEIGHTS), ROWS, K, V + 1)
        mixed = sum(weight * part for weight, part in zip(WEIGHTS, logits, strict=True))
        return mixed + self.logit_bias

    def _inputs(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat((self.prompt, self.embed(tokens)), dim=1)
        mask = torch.cat((self.keep, self.keep.new_ones(ROWS, tokens.shape[2])), dim=1)
        return repeat_rows(x, len(WEIGHTS)), mask.repeat(len(WEIGHTS), 1)


def step_model(network: PromptedNetwork) -> GuidedStepModel:
    packed = PackedWeights(
        network.transformer, network.heads, batch_size=ROWS, num_variants=len(WEIGHTS)
    )
    return GuidedStepModel(network, weights=WEIGHTS, packed=packed)


@pytest.mark.parametrize("books", [None, slice(0, 1), slice(1, 3)])
def test_steps_equal_whole_passes(books: slice | None) -> None:
    network, tokens = PromptedNetwork(), torch.randint(V + 1, (ROWS, K, 9))
    model, chosen = step_model(network), books or slice(None)
    for first in (1, 4):  # the second sequence begins anew
        given = [model.prefill(tokens[..., :first], codebooks=books)]
        given += [model.step(tokens[..., at], codebooks=books) for at in range(first, 9)]
        for end, logits in enumerate(given, start=first):
            whole = network.logits(tokens[..., :end])[:, chosen]
            torch.testing.assert_close(logits, whole, atol=1e-4, rtol=1e-4)


def test_what_a_codebook_cannot_be_is_never_drawn_and_rows_end() -> None:
    network = PromptedNetwork()
    codes, log_probs, lens = generate_codes(
        step_model(network), build_pattern("delay", K), known=torch.full((ROWS, K, 30), -1),
        lens=[30] * ROWS, seeds=[1, 2], settings=SamplingSettings(top_k=0),
        ending=Ending(codebooks=slice(0, 1)),
    )  # fmt: skip
    assert log_probs.isfinite().all() and int(lens.min()) < 30
    assert not (codes[:, 0] == 4).any() and (codes[:, 1:] == 4).any()
    for row, length in enumerate(lens.tolist()):
        assert int(codes[row, :, :length].max()) < V
        assert (codes[row, 0, length:] == V).all()


def test_one_table_or_one_for_each_codebook() -> None:
    tables = [torch.randn(V + 1, 6) for _ in range(K)]
    tokens = torch.randint(V + 1, (4, K))
    expected = sum(table[ids] for table, ids in zip(tables, tokens.unbind(1), strict=True))
    torch.testing.assert_close(StepEmbedding(tables, K)(tokens), expected)
    whole = torch.cat(tables)
    torch.testing.assert_close(StepEmbedding([whole], K)(tokens), expected)
    assert torch.equal(StepEmbedding(tables[:1], 1)(tokens[:, :1]), tables[0][tokens[:, 0]])


def test_weights_of_other_variants_are_refused() -> None:
    network = PromptedNetwork()
    packed = PackedWeights(network.transformer, network.heads, batch_size=ROWS)
    with pytest.raises(ValueError, match="`packed` must be for 3 variants, but is for 1"):
        GuidedStepModel(network, weights=WEIGHTS, packed=packed)
