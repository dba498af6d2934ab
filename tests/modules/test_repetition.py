"""The rule against repetition, beside its definition."""

from typing import Any

import pytest
import torch
from torch import Tensor

from whalesong.modules.codebook_patterns import (
    DelayedPatternProvider,
    MusicLMPattern,
    ParallelPatternProvider,
    PatternProvider,
)
from whalesong.modules.generation.generate import generate_codes
from whalesong.modules.generation.infill import infill
from whalesong.modules.generation.repetition import RepetitionRule
from whalesong.modules.generation.sampling import (
    RowNoise,
    SamplingSettings,
    candidate_seeds,
    redraw_seeds,
    sample,
)

K, V, F = 2, 8, 40
PROVIDERS = [
    ParallelPatternProvider(K),
    DelayedPatternProvider(K, delays=[2, 0]),
    MusicLMPattern(K),
]


class FixedStepModel:
    """The same logits at every step, others for each codebook."""

    num_codebooks, codebook_size = K, V
    logits = torch.randn(K, V, generator=torch.Generator().manual_seed(0)) * 2

    def prefill(self, tokens: Tensor, *, codebooks: slice | None = None) -> Tensor:
        return self.step(tokens[..., 0], codebooks=codebooks)

    def step(self, tokens: Tensor, *, codebooks: slice | None = None) -> Tensor:
        return self.logits.expand(len(tokens), -1, -1)[:, codebooks or slice(None)]


def expected(settings: SamplingSettings, seed: int, known: Tensor) -> Tensor:
    """The definition, code by code, of one row whose codes are known (K, F) or -1."""
    first = RowNoise([seed], K).frames(0, F)[0]
    second = RowNoise(redraw_seeds([seed]), K).frames(0, F)[0]
    codes = known.clone()
    for k in range(K):
        logits, generated = FixedStepModel.logits[k].log_softmax(-1)[None, None], []
        for frame in (known[k] < 0).nonzero().flatten().tolist():
            drawn = int(sample(logits, settings, first[None, k, None, frame]))
            last = generated[-settings.repetition_window :]
            if last and last.count(drawn) / len(last) > settings.repetition_threshold:
                plain = SamplingSettings(top_k=0)
                drawn = int(sample(logits, plain, second[None, k, None, frame]))
            generated.append(drawn)
            codes[k, frame] = drawn
    return codes


def generate(provider: PatternProvider, settings: SamplingSettings, **request: Any) -> Tensor:
    seeds = request.get("seeds", [1, 2, 3])
    request = {"known": torch.full((len(seeds), K, F), -1), "lens": [F] * len(seeds)} | request
    return generate_codes(
        FixedStepModel(), provider, **(request | {"seeds": seeds, "settings": settings})
    ).codes


@pytest.mark.parametrize("provider", PROVIDERS, ids=repr)
@pytest.mark.parametrize(
    "fields",
    [
        {"repetition_window": 10},
        {"repetition_window": 3, "repetition_threshold": 0.4, "top_k": 2, "temperature": 0.5},
        {"repetition_window": 100, "repetition_threshold": 0.3, "temperature": 0.0},
        {"repetition_window": 1, "repetition_threshold": 0.0, "top_p": 0.5},
    ],
    ids=repr,
)
def test_codes_are_those_of_the_definition(
    provider: PatternProvider, fields: dict[str, Any]
) -> None:
    settings = SamplingSettings(**fields)
    known = torch.full((3, K, F), -1)
    known[0, :, :5], known[1, 1, 20:24] = 3, 1  # known codes are not among the generated ones
    codes = generate(provider, settings, known=known)
    for row, seed in enumerate([1, 2, 3]):
        assert torch.equal(codes[row], expected(settings, seed, known[row]))
        alone = generate(provider, settings, known=known[row : row + 1], seeds=[seed])
        assert torch.equal(alone[0], codes[row])
    assert not torch.equal(codes, generate(provider, SamplingSettings(), known=known))


def test_first_draws_are_what_they_are_without_the_rule() -> None:
    """No share is above 1, so nothing is drawn again."""
    settings = SamplingSettings(repetition_window=10, repetition_threshold=1.0)
    for provider in PROVIDERS:
        assert torch.equal(generate(provider, settings), generate(provider, SamplingSettings()))


def test_what_is_drawn_again_comes_from_the_whole_distribution() -> None:
    settings = SamplingSettings(top_k=2, repetition_window=10)
    drawn = generate(PROVIDERS[0], settings, seeds=list(range(50)))
    assert set(drawn[:, 0].flatten().tolist()) == set(range(V))
    plain = generate(PROVIDERS[0], SamplingSettings(top_k=2), seeds=list(range(50)))
    assert set(plain[:, 0].flatten().tolist()) == set(
        FixedStepModel.logits[0].topk(2).indices.tolist()
    )


def test_the_share_is_of_as_many_ids_as_there_are() -> None:
    """Greedy 0 until its share of the last 4 ids, at most, is above a half; second draws are 1."""
    settings = SamplingSettings(temperature=0, repetition_window=4, repetition_threshold=0.5)
    log_probs = torch.tensor([[[0.6, 0.4]]]).log()
    wanted, noise = torch.ones(7, 1, 1, dtype=torch.bool), torch.full((7, 1, 1), 0.9)
    rule, ids = RepetitionRule(settings, wanted=wanted, noise=noise), torch.zeros(1, 1).long()
    given = [int(rule.redraw(step, slice(0, 1), ids, log_probs)) for step in range(7)]
    assert given == [0, 1, 0, 1, 0, 0, 1]


@pytest.mark.parametrize("provider", PROVIDERS, ids=repr)
def test_in_filling_follows_the_rule(provider: PatternProvider) -> None:
    known = torch.full((1, K, F), -1)
    known[:, :, :4], known[:, :, -4:] = 2, 5
    settings = SamplingSettings(repetition_window=5)
    filled = infill(
        FixedStepModel(), provider, known=known, lens=[F], seeds=[7], settings=settings,
        num_candidates=1,
    )  # fmt: skip
    assert torch.equal(filled.codes, generate(provider, settings, known=known, seeds=[7]))


def test_second_draws_have_seeds_of_their_own() -> None:
    seeds = [0, 7, -(2**63) + 5, 2**63 - 1]
    again = redraw_seeds(seeds)
    assert again == [redraw_seeds([seed])[0] for seed in seeds]
    assert len({*again, *seeds, *candidate_seeds(seeds, 5)}) == 4 + 4 * 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"repetition_window": -1}, "`repetition_window` must be an integer of at least 0"),
        ({"repetition_window": 2.0}, "`repetition_window` must be an integer of at least 0"),
        ({"repetition_threshold": 1.1}, "`repetition_threshold` must be between 0 and 1"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**fields)
