"""The loss of mdlm bounds the likelihood; its oracles are computed by hand."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from whalesong.core.errors import ConfigError
from whalesong.models.mdlm.collator import MdlmSeq2SeqCollator
from whalesong.models.mdlm.loss import MdlmLoss
from whalesong.models.mdlm.model import MdlmModel, subs_log_probs
from whalesong.models.mdlm.noise_schedule import LogLinearNoise

MASK, BOS, SIZE = 2, 4, 16
PAIRS = [
    {"id": "a", "prompt_ids": [7, 8, 9, 10], "input_ids": [10, 11]},
    {"id": "b", "prompt_ids": [11], "input_ids": [12, 13, 14]},
    {"id": "c", "input_ids": [9, 9]},
]


def build_model(**fields: Any) -> MdlmModel:
    """A tiny network with large random weights, so that what it says differs."""
    torch.manual_seed(0)
    sizes = {"vocab_size": SIZE, "d_model": 32, "num_layers": 2, "num_heads": 4}
    model = MdlmModel(**sizes, condition_dim=8, **fields)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture
def collate(number_tokenizer: Any) -> MdlmSeq2SeqCollator:
    return MdlmSeq2SeqCollator(number_tokenizer, 6, 6, LogLinearNoise())


def row(batch: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """One row of a batch without its padding at the left."""
    first = int(batch["attention_mask"][index].int().argmax())
    return {
        key: value[index : index + 1, first:] if value.ndim == 2 else value[index : index + 1]
        for key, value in batch.items()
    }


def test_a_mask_is_never_predicted_and_what_is_visible_is_copied() -> None:
    ids = torch.tensor([[7, MASK, 9]])
    logits = torch.randn(1, 3, SIZE) + torch.nn.functional.one_hot(torch.tensor(MASK), SIZE) * 50
    log_probs = subs_log_probs(logits, ids, MASK)
    assert (log_probs[..., MASK] == -torch.inf).all()
    assert log_probs[0, 0, 7] == log_probs[0, 2, 9] == 0
    assert (log_probs[0, (0, 2)].exp().sum(-1) == 1).all()
    others = [token for token in range(SIZE) if token != MASK]
    expected = logits[0, 1, others].log_softmax(-1)
    torch.testing.assert_close(log_probs[0, 1, others], expected)


@pytest.mark.parametrize("time_conditioning", [False, True])
def test_the_loss_is_the_weighted_sum_over_masks_by_hand(
    collate: Any, number_tokenizer: Any, time_conditioning: bool
) -> None:
    model = build_model(time_conditioning=time_conditioning, prompt_positions=6)
    torch.manual_seed(3)
    batch = collate(PAIRS * 4)
    outputs = MdlmLoss(model, number_tokenizer).loss_fn(batch)
    logits = model(
        batch["input_ids"],
        batch["attention_mask"],
        prompt_mask=batch["prompt_mask"],
        total_noise=batch["total_noise"],
    )
    log_probs = subs_log_probs(logits, batch["input_ids"], MASK)
    by_token = log_probs.gather(-1, batch["labels"].clamp(min=0)[..., None])[..., 0]
    weighted = -by_token / batch["t"][:, None]
    targets = batch["labels"] >= 0
    assert outputs["num_targets"] == targets.sum() == 12 * 6
    torch.testing.assert_close(outputs["loss"], weighted[targets].sum() / 72, rtol=1e-4, atol=0)
    right = (log_probs.argmax(-1) == batch["labels"])[targets].sum()
    assert outputs["num_correct"] == right
    nll = outputs["sums"]["nll"]
    torch.testing.assert_close(nll, outputs["loss"].detach() * 72)


def test_at_the_start_all_tokens_but_the_mask_are_equally_likely(
    collate: Any, number_tokenizer: Any
) -> None:
    """Then the bound is `(1 - eps) log(V - 1)`: E[masks / t] is `1 - eps` for each slot."""
    sizes = {"vocab_size": SIZE, "d_model": 8, "num_layers": 1, "num_heads": 1, "condition_dim": 8}
    loss = MdlmLoss(MdlmModel(**sizes), number_tokenizer)
    torch.manual_seed(0)
    batch = collate([PAIRS[1]] * 6000)
    outputs = loss.loss_fn(batch)
    share = (batch["input_ids"][:, -6:] == MASK).float().mean(1)
    by_hand = (share / batch["t"]).mean() * math.log(SIZE - 1)
    torch.testing.assert_close(outputs["loss"].detach(), by_hand, rtol=1e-4, atol=0)
    assert float(outputs["loss"].detach()) == pytest.approx(0.999 * math.log(SIZE - 1), rel=0.04)


class Oracle(nn.Module):
    """Knows how two slots are distributed: (7, 7) 0.5, (7, 8) 0.2, (8, 8) 0.3."""

    time_conditioning = False
    JOINT = {(7, 7): 0.5, (7, 8): 0.2, (8, 8): 0.3}

    def forward(self, ids: Tensor, attention_mask: Any = None, **context: Any) -> Tensor:
        """Exact log-probabilities of masked slots, the last two of each row."""
        logits = torch.full((*ids.shape, SIZE), -1e4)
        for index, (first, second) in enumerate(ids[:, -2:].tolist()):
            for (left, right), prob in self.JOINT.items():
                if first in (left, MASK) and second in (right, MASK):
                    for place, token in ((-2, left), (-1, right)):
                        found = logits[index, place, token].exp() + prob
                        logits[index, place, token] = found.log()
        at = context["at"]
        return logits if at is None else logits[at]


@pytest.mark.parametrize("by_count", [False, True])
def test_of_a_perfect_model_the_bound_is_the_entropy(number_tokenizer: Any, by_count: bool) -> None:
    """With k of L slots masked at time t, the weight integrates to (k-1)! (L-k)! / L!.

    The weight by count times the probability of that mask, 1 / ((L + 1) (L over k)), is the same.
    """
    loss = MdlmLoss(Oracle(), number_tokenizer, weigh_by_count=by_count)
    total, t = 0.0, torch.tensor([0.5])
    schedule = LogLinearNoise()
    for (pair, prob), hidden in itertools.product(Oracle.JOINT.items(), [(0,), (1,), (0, 1)]):
        slots = [MASK if slot in hidden else token for slot, token in enumerate(pair)]
        batch = {
            "input_ids": torch.tensor([[BOS, *slots]]),
            "attention_mask": torch.ones(1, 3, dtype=torch.bool),
            "prompt_mask": torch.tensor([[True, False, False]]),
            "labels": torch.tensor([[-100, *pair]]),
            "noise_rate": schedule.noise_rate(t),
            "total_noise": schedule.total_noise(t),
        }
        bound, k = float(loss.loss_fn(batch)["loss"]) * 2, len(hidden)
        integral = math.factorial(k - 1) * math.factorial(2 - k) / 2
        share = 1 / (3 * math.comb(2, k)) if by_count else float(t) * integral
        total += prob * bound * share
    entropy = -sum(prob * math.log(prob) for prob in Oracle.JOINT.values())
    assert total == pytest.approx(entropy, rel=1e-5)


def test_weights_by_count_have_the_same_mean_and_far_less_noise(
    collate: Any, number_tokenizer: Any
) -> None:
    model = build_model()
    torch.manual_seed(0)
    with torch.no_grad():
        batches = [collate([PAIRS[1]] * 64) for _ in range(60)]
        by_time, by_count = (
            torch.stack([loss.loss_fn(batch)["loss"] for batch in batches])
            for loss in (
                MdlmLoss(model, number_tokenizer, weigh_by_count=choice) for choice in (False, True)
            )
        )
    error = by_time.std() / math.sqrt(len(batches))
    assert abs(by_time.mean() - by_count.mean()) < 4 * error
    assert by_count.std() < by_time.std() / 2


def test_weights_by_count_are_not_for_a_model_that_is_told_the_noise(number_tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="`model_type.loss.weigh_by_count` must be false"):
        MdlmLoss(build_model(time_conditioning=True), number_tokenizer, weigh_by_count=True)


@pytest.mark.parametrize("time_conditioning", [False, True])
def test_rows_do_not_see_each_other_and_padding_changes_nothing(
    collate: Any, number_tokenizer: Any, time_conditioning: bool
) -> None:
    loss = MdlmLoss(build_model(time_conditioning=time_conditioning), number_tokenizer)
    torch.manual_seed(0)
    batch = collate(PAIRS)
    singles = [loss.loss_fn(row(batch, index)) for index in range(3)]
    total = sum(single["loss"] * single["num_targets"] for single in singles)
    together = loss.loss_fn(batch)
    torch.testing.assert_close(together["loss"] * together["num_targets"], total)


def test_without_examples_the_loss_is_nothing_and_finite(
    collate: Any, number_tokenizer: Any
) -> None:
    outputs = MdlmLoss(build_model(), number_tokenizer).loss_fn(collate([]))
    assert outputs["loss"] == 0 and outputs["num_targets"] == 0 and outputs["num_correct"] == 0
    outputs["loss"].backward()


def test_only_with_time_conditioning_the_noise_is_told() -> None:
    ids = torch.randint(7, SIZE, (2, 5))
    for told in (False, True):
        model = build_model(time_conditioning=told)
        quiet, loud = (model(ids, total_noise=torch.full((2,), noise)) for noise in (0.1, 5.0))
        assert torch.equal(quiet, loud) is not told
        torch.testing.assert_close(model(ids), model(ids, total_noise=torch.zeros(2)))


def test_a_model_without_an_embedding_of_the_noise_cannot_be_told_it() -> None:
    sizes = {"vocab_size": SIZE, "d_model": 8, "num_layers": 1, "num_heads": 1}
    model = MdlmModel(**sizes, condition_dim=None)
    assert not any("modulation" in name for name, _ in model.named_parameters())
    assert model(torch.tensor([[7, MASK]]), total_noise=torch.ones(1)).shape == (1, 2, SIZE)
    with pytest.raises(ValueError, match="`condition_dim` must be given with `time_conditioning`"):
        MdlmModel(**sizes, condition_dim=None, time_conditioning=True)


def test_what_is_seen_stands_on_both_sides() -> None:
    model, ids = build_model(), torch.randint(7, SIZE, (1, 6))
    for changed in (0, 5):
        other = ids.clone()
        other[0, changed] = 15 if ids[0, changed] != 15 else 7
        assert not torch.isclose(model(other)[0, 3], model(ids)[0, 3]).all()


def test_logits_are_computed_where_they_are_wanted() -> None:
    model, ids = build_model(), torch.randint(7, SIZE, (2, 5))
    at = torch.rand(2, 5) < 0.5
    torch.testing.assert_close(model(ids, at=at), model(ids)[at])
