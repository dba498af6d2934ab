"""What is missing from a text, and what a batch says of it."""

import itertools

import pytest
import torch

from whalesong.core.errors import DataError
from whalesong.models.ilm.collator import (
    DefaultIlmCollator,
    DefaultIlmPredCollator,
    IlmSeq2SeqCollator,
    IlmSeq2SeqPredCollator,
    draw_missing,
)

CLS, BOS, PAD, MASK = 1, 4, 0, 2


def restored(batch: dict, row: int) -> list[int]:
    """The target of a row: its kept tokens, each gap filled from the labels."""
    text = []
    for column in batch["gap_mask"][row].nonzero()[:, 0].tolist():
        token = int(batch["input_ids"][row, column])
        text += [] if token == BOS else [token]
        inside = (batch["labels"][row] >= 0) & (batch["gaps"][row] == column)
        text += batch["labels"][row][inside].tolist()
    return text


def test_missing_tokens_put_back_into_their_gaps_give_the_target(collator, graphs):
    examples = graphs("train", 20)
    examples[3]["input_ids"] = examples[3]["input_ids"][:1]  # of another length
    batch = collator(examples)
    assert [restored(batch, row) for row in range(20)] == [row["input_ids"] for row in examples]
    kept = batch["gap_mask"] & ~batch["prompt_mask"]
    missing = (batch["labels"] >= 0).sum(1)
    assert (kept.sum(1) + missing).tolist() == [len(row["input_ids"]) for row in examples]


def test_prompts_end_in_one_column_between_cls_and_bos(collator):
    batch = collator(
        [
            {"id": "a", "prompt_ids": [7, 8], "input_ids": [9]},
            {"id": "b", "prompt_ids": [], "input_ids": [10, 10]},
        ]
    )
    assert batch["input_ids"][:, :4].tolist() == [[CLS, 7, 8, BOS], [PAD, PAD, CLS, BOS]]
    assert batch["prompt_mask"][:, :4].tolist() == [[True] * 4, [False, False, True, True]]
    assert not batch["prompt_mask"][:, 4:].any()
    assert batch["gap_mask"][:, :4].tolist() == [[False, False, False, True]] * 2
    assert torch.equal(batch["attention_mask"], batch["prompt_mask"] | batch["gap_mask"])


def test_texts_without_prompts_ignore_prompts(tokenizer):
    examples = [{"id": "a", "prompt_ids": [8], "input_ids": [9, 9]}]
    batch = DefaultIlmCollator(tokenizer, 4)(examples)
    assert batch["input_ids"][0, :2].tolist() == [CLS, BOS]
    assert restored(batch, 0) == [9, 9]


@pytest.mark.parametrize("length", [1, 3])
def test_any_number_is_equally_likely_to_be_missing_and_any_choice_of_so_many(length):
    torch.manual_seed(1)
    num_draws = 24_000
    mask = torch.ones(num_draws, 4, dtype=torch.bool)
    mask[:, length:] = False
    missing = draw_missing(mask)
    assert not missing[:, length:].any()
    shares = torch.bincount(missing.sum(1), minlength=length + 1) / num_draws
    torch.testing.assert_close(
        shares, torch.full((length + 1,), 1 / (length + 1)), atol=0.015, rtol=0
    )
    for size in range(length + 1):
        of_size = missing[missing.sum(1) == size, :length]
        choices = list(itertools.combinations(range(length), size))
        for choice in choices:
            wanted = torch.tensor([index in choice for index in range(length)])
            share = (of_size == wanted).all(1).float().mean()
            assert share == pytest.approx(1 / len(choices), abs=0.03)


def test_draws_come_from_the_generator_of_torch(collator, graphs):
    examples = graphs("train", 6)
    torch.manual_seed(5)
    first, second = collator(examples), collator(examples)
    torch.manual_seed(5)
    again = collator(examples)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["labels"], second["labels"])


def test_prediction_batch_holds_the_prompt_only_and_the_padded_truth(pred_collator):
    batch = pred_collator([{"id": "a", "prompt_ids": [7], "input_ids": [8, 9]}])
    assert batch["input_ids"].tolist() == [[CLS, 7, BOS]]
    assert batch["gap_mask"].tolist() == [[False, False, True]]
    assert batch["target_ids"].tolist() == [[8, 9, PAD, PAD, PAD]]


@pytest.mark.parametrize(
    ("partial", "known", "gaps"),
    [
        ([], [], [True]),
        ([7, 8], [7, 8], [True, True, True]),
        ([7, MASK, MASK, 8], [7, 8], [False, True, False]),
        ([MASK, 7], [7], [True, False]),
        ([7, MASK], [7], [False, True]),
        ([MASK], [], [True]),
    ],
)
def test_gaps_are_where_masks_stand_and_everywhere_without_masks(
    pred_collator, partial, known, gaps
):
    batch = pred_collator([{"id": "a", "partial_ids": partial}])
    assert batch["input_ids"].tolist() == [[CLS, BOS, *known]]
    assert batch["gap_mask"].tolist() == [[False, *gaps]]
    assert "target_ids" not in batch


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"input_ids": [7] * 6}, "its target has 6 tokens"),
        ({"prompt_ids": [7] * 15, "input_ids": [7]}, "its prompt has 17 tokens"),
        ({"partial_ids": [7] * 6}, "has 6 known tokens, but `block_size` is 5"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tokenizer, example, message):
    collator = IlmSeq2SeqPredCollator(tokenizer, 5, 16)
    with pytest.raises(DataError, match=f"example long: {message}"):
        collator.load({"id": "long", **example})
    with pytest.raises(DataError, match=message):
        collator([{"id": "long", **example}])


def test_longest_examples_fit(tokenizer):
    collator = IlmSeq2SeqCollator(tokenizer, 5, 16)
    example = {"id": "a", "prompt_ids": [7] * 14, "input_ids": [8] * 5}
    assert collator.load(example) == example


def test_prompt_of_a_text_is_its_beginning(tokenizer):
    collator = DefaultIlmPredCollator(tokenizer, 5)
    batch = collator([{"id": "a", "prompt_ids": [7, 8]}, {"id": "b"}])
    assert batch["input_ids"].tolist() == [[CLS, BOS, 7, 8], [CLS, BOS, PAD, PAD]]
    assert batch["gap_mask"].tolist() == [[False, False, False, True], [False, True, False, False]]
