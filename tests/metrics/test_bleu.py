"""BLEU of sums equals sacrebleu's of the whole."""

import random

import pytest
import sacrebleu

from whalesong.metrics.bleu import Bleu
from whalesong.metrics.text import spoken_words

WORDS = "the lamp in kitchen is on three plus four seven okay, Okay. it's".split()


def rows(seed: int, count: int) -> list[dict[str, str]]:
    """References of up to nine words, and hypotheses with some of them wrong."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        reference = [draw.choice(WORDS) for _ in range(draw.randint(0, 9))]
        hypothesis = [word if draw.random() < 0.8 else draw.choice(WORDS) for word in reference]
        hypothesis = hypothesis[draw.randint(0, 2) :]
        made.append({"reference": " ".join(reference), "hypothesis": " ".join(hypothesis)})
    return made


def scored(parts: list[list[dict[str, str]]]) -> dict[str, float]:
    """BLEU of parts that are counted apart, as batches of ranks are."""
    metrics = [Bleu() for _ in parts]
    for metric, part in zip(metrics, parts, strict=True):
        for begin in range(0, len(part), 3):
            metric.update(part[begin : begin + 3])
    totals = [sum(column) for column in zip(*(m.totals() for m in metrics), strict=True)]
    return metrics[0].compute(totals)


@pytest.mark.parametrize(("seed", "count"), [(0, 1), (1, 2), (2, 7), (3, 40)])
@pytest.mark.parametrize("num_ranks", [1, 3])
def test_any_split_of_the_rows_gives_the_bleu_of_all(seed: int, count: int, num_ranks: int) -> None:
    made = rows(seed, count)
    expected = sacrebleu.corpus_bleu(
        [row["hypothesis"] for row in made], [[row["reference"] for row in made]]
    )
    found = scored([made[rank::num_ranks] for rank in range(num_ranks)])
    assert found.get("bleu", 0.0) == pytest.approx(expected.score, abs=1e-12)


def test_nothing_said_and_nothing_counted() -> None:
    assert scored([[]]) == {}
    assert scored([[{"reference": "okay", "hypothesis": ""}]]) == {"bleu": 0.0}


def test_what_is_recognized_is_compared_as_it_is_heard() -> None:
    metric = Bleu("reference", "asr_hypothesis", "asr_bleu", normalize=spoken_words)
    said = {
        "reference": "Okay, the lamp: it's ON now.",
        "asr_hypothesis": "okay the lamp it's on now",
    }
    metric.update([said, {"reference": "not recognized"}])
    assert metric.compute(metric.totals()) == {"asr_bleu": pytest.approx(100)}
    metric.reset()
    assert metric.totals() == [0] * 10
