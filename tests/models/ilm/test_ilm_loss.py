"""The loss of ilm beside slow sums, exact expectations and by hand."""

import itertools
import math
from collections import Counter, defaultdict

import pytest
import torch

from whalesong.models.ilm.loss import IlmLoss, insertion_losses

IGNORED = -100
TARGETS = {"easy": [0, 1, 1, 2, 2, 3, 3, 4], "mini": [0, 1, 1, 2]}
"""Paths of star graphs as edges, for nodes in the order of the path."""


def counts(target: list[int], missing: tuple[int, ...]) -> Counter:
    """How often each (gap, token) is missing, for the positions that are missing."""
    return Counter(
        (sum(index not in missing for index in range(position)), target[position])
        for position in missing
    )


def subsets(target: list[int]):
    """Every choice of missing positions with its probability."""
    length = len(target)
    for size in range(length + 1):
        for missing in itertools.combinations(range(length), size):
            yield missing, 1 / (length + 1) / math.comb(length, size)


def dense_loss(logits: torch.Tensor, wanted: Counter) -> float:
    """Cross-entropy between normalised counts and one softmax over (gaps, V)."""
    log_probs = logits.flatten().log_softmax(0).view_as(logits)
    total = sum(wanted.values())
    return -sum(float(log_probs[key]) * count / total for key, count in wanted.items())


def losses_of(target: list[int], missing: tuple[int, ...], logits: torch.Tensor) -> float:
    """The loss of one row with logits (gaps, V)."""
    gap_mask = torch.ones(1, len(logits), dtype=torch.bool)
    positions = range(len(target))
    labels = [target[i] if i in missing else IGNORED for i in positions]
    gaps = [sum(j not in missing for j in range(i)) if i in missing else 0 for i in positions]
    losses = insertion_losses(logits, gap_mask, torch.tensor([labels]), torch.tensor([gaps]))
    return float(losses[0])


@pytest.mark.parametrize("missing", [(0,), (0, 1), (0, 1, 2), (1, 3), (0, 1, 2, 3, 4)])
def test_repeated_tokens_count_as_often_as_they_are_missing(missing):
    target = [3, 3, 1, 3, 3]
    torch.manual_seed(0)
    logits = torch.randn(len(target) - len(missing) + 1, 6)
    wanted = counts(target, missing)
    assert losses_of(target, missing, logits) == pytest.approx(dense_loss(logits, wanted), 1e-5)


def test_two_equal_tokens_in_one_gap_by_hand():
    logits = torch.tensor([[0.0, math.log(3), math.log(2)]])  # probabilities 1/6, 3/6, 2/6
    loss = losses_of([1, 1, 2], (0, 1, 2), logits)
    assert loss == pytest.approx(-(2 * math.log(3 / 6) + math.log(2 / 6)) / 3, 1e-6)


def test_rows_and_their_gaps_do_not_mix():
    """Rows of several lengths in a batch: each is the slow sum over its own gaps."""
    target, choices = [2, 2, 5, 0], [(0,), (1, 2), (), (0, 1, 2, 3)]
    torch.manual_seed(1)
    gap_mask = torch.zeros(4, 7, dtype=torch.bool)
    labels = torch.full((4, 4), IGNORED)
    gaps = torch.zeros(4, 4, dtype=torch.long)
    expected, logits = [], []
    for row, missing in enumerate(choices):
        of_row = torch.randn(5 - len(missing), 6)
        gap_mask[row, 1 + row % 2 : 1 + row % 2 + len(of_row)] = True
        for index in missing:
            labels[row, index] = target[index]
            gaps[row, index] = 1 + row % 2 + sum(i not in missing for i in range(index))
        logits.append(of_row)
        expected.append(dense_loss(of_row, counts(target, missing)) if missing else 0.0)
    losses = insertion_losses(torch.cat(logits), gap_mask, labels, gaps)
    torch.testing.assert_close(losses, torch.tensor(expected))


@pytest.mark.parametrize(("size", "floor"), [("easy", 0.947), ("mini", 0.497)])
def test_oracle_that_knows_what_is_missing_reaches_the_floor(size, floor):
    """The published floor: the mean entropy of the targets, over all ways to lose tokens."""
    target = TARGETS[size]
    mean = 0.0
    for missing, probability in subsets(target):
        wanted = counts(target, missing)
        logits = torch.full((len(target) - len(missing) + 1, 5), -1e4)
        for key, count in wanted.items():
            logits[key] = math.log(count)
        mean += probability * losses_of(target, missing, logits)
    assert mean == pytest.approx(floor, abs=5e-4)


@pytest.mark.parametrize(("size", "floor"), [("easy", 1.1783), ("mini", 0.6356)])
def test_oracle_that_sees_the_kept_tokens_reaches_its_own_floor(size, floor):
    """What a network can reach: the same tokens may be left over from several choices."""
    target = TARGETS[size]
    seen = defaultdict(Counter)
    for missing, probability in subsets(target):
        kept = tuple(token for index, token in enumerate(target) if index not in missing)
        for key, count in counts(target, missing).items():
            seen[kept][key] += probability * count / len(missing)
    mean = 0.0
    for missing, probability in subsets(target):
        kept = tuple(token for index, token in enumerate(target) if index not in missing)
        logits = torch.full((len(kept) + 1, 5), -1e4)
        for key, weight in seen[kept].items():
            logits[key] = math.log(weight)
        mean += probability * losses_of(target, missing, logits)
    assert mean == pytest.approx(floor, abs=5e-5)


@pytest.mark.parametrize("says_complete", [True, False])
def test_stop_head_learns_whether_anything_is_missing(model, collator, graphs, says_complete):
    with torch.no_grad():
        model.stop_head.classes.weight.zero_()
        model.stop_head.classes.bias.copy_(torch.tensor([9.0, -9.0]) * (1 if says_complete else -1))
    torch.manual_seed(0)
    batch = collator(graphs("train", 40))
    complete = (batch["labels"] < 0).all(1)
    assert 0 < complete.sum() < 40
    wrong = ~complete if says_complete else complete
    stop_loss = IlmLoss(model=model).loss_fn(batch)["parts"]["stop_loss"]
    assert float(stop_loss) == pytest.approx(18 * float(wrong.float().mean()), rel=1e-4)


def test_terms_are_weighed_and_counted_by_examples(model, collator, graphs):
    batch = collator(graphs("train", 12))
    light = IlmLoss(model=model, stop_loss_weight=0.25).loss_fn(batch)
    parts = light["parts"]
    assert int(light["num_targets"]) == 12
    torch.testing.assert_close(
        light["loss"].detach(), parts["insertion_loss"] + 0.25 * parts["stop_loss"]
    )


def test_loss_of_a_batch_is_the_mean_of_its_rows(model, collator, graphs):
    examples = graphs("train", 6)
    examples[0]["prompt_ids"] = examples[0]["prompt_ids"][:5]
    batch = collator(examples)
    loss = IlmLoss(model=model)
    rows = [
        loss.loss_fn({key: value[row : row + 1] for key, value in batch.items()})["loss"]
        for row in range(6)
    ]
    torch.testing.assert_close(loss.loss_fn(batch)["loss"], torch.stack(rows).mean())


def test_padding_and_what_stands_under_it_change_nothing(model, collator, graphs):
    batch = collator(graphs("train", 5))
    more = dict(batch)
    for key in ("input_ids", "attention_mask", "prompt_mask", "gap_mask"):
        more[key] = torch.nn.functional.pad(batch[key], (3, 2))
    more["input_ids"][~more["attention_mask"]] = 9
    more["gaps"] = batch["gaps"] + 3
    loss = IlmLoss(model=model)
    torch.testing.assert_close(loss.loss_fn(more)["loss"], loss.loss_fn(batch)["loss"])


def test_no_examples_give_a_loss_of_zero_that_can_be_learned_from(model, collator):
    outputs = IlmLoss(model=model).loss_fn(collator([]))
    outputs["loss"].backward()
    assert outputs["loss"].item() == 0 and outputs["num_targets"].item() == 0


def test_every_parameter_learns(model, collator, graphs):
    torch.manual_seed(0)
    IlmLoss(model=model).loss_fn(collator(graphs("train", 8)))["loss"].backward()
    silent = [name for name, value in model.named_parameters() if not value.grad.abs().sum()]
    assert silent == []


def test_next_moves_are_counted_in_evaluation_only(model, collator, graphs):
    """Beside a slow count row by row."""
    torch.manual_seed(3)
    with torch.no_grad():
        model.head.weight.mul_(4)
    batch = collator(graphs("train", 60))
    hidden = model.hidden_states(
        batch["input_ids"], attention_mask=batch["attention_mask"], prompt_mask=batch["prompt_mask"]
    )
    logits = model.head(hidden).masked_fill(~batch["gap_mask"][..., None], -torch.inf)
    goes_on = model.stop_logits(hidden, batch["attention_mask"]).argmax(1)
    expected = 0
    for row in range(60):
        gap, token = divmod(int(logits[row].argmax()), logits.shape[-1])
        wanted = set(zip(batch["gaps"][row].tolist(), batch["labels"][row].tolist(), strict=True))
        missing = any(label >= 0 for _, label in wanted)
        expected += bool(goes_on[row]) == missing and (not missing or (gap, token) in wanted)
    assert 0 < expected < 60
    assert int(IlmLoss(model=model).loss_fn(batch)["num_correct"]) == expected
    assert "num_correct" not in IlmLoss(model=model.train()).loss_fn(batch)
