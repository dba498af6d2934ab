"""Word error rates against counts made by hand."""

import pytest

from whalesong.metrics.text import (
    WordErrorRate,
    character_edits,
    spoken_words,
    word_edits,
    word_error_rate,
)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "edits"),
    [("a b c", "a b c", 0), ("a b c", "a x c", 1), ("a b c", "a c", 1), ("a b", "a b c d", 2)],
)
def test_edits_of_one_pair(reference: str, hypothesis: str, edits: int) -> None:
    counts = word_edits([reference], [hypothesis])
    assert (counts.edits, counts.length) == (edits, len(reference.split()))


def test_rate_is_over_all_words_not_a_mean_of_rates() -> None:
    assert word_error_rate(["a", "b c d"], ["x", "b c d"]) == 0.25


def test_words_for_a_silent_reference_are_insertions() -> None:
    assert word_edits(["", "a"], ["x y", "a"]).edits == 2
    assert word_error_rate([""], [""]) == 0.0


def test_characters() -> None:
    assert character_edits(["abc"], ["abd"]).rate == pytest.approx(1 / 3)


def test_metric_sums_before_it_divides() -> None:
    left, right = WordErrorRate(), WordErrorRate()
    left.update([{"reference": "a b", "hypothesis": "a"}])
    right.update([{"reference": "a b c d", "hypothesis": "a b c d"}])
    totals = [a + b for a, b in zip(left.totals(), right.totals(), strict=True)]
    assert left.compute(totals) == {"wer": pytest.approx(1 / 6)}


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ("Okay, the lamp: ON!", "okay the lamp on"),
        ("it's twenty-one  o\u2019clock", "it's twenty one o\u2019clock"),
        ("'quoted' rock 'n' roll", "quoted rock n roll"),
        ("\u0939\u093f\u0928\u094d\u0926\u0940 $5", "\u0939\u093f\u0928\u094d\u0926\u0940 5"),
        ("?!", ""),
        ("\u0130 a, b.", "i\u0307 a b"),
    ],
)
def test_what_is_heard_of_a_text(text: str, heard: str) -> None:
    assert spoken_words(text) == heard
    assert spoken_words(heard) == heard


def test_metric_of_other_keys_counts_the_rows_that_have_them() -> None:
    metric = WordErrorRate("reference", "asr", "asr_wer", normalize=spoken_words)
    metric.update([{"reference": "A, b", "asr": "a c"}, {"reference": "not recognized"}])
    assert metric.compute(metric.totals()) == {"asr_wer": 0.5}
