import re

import pytest

from whalesong.corpora.grammar import (
    VOCABULARY,
    number_to_words,
    sample_sentences,
    split_of,
)

SPLITS = ("train", "validation", "test")


def test_grammar_has_at_least_60_words():
    assert len(VOCABULARY) >= 60


@pytest.mark.parametrize("seed", range(5))
def test_600_training_sentences_hold_every_word(seed):
    words = {word for text in sample_sentences(seed, 600) for word in text.split()}
    assert words == set(VOCABULARY)


def test_transcripts_are_lower_case_words_alone():
    for split in SPLITS:
        for text in sample_sentences(0, 300, split=split):
            assert re.fullmatch(r"[a-z]+( [a-z]+)*", text)


def test_equal_seeds_give_equal_sentences_and_other_seeds_others():
    assert sample_sentences(1, 50) == sample_sentences(1, 50)
    assert sample_sentences(1, 50) == sample_sentences(1, 80)[:50]
    assert sample_sentences(1, 50) != sample_sentences(2, 50)


def test_no_sentence_is_in_two_splits_whatever_the_seed():
    drawn = {
        split: {text for seed in range(3) for text in sample_sentences(seed, 500, split=split)}
        for split in SPLITS
    }
    assert not drawn["train"] & drawn["test"]
    assert not drawn["train"] & drawn["validation"]
    assert not drawn["validation"] & drawn["test"]
    assert all(split_of(text) == split for split in SPLITS for text in drawn[split])


def test_many_sentences_are_different():
    assert len(set(sample_sentences(0, 3000))) > 2000


@pytest.mark.parametrize(
    ("number", "words"), [(0, "zero"), (7, "seven"), (13, "thirteen"), (40, "forty"),
                          (42, "forty two"), (99, "ninety nine"), (100, "one hundred")]
)  # fmt: skip
def test_numbers_are_words(number, words):
    assert number_to_words(number) == words
