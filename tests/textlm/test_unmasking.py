"""Which slots are filled next: shares, the surest, and how sure is sure enough."""

from typing import Any

import pytest
import torch
from torch import Tensor

from whalesong.textlm.unmasking import Unmasking, confidence, highest, num_sure, share

STRATEGIES: list[dict[str, Any]] = [
    {"strategy": "uniform"},
    {"strategy": "top_prob"},
    {"strategy": "prob_diff"},
    {"strategy": "top_prob", "threshold": 0.1},
    {"strategy": "prob_diff", "threshold": 0.5},
]


def run(unmasking: Unmasking, is_masked: Tensor, num_steps: int) -> list[Tensor]:
    """The slots that each step fills, until no row has a mask."""
    generator = torch.Generator().manual_seed(0)
    filled = []
    for step in range(num_steps):
        if not is_masked.any():
            break
        probs = torch.rand(*is_masked.shape, 5, generator=generator).softmax(-1)
        noise = torch.rand(is_masked.shape, generator=generator)
        chosen = unmasking.choose(is_masked, probs, noise, steps_left=num_steps - step)
        assert not (chosen & ~is_masked).any()
        is_masked = is_masked & ~chosen
        filled.append(chosen)
    assert not is_masked.any()
    return filled


MASKED = torch.tensor([[True] * 9, [True, False, True] * 3, [False] * 9, [False] * 8 + [True]])


@pytest.mark.parametrize("num_steps", [1, 2, 4, 9, 30])
@pytest.mark.parametrize("fields", STRATEGIES)
def test_each_step_fills_something_until_all_is_filled(
    fields: dict[str, Any], num_steps: int
) -> None:
    filled = run(Unmasking(**fields), MASKED, num_steps)
    left = MASKED.sum(1)
    for chosen in filled:
        assert (chosen.sum(1) >= left.clamp(max=1)).all()
        left = left - chosen.sum(1)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("strategy", ["uniform", "top_prob", "prob_diff"])
def test_as_many_steps_as_asked_for(strategy: Any, num_steps: int) -> None:
    filled = run(Unmasking(strategy=strategy), MASKED[:1], num_steps)
    assert len(filled) == num_steps


def test_shares_are_even_and_the_last_step_takes_the_rest() -> None:
    left, taken = torch.tensor([9, 3, 0]), []
    for steps_left in (4, 3, 2, 1):
        taken.append(share(left, steps_left).tolist())
        left = left - share(left, steps_left)
    assert taken == [[2, 1, 0], [2, 1, 0], [2, 1, 0], [3, 0, 0]]


def test_confidence_by_hand() -> None:
    probs = torch.tensor([[[0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.0, 0.0, 1.0]]])
    torch.testing.assert_close(confidence(probs, "top_prob"), torch.tensor([[0.7, 0.5, 1.0]]))
    torch.testing.assert_close(confidence(probs, "prob_diff"), torch.tensor([[0.5, 0.1, 1.0]]))


def test_the_best_and_the_clearest_slot_may_differ() -> None:
    probs = torch.tensor([[[0.5, 0.5, 0.0, 0.0], [0.4, 0.2, 0.2, 0.2]]])
    masked, noise = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2)
    chosen = {
        strategy: Unmasking(strategy=strategy).choose(masked, probs, noise, steps_left=2).tolist()
        for strategy in ("top_prob", "prob_diff")
    }
    assert chosen == {"top_prob": [[True, False]], "prob_diff": [[False, True]]}


@pytest.mark.parametrize(("threshold", "expected"), [(0.05, 1), (0.15, 2), (0.25, 3), (0.9, 4)])
def test_doubts_before_the_last_stay_below_the_threshold(threshold: float, expected: int) -> None:
    scores = torch.tensor([[0.9, 0.2, 0.9, 0.5, 0.999]])  # doubts 0.1, 0.8, 0.1, 0.5
    masked = torch.tensor([[True, True, True, True, False]])
    assert num_sure(masked, scores, threshold).tolist() == [expected]


def test_the_surest_slots_are_taken_and_only_masked_ones() -> None:
    scores = torch.tensor([[0.3, 0.9, 0.5, 0.4], [0.1, 0.2, 0.3, 0.4]])
    masked = torch.tensor([[True, False, True, True], [True, True, False, False]])
    taken = highest(masked, scores, torch.tensor([2, 5]))
    assert taken.tolist() == [[False, False, True, True], [True, True, False, False]]


def test_uniform_takes_each_slot_equally_often() -> None:
    rows = 6000
    masked = torch.tensor([True, False, True, True]).expand(rows, 4)
    noise = torch.rand(rows, 4, generator=torch.Generator().manual_seed(1))
    probs = torch.full((rows, 4, 2), 0.5)
    chosen = Unmasking(strategy="uniform").choose(masked, probs, noise, steps_left=3)
    expected = torch.tensor([1 / 3, 0.0, 1 / 3, 1 / 3])
    torch.testing.assert_close(chosen.float().mean(0), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"strategy": "entropy"}, "`strategy` must be one of"),
        ({"threshold": 0.0}, "`threshold` must be above 0"),
        ({"strategy": "uniform", "threshold": 0.1}, "`threshold` must be null"),
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Unmasking(**fields)
