"""Counts of an evaluation add up over ranks, also where a rank had no batch."""

import math

import pytest
import torch

from whalesong.core.training.totals import EvaluationTotals
from whalesong.metrics.likelihood import CodeLikelihood
from whalesong.metrics.text import WordErrorRate

PROTOTYPE = CodeLikelihood(2)


def totals() -> EvaluationTotals:
    return EvaluationTotals({"wer": WordErrorRate()}, loss_metrics={"likelihood": PROTOTYPE})


def outputs(nll: list[float], codes: list[float]) -> dict:
    sums = {"nll": torch.tensor(nll), "codes": torch.tensor(codes)}
    loss = torch.tensor(sum(nll) / sum(codes))
    return {"loss": loss, "num_targets": torch.tensor(sum(codes)), "sums": sums}


def test_sums_of_the_loss_are_divided_after_all_ranks_are_added() -> None:
    first, second, idle = totals(), totals(), totals()
    first.add_loss(outputs([8.0, 2.0], [4.0, 4.0]))
    second.add_loss(outputs([1.0, 1.0], [1.0, 2.0]))
    second.add_rows([{"reference": "a b", "hypothesis": "a c"}])
    columns = zip(first.counts(), second.counts(), idle.counts(), strict=True)
    values = idle.compute([sum(column) for column in columns])
    assert values["loss"] == pytest.approx(12 / 11)
    assert values["nll"] == pytest.approx(12 / 11)
    assert values["nll_0"] == pytest.approx(9 / 5)
    assert values["ppl_1"] == pytest.approx(math.exp(3 / 6))
    assert values["wer"] == 0.5


def test_each_set_counts_for_itself() -> None:
    totals().add_loss(outputs([8.0, 2.0], [4.0, 4.0]))
    assert set(totals().counts()) == {0.0}
    assert set(PROTOTYPE.totals()) == {0.0}
