"""Batches of arlm: what stands where, what is learned, and what is refused."""

from typing import Any

import pytest
import torch

from whalesong.core.errors import DataError
from whalesong.models.arlm.collator import (
    ArlmSeq2SeqCollator,
    ArlmSeq2SeqPredCollator,
    DefaultArlmCollator,
    DefaultArlmPredCollator,
)

PAD, EOS, BOS = 0, 3, 4
PAIRS = [
    {"id": "a", "prompt_ids": [7, 8, 9], "input_ids": [10]},
    {"id": "b", "prompt_ids": [11], "input_ids": [12, 13, 14]},
]


@pytest.fixture
def sizes(number_tokenizer: Any) -> dict[str, Any]:
    return {"tokenizer": number_tokenizer, "block_size": 5, "input_block_size": 6}


def test_targets_follow_prompts_without_a_gap(sizes: dict[str, Any]) -> None:
    batch = ArlmSeq2SeqCollator(**sizes)(PAIRS)
    assert batch["input_ids"].tolist() == [
        [7, 8, 9, BOS, 10, EOS, PAD],
        [PAD, PAD, 11, BOS, 12, 13, 14],
    ]
    assert batch["attention_mask"].tolist() == [[True] * 6 + [False], [False] * 2 + [True] * 5]
    assert batch["prompt_mask"].tolist() == [
        [True] * 4 + [False] * 3,
        [False] * 2 + [True] * 2 + [False] * 3,
    ]


def test_only_targets_with_their_ends_are_learned(sizes: dict[str, Any]) -> None:
    batch = ArlmSeq2SeqCollator(**sizes)(PAIRS)
    assert batch["labels"].tolist() == [
        [-100, -100, -100, 10, EOS, -100, -100],
        [-100, -100, -100, 12, 13, 14, EOS],
    ]


def test_prompts_are_learned_if_wanted(sizes: dict[str, Any]) -> None:
    batch = ArlmSeq2SeqCollator(**sizes, loss_on_prompt=True)(PAIRS)
    assert batch["labels"].tolist() == [
        [8, 9, BOS, 10, EOS, -100, -100],
        [-100, -100, BOS, 12, 13, 14, EOS],
    ]


def test_a_text_stands_between_begin_and_end(sizes: dict[str, Any]) -> None:
    batch = DefaultArlmCollator(sizes["tokenizer"], 5)(PAIRS)
    assert batch["input_ids"].tolist() == [[BOS, 10, EOS, PAD], [BOS, 12, 13, 14]]
    assert batch["labels"].tolist() == [[10, EOS, -100, -100], [12, 13, 14, EOS]]


def test_generation_begins_behind_the_prompt(sizes: dict[str, Any]) -> None:
    batch = ArlmSeq2SeqPredCollator(**sizes)(PAIRS)
    assert batch["input_ids"].tolist() == [[7, 8, 9, BOS], [PAD, PAD, 11, BOS]]
    assert batch["target_ids"].tolist() == [[10, EOS, PAD, PAD, PAD], [12, 13, 14, EOS, PAD]]


def test_generation_of_texts_begins_with_their_begin(sizes: dict[str, Any]) -> None:
    batch = DefaultArlmPredCollator(sizes["tokenizer"], 5)([{"id": "c", "prompt_ids": [7, 8]}])
    assert batch["input_ids"].tolist() == [[BOS, 7, 8]]
    assert "target_ids" not in batch


def test_without_prompt_generation_begins_with_nothing(sizes: dict[str, Any]) -> None:
    batch = ArlmSeq2SeqPredCollator(**sizes)([{"id": "sample-0"}])
    assert batch["input_ids"].tolist() == [[BOS]]
    assert "target_ids" not in batch


def test_a_row_is_padded_as_others_need_and_no_more(sizes: dict[str, Any]) -> None:
    collate = ArlmSeq2SeqCollator(**sizes)
    alone = collate(PAIRS[:1])
    assert alone["input_ids"].tolist() == [[7, 8, 9, BOS, 10]]
    assert torch.equal(collate(PAIRS)["labels"][0, :5], alone["labels"][0])


def test_no_examples_give_a_batch_without_targets(sizes: dict[str, Any]) -> None:
    batch = ArlmSeq2SeqCollator(**sizes)([])
    assert (batch["labels"] == -100).all()
    assert ArlmSeq2SeqPredCollator(**sizes)([])["input_ids"].shape[0] == 0


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ({"id": "x", "input_ids": [7] * 5}, "target has 6 tokens"),
        ({"id": "x", "input_ids": [7], "prompt_ids": [7] * 6}, "prompt has 7 tokens"),
        ({"id": "x", "partial_ids": [7, 2]}, "arlm writes from left to right"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    sizes: dict[str, Any], example: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=f"example x: .*{said}"):
        ArlmSeq2SeqPredCollator(**sizes).load(example)
