"""Accuracy by stage and quantizer: every code weighs the same, in any division into batches."""

import pytest
import torch
from torch import Tensor

from whalesong.metrics.stage_accuracy import StageAccuracy, top_counts

K, V = 4, 23


def scored(num_codes: list[int], *, seed: int) -> dict[str, Tensor]:
    """Sums of random logits, as a loss returns them; and the logits of each quantizer."""
    generator = torch.Generator().manual_seed(seed)
    sums = {name: torch.zeros(K) for name in ("nll", "top1", "top10", "codes")}
    for quantizer, count in enumerate(num_codes):
        logits = torch.randn(count, V, generator=generator)
        labels = torch.randint(V, (count,), generator=generator)
        sums["nll"][quantizer] = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        sums["top1"][quantizer], sums["top10"][quantizer] = top_counts(logits, labels)
        sums["codes"][quantizer] = count
    return sums


def test_top_counts_are_those_of_a_full_sort() -> None:
    logits, labels = torch.randn(200, V), torch.randint(V, (200,))
    ranks = logits.argsort(dim=1, descending=True).argsort(dim=1)[torch.arange(200), labels]
    top1, top3 = top_counts(logits, labels, 3)
    assert (int(top1), int(top3)) == (int((ranks == 0).sum()), int((ranks < 3).sum()))
    assert [int(count) for count in top_counts(logits[:, :5], labels % 5)][1] == 200
    assert [int(count) for count in top_counts(logits[:0], labels[:0])] == [0, 0]


@pytest.mark.parametrize("ar_quantizers", [1, 2])
def test_every_code_of_a_stage_weighs_the_same(ar_quantizers: int) -> None:
    batches = [scored([9, 4, 7, 2], seed=1), scored([1, 5, 1, 12], seed=2)]
    metric, first, second = (StageAccuracy(K, ar_quantizers) for _ in range(3))
    metric.update(batches)
    first.update(batches[:1])
    second.update(batches[1:])
    ranks = [a + b for a, b in zip(first.totals(), second.totals(), strict=True)]
    values = metric.compute(metric.totals())
    assert values == metric.compute(ranks)
    total = {name: sum(batch[name] for batch in batches) for name in batches[0]}
    for stage, part in (("ar", slice(ar_quantizers)), ("nar", slice(ar_quantizers, None))):
        codes = total["codes"][part].sum()
        for key, name in (("loss", "nll"), ("top1", "top1"), ("top10", "top10")):
            assert values[f"{stage}_{key}"] == pytest.approx(float(total[name][part].sum() / codes))
    assert values["nar_top1_q3"] == pytest.approx(float(total["top1"][3] / 14))
    assert values["ar_top10_q0"] == pytest.approx(float(total["top10"][0] / 10))
    assert values["nll_q2"] == pytest.approx(float(total["nll"][2] / 8))
    assert values["ArTop10Accuracy"] == values["ar_top10"]
    assert values["NarTop10Accuracy"] == values["nar_top10"]


def test_a_stage_that_is_not_scored_has_no_values() -> None:
    metric = StageAccuracy(K)
    metric.update([scored([6, 0, 0, 0], seed=3)])
    values = metric.compute(metric.totals())
    assert set(values) == {
        "ar_loss", "ar_top1", "ar_top10", "nll_q0", "ar_top1_q0", "ar_top10_q0", "ArTop10Accuracy"
    }  # fmt: skip
    metric.reset()
    assert metric.compute(metric.totals()) == {}


def test_a_model_without_a_second_stage() -> None:
    metric = StageAccuracy(K, K)
    metric.update([scored([6, 6, 6, 6], seed=4)])
    assert not any(key.lower().startswith("nar") for key in metric.compute(metric.totals()))


def test_sums_of_other_quantizers_are_refused() -> None:
    row = {name: torch.zeros(K + 1) for name in ("nll", "top1", "top10", "codes")}
    with pytest.raises(ValueError, match=r"`nll` must have the shape \(4,\), one value for each"):
        StageAccuracy(K).update([row])
