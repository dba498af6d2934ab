"""Noise of mdlm: the schedule, when texts are masked, and what a collator makes of it."""

import math
from typing import Any

import pytest
import torch

from whalesong.core.errors import ConfigError, DataError
from whalesong.models.mdlm.collator import (
    DefaultMdlmCollator,
    MdlmSeq2SeqCollator,
    MdlmSeq2SeqPredCollator,
)
from whalesong.models.mdlm.noise_schedule import (
    LogLinearNoise,
    likelihood_weight,
    mask_rate,
    sample_times,
)

PAD, MASK, EOS, BOS = 0, 2, 3, 4
PAIRS = [
    {"id": "a", "prompt_ids": [7, 8, 9], "input_ids": [10]},
    {"id": "b", "prompt_ids": [11], "input_ids": [12, 13, 14]},
]


@pytest.fixture
def sizes(number_tokenizer: Any) -> dict[str, Any]:
    return {"tokenizer": number_tokenizer, "block_size": 5, "input_block_size": 6}


@pytest.fixture
def collate(sizes: dict[str, Any]) -> MdlmSeq2SeqCollator:
    return MdlmSeq2SeqCollator(**sizes, noise_schedule=LogLinearNoise())


@pytest.mark.parametrize("eps", [1e-1, 1e-3, 1e-6])
def test_weight_is_one_over_the_time_whatever_eps_is(eps: float) -> None:
    schedule = LogLinearNoise(eps)
    t = torch.cat((torch.logspace(-3, 0, 500), torch.rand(500) + 1e-9)).double().clamp(max=1)
    weight = likelihood_weight(schedule.noise_rate(t), schedule.total_noise(t))
    torch.testing.assert_close(weight, 1 / t, rtol=1e-12, atol=0)


def test_noise_masks_its_share_and_the_rate_is_its_derivative() -> None:
    schedule = LogLinearNoise(eps=1e-2)
    t = torch.linspace(0, 1, 101, dtype=torch.float64, requires_grad=True)
    total = schedule.total_noise(t)
    torch.testing.assert_close(mask_rate(total), 0.99 * t, rtol=1e-12, atol=1e-15)
    (slope,) = torch.autograd.grad(total.sum(), t)
    torch.testing.assert_close(schedule.noise_rate(t), slope)


def test_fp32_is_exact_enough_for_the_weight() -> None:
    schedule, t = LogLinearNoise(), torch.linspace(1e-3, 1, 1000)
    weight = likelihood_weight(schedule.noise_rate(t), schedule.total_noise(t))
    torch.testing.assert_close(weight, 1 / t, rtol=1e-4, atol=0)


def test_times_of_a_batch_are_spread_evenly_and_in_random_order() -> None:
    torch.manual_seed(0)
    draws = torch.stack([sample_times(8, min_time=0.2) for _ in range(500)])
    parts = ((draws - 0.2) / 0.8 * 8).floor()
    assert torch.equal(parts.sort(1).values, torch.arange(8.0).expand(500, 8))
    assert (draws.mean(0) - 0.6).abs().max() < 4 * 0.8 / math.sqrt(12 * 500)
    assert sample_times(0, min_time=0.2).shape == (0,)


@pytest.mark.parametrize("key", ["eps", "min_time"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_noise_is_between_nothing_and_everything(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"`{key}` of the noise must be between 0 and 1"):
        LogLinearNoise(**{key: value})


@pytest.mark.parametrize(("schedule", "given"), [(None, "missing"), ("loglinear", "a str")])
def test_without_a_schedule_there_is_one_clear_line(sizes: Any, schedule: Any, given: str) -> None:
    with pytest.raises(ConfigError, match=f"`model_type.noise_schedule` must .* is {given}"):
        MdlmSeq2SeqCollator(**sizes, noise_schedule=schedule)


def test_slots_stand_behind_prompts_and_all_of_them_are_targets(collate: Any) -> None:
    batch = collate(PAIRS)
    assert batch["input_ids"][:, :4].tolist() == [[7, 8, 9, BOS], [PAD, PAD, 11, BOS]]
    assert batch["attention_mask"].tolist() == [[True] * 9, [False] * 2 + [True] * 7]
    assert batch["prompt_mask"].tolist() == [
        [True] * 4 + [False] * 5,
        [False] * 2 + [True] * 2 + [False] * 5,
    ]
    assert batch["labels"].tolist() == [
        [-100] * 4 + [10, EOS, PAD, PAD, PAD],
        [-100] * 4 + [12, 13, 14, EOS, PAD],
    ]


def test_a_token_is_masked_or_its_label_and_the_prompt_never_is(collate: Any) -> None:
    torch.manual_seed(1)
    for _ in range(20):
        batch = collate(PAIRS)
        ids, labels = batch["input_ids"], batch["labels"]
        is_slot = labels >= 0
        assert torch.equal(is_slot, batch["attention_mask"] & ~batch["prompt_mask"])
        assert ((ids == labels) | (ids == MASK))[is_slot].all()
        assert (ids != MASK)[~is_slot].all()


def test_the_share_of_masks_is_the_time(collate: Any) -> None:
    torch.manual_seed(0)
    batch = collate([PAIRS[1]] * 4000)
    rates = (1 - 1e-3) * batch["t"]
    torch.testing.assert_close(mask_rate(batch["total_noise"]), rates, rtol=1e-4, atol=1e-6)
    is_masked = (batch["input_ids"] == MASK)[:, -5:].float()
    for slot in range(5):
        for low in (0.0, 0.25, 0.5, 0.75):
            rows = (batch["t"] > low) & (batch["t"] <= low + 0.25)
            surplus = is_masked[rows, slot] - rates[rows]
            assert surplus.mean().abs() < 4 * 0.5 / math.sqrt(int(rows.sum()))


def test_a_text_alone_leaves_its_prompt_aside(sizes: dict[str, Any]) -> None:
    collate = DefaultMdlmCollator(sizes["tokenizer"], 5, LogLinearNoise())
    batch = collate(PAIRS)
    assert batch["input_ids"][:, 0].tolist() == [BOS, BOS]
    assert batch["labels"].tolist() == [
        [-100, 10, EOS, PAD, PAD, PAD],
        [-100, 12, 13, 14, EOS, PAD],
    ]


def test_everything_is_to_be_filled_or_what_is_masked_in_a_text(sizes: dict[str, Any]) -> None:
    collate = MdlmSeq2SeqPredCollator(**sizes)
    batch = collate(PAIRS)
    assert (batch["input_ids"][:, -5:] == MASK).all()
    assert batch["target_ids"].tolist() == [[10, EOS, PAD, PAD, PAD], [12, 13, 14, EOS, PAD]]
    gaps = collate([{"id": "c", "partial_ids": [9, MASK, 9]}, {"id": "d"}])
    assert gaps["input_ids"].tolist() == [[BOS, 9, MASK, 9, EOS, PAD], [BOS] + [MASK] * 5]
    assert "target_ids" not in gaps


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ({"input_ids": [7] * 5}, "its target has 6 tokens .* `block_size` is 5"),
        ({"partial_ids": [7] * 5}, "its target has 6 tokens .* `block_size` is 5"),
        ({"input_ids": [7], "prompt_ids": [7] * 6}, "its prompt has 7 .* `input_block_size` is 6"),
        ({"input_ids": [7, MASK]}, "its target must have no mask"),
    ],
)
def test_examples_that_do_not_fit_are_refused(sizes: Any, example: Any, said: str) -> None:
    with pytest.raises(DataError, match=f"example x: {said}"):
        MdlmSeq2SeqPredCollator(**sizes).load({"id": "x", **example})
