"""Perplexity over batches of different sizes."""

import math

import pytest
import torch

from whalesong.metrics.perplexity import Perplexity


def test_perplexity_weighs_tokens_not_batches() -> None:
    metric = Perplexity()
    metric.update([{"nll": torch.tensor(3.0), "num_tokens": torch.tensor(1)}])
    metric.update([{"nll": torch.tensor(0.0), "num_tokens": torch.tensor(2)}])
    assert metric.compute(metric.totals())["perplexity"] == pytest.approx(math.e)
    doubled = [2 * total for total in metric.totals()]
    assert metric.compute(doubled) == metric.compute(metric.totals())


def test_without_tokens_or_without_hope_it_is_a_number() -> None:
    metric = Perplexity()
    assert metric.compute(metric.totals()) == {"perplexity": 1.0}
    metric.update([{"nll": 1e4, "num_tokens": 1}])
    assert metric.compute(metric.totals()) == {"perplexity": math.inf}
    metric.reset()
    assert metric.totals() == [0.0, 0.0]
