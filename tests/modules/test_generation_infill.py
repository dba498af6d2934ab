"""In-filling: what is known stays, and candidates are weighed by what comes after the span."""

from typing import Any

import pytest
import torch
from torch import Tensor

from whalesong.modules.codebook_patterns import PatternProvider, build_pattern
from whalesong.modules.generation.generate import generate_codes
from whalesong.modules.generation.infill import infill
from whalesong.modules.generation.sampling import SamplingSettings

V, STATES = 5, 211
SETTINGS = SamplingSettings(top_k=0)


class HashStepModel:
    """Random logits for each history, by a running hash of all tokens."""

    codebook_size = V

    def __init__(self, num_codebooks: int, *, memory: int = 31) -> None:
        self.num_codebooks, self.memory, self.num_steps = num_codebooks, memory, 0
        generator = torch.Generator().manual_seed(5)
        self.table = torch.randn(STATES, num_codebooks, V, generator=generator) * 1.5

    def prefill(self, tokens: Tensor, *, codebooks: slice | None = None) -> Tensor:
        self.num_steps, self.state = 0, torch.zeros(len(tokens), dtype=torch.long)
        for step in range(tokens.shape[2]):
            logits = self.step(tokens[:, :, step], codebooks=codebooks)
        return logits

    def step(self, tokens: Tensor, *, codebooks: slice | None = None) -> Tensor:
        self.num_steps += 1
        places = (tokens * 7 ** torch.arange(self.num_codebooks)).sum(1)
        self.state = (self.state * self.memory + places + 1) % STATES
        return self.table[self.state][:, codebooks or slice(None)]


def open_span(rows: int, num_codebooks: int, num_frames: int, begin: int, end: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    known = torch.randint(0, V, (rows, num_codebooks, num_frames), generator=generator)
    known[:, :, begin:end] = -1
    return known


PATTERNS = pytest.mark.parametrize(
    "provider",
    [build_pattern(name, 2) for name in ("parallel", "delay", "unroll", "musiclm", "coarse_first")],
    ids=repr,
)


@PATTERNS
def test_the_best_candidate_is_the_one_that_explains_the_known_codes(
    provider: PatternProvider,
) -> None:
    known, lens = open_span(3, 2, 9, 3, 5), [9, 7, 9]
    known[2, 1, 6] = -1
    filled = infill(
        HashStepModel(2), provider, known=known, lens=lens, seeds=[1, 2, 3],
        settings=SETTINGS, num_candidates=6,
    )  # fmt: skip
    for row, length in enumerate(lens):
        given = known[row : row + 1, :, :length]
        candidates = generate_codes(
            HashStepModel(2), provider, known=given.repeat(6, 1, 1), lens=[length] * 6,
            seeds=filled.seeds[row].tolist(), settings=SETTINGS,
        )  # fmt: skip
        weights = (candidates.log_probs * (given >= 0)).sum((1, 2))
        assert torch.allclose(filled.log_weights[row], weights, atol=1e-4)
        best = filled.codes[row, :, :length]
        assert torch.equal(best, candidates.codes[weights.argmax()])
        assert torch.equal(best[given[0] >= 0], given[given >= 0])
        assert not filled.codes[row, :, length:].any()


@PATTERNS
def test_one_candidate_is_plain_generation(provider: PatternProvider) -> None:
    request: dict[str, Any] = {
        "known": open_span(2, 2, 6, 2, 4), "lens": [6, 6], "seeds": [8, 9], "settings": SETTINGS,
    }  # fmt: skip
    filled = infill(HashStepModel(2), provider, **request, num_candidates=1)
    assert torch.equal(filled.codes, generate_codes(HashStepModel(2), provider, **request).codes)
    assert filled.seeds.tolist() == [[8], [9]]


def test_weighted_candidates_follow_the_exact_posterior() -> None:
    """A chain whose next code depends on the last one only: p(span | left, right) by counting."""
    provider = build_pattern("parallel", 1)
    model = HashStepModel(1, memory=0)
    transition = model.table[(torch.arange(V) + 1) % STATES, 0].softmax(-1)  # (from, to)
    known = torch.tensor([[[2, -1, -1, 4, 1]]])
    exact = transition[2][:, None] * transition * transition[:, 4]  # (first, second)
    exact /= exact.sum()
    filled = infill(
        model, provider, known=known, lens=[5], seeds=[0], settings=SETTINGS, num_candidates=5000
    )
    spans = generate_codes(
        model, provider, known=known.repeat(5000, 1, 1), lens=[5] * 5000,
        seeds=filled.seeds[0].tolist(), settings=SETTINGS,
    ).codes[:, 0, 1:3]  # fmt: skip
    weighted = torch.zeros(V * V).index_add(
        0, spans[:, 0] * V + spans[:, 1], filled.log_weights[0].softmax(-1)
    )
    assert torch.allclose(weighted.view(V, V), exact, atol=0.02)
    assert filled.codes[0, 0, 2] == transition[:, 4].argmax()


def test_frames_far_to_the_right_can_be_left_out() -> None:
    known, told = open_span(1, 2, 30, 5, 7), []
    request: dict[str, Any] = {"known": known, "seeds": [4], "settings": SETTINGS}
    provider, model = build_pattern("delay", 2), HashStepModel(2)
    near = infill(
        model, provider, **request, lens=[30], right_frames=3,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert model.num_steps == provider.layout(10).num_steps - 1  # the last one predicts nothing
    assert told[0][0] == 1 and told[-1][0] == told[-1][1] == len(told)
    alone = infill(model, provider, **{**request, "known": known[:, :, :10]}, lens=[10])
    assert torch.allclose(near.log_weights, alone.log_weights)
    assert torch.equal(near.codes[:, :, :10], alone.codes)
    assert torch.equal(near.codes[:, :, 7:], known[:, :, 7:])


def test_nothing_to_fill_and_bad_requests() -> None:
    known = open_span(1, 2, 4, 0, 0)
    request: dict[str, Any] = {"lens": [4], "seeds": [4], "settings": SETTINGS}
    filled = infill(HashStepModel(2), build_pattern("delay", 2), known=known, **request)
    assert torch.equal(filled.codes, known) and not filled.log_weights.any()
    with pytest.raises(ValueError, match="`num_candidates` must be at least 1, but is 0"):
        infill(
            HashStepModel(2), build_pattern("delay", 2), known=known, **request, num_candidates=0
        )
