"""Sampling: each filter by its definition, frequencies, and noise that belongs to its row."""

import math
from typing import Any

import pytest
import torch

from whalesong.modules.generation.sampling import (
    RowNoise,
    SamplingSettings,
    candidate_seeds,
    sample,
)

PROBS = torch.tensor([0.05, 0.4, 0.1, 0.3, 0.15])


def drawn_ids(probs: torch.Tensor, **settings: Any) -> list[int]:
    """All ids that an even grid of noise draws."""
    noise = (torch.arange(2000) + 0.5) / 2000
    logits = probs.log().expand(2000, 1, -1)
    return sample(logits, SamplingSettings(**settings), noise[:, None]).flatten().tolist()


@pytest.mark.parametrize("top_k", [0, 5, 250])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_frequencies_follow_the_distribution(top_k: int, temperature: float) -> None:
    counts = torch.bincount(
        torch.tensor(drawn_ids(PROBS, top_k=top_k, temperature=temperature)), minlength=5
    )
    expected = (PROBS.log() / temperature).softmax(-1)
    assert torch.allclose(counts / 2000, expected, atol=2e-3)


def test_seeded_noise_draws_with_the_right_frequencies() -> None:
    noise = RowNoise(range(4), 5).frames(0, 2000)  # (4, 5, 2000)
    ids = sample(PROBS.log().expand(4, 10000, -1), SamplingSettings(top_k=0), noise.flatten(1))
    expected = PROBS * ids.numel()
    chi_square = ((torch.bincount(ids.flatten()) - expected) ** 2 / expected).sum()
    assert chi_square < 18.5  # 4 degrees of freedom: exceeded once in 1000 seeds


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"temperature": 0.0}, {"top_p": 1e-6}])
def test_the_narrowest_settings_take_the_maximum(settings: dict[str, Any]) -> None:
    logits = torch.randn(50, 4, 300, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(50, 4)
    assert torch.equal(sample(logits, SamplingSettings(**settings), noise), logits.argmax(-1))


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_top_k_keeps_exactly_the_most_probable(top_k: int) -> None:
    assert set(drawn_ids(PROBS, top_k=top_k)) == set(PROBS.topk(top_k).indices.tolist())


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_top_k_keeps_as_many_among_equals(top_k: int) -> None:
    assert len(set(drawn_ids(torch.full((6,), 1 / 6), top_k=top_k))) == top_k


@pytest.mark.parametrize("top_p", [0.01, 0.35, 0.45, 0.69, 0.71, 0.84, 0.86, 0.96, 1.0])
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(top_p: float) -> None:
    kept, mass = [], 0.0
    for index in PROBS.argsort(descending=True).tolist():
        if mass < top_p:
            kept.append(index)
        mass += float(PROBS[index])
    drawn = drawn_ids(PROBS, top_k=0, top_p=top_p)
    assert set(drawn) == set(kept)
    expected = PROBS[kept] / PROBS[kept].sum()
    assert torch.allclose(torch.bincount(torch.tensor(drawn))[kept] / 2000, expected, atol=2e-3)


def test_top_p_counts_what_top_k_left() -> None:
    """Of the three that top_k keeps, the first two hold 0.7 of 0.85."""
    assert set(drawn_ids(PROBS, top_k=3, top_p=0.82)) == {1, 3}
    assert set(drawn_ids(PROBS, top_k=0, top_p=0.82)) == {1, 3, 4}


@pytest.mark.parametrize(("min_p", "kept"), [(0.2, {1, 2, 3, 4}), (0.5, {1, 3}), (1.0, {1})])
def test_min_p_keeps_a_fraction_of_the_most_probable(min_p: float, kept: set[int]) -> None:
    assert set(drawn_ids(PROBS, min_p=min_p)) == kept
    assert set(drawn_ids(PROBS, top_k=0, min_p=min_p, top_p=0.99)) == kept


def test_a_masked_id_is_never_drawn_at_either_end_of_the_noise() -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf]).expand(2, 1, 5)
    noise = torch.tensor([[0.0], [1 - 2**-24]])
    for top_k in (0, 4, 250):
        ids = sample(logits, SamplingSettings(top_k=top_k), noise)
        assert sorted(ids.flatten().tolist()) == [1, 3]


def test_an_id_depends_on_its_own_logits_and_noise_only() -> None:
    logits, noise = torch.randn(6, 3, 700), torch.rand(6, 3)
    for settings in (SamplingSettings(), SamplingSettings(top_k=0), SamplingSettings(top_p=0.9)):
        together = sample(logits, settings, noise)
        for row in range(6):
            alone = sample(logits[row : row + 1, 1:2], settings, noise[row : row + 1, 1:2])
            assert alone == together[row, 1]


@pytest.mark.parametrize("top_k", [0, 1, 5])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_logits_give_an_id_in_range(top_k: int, bad: float) -> None:
    logits = torch.randn(2, 3, 20)
    logits[1, 0, 7] = bad
    ids = sample(logits, SamplingSettings(top_k=top_k, min_p=0.1), torch.rand(2, 3))
    assert 0 <= int(ids.min()) and int(ids.max()) < 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, "`temperature` must be finite and at least 0, but is -1"),
        ({"temperature": math.inf}, "`temperature` must be finite"),
        ({"temperature": math.nan}, "`temperature` must be finite"),
        ({"top_k": -1}, "`top_k` must be an integer of at least 0, but is -1"),
        ({"top_k": 2.5}, "`top_k` must be an integer"),
        ({"top_p": 1.5}, "`top_p` must be between 0 and 1, but is 1.5"),
        ({"min_p": -0.1}, "`min_p` must be between 0 and 1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**settings)


def test_noise_is_a_function_of_seed_codebook_and_frame() -> None:
    whole = RowNoise([3, 4, 3, 2**63 - 1], 2).frames(0, 1000)
    assert whole.shape == (4, 2, 1000)
    assert 0 <= float(whole.min()) and float(whole.max()) < 1
    assert torch.equal(whole[0], whole[2]) and not torch.equal(whole[0], whole[1])
    alone = RowNoise([4], 2)
    for begin, end in [(300, 420), (0, 1), (127, 128), (128, 129), (0, 1000), (5, 5)]:
        assert torch.equal(alone.frames(begin, end)[0], whole[1, :, begin:end])


def test_candidates_begin_with_the_row_itself() -> None:
    seeds = candidate_seeds([7, 8], 3)
    assert seeds[0] == 7 and seeds[3] == 8 and len(set(seeds)) == 6
    assert candidate_seeds([8], 4)[:3] == seeds[3:]
    with pytest.raises(ValueError, match="must fit into 64 bits"):
        RowNoise([2**63], 1)
