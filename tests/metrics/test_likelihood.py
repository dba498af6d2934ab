"""Likelihood of codes: sums over batches and ranks, perplexity, the unigram baseline."""

import math

import pytest
import torch

from whalesong.metrics.likelihood import CodeLikelihood, unigram_likelihood

K, V = 3, 7


def batch(rows: int, frames: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, K, frames, V, generator=generator)
    labels = torch.randint(V, (rows, K, frames), generator=generator)
    labels[0, :, frames // 2 :] = -100
    return logits, labels


def code_nll(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a loss returns as "sums"."""
    scores = logits.permute(0, 3, 1, 2)
    nll = torch.nn.functional.cross_entropy(scores, labels, reduction="none")
    return {"nll": nll.sum(dim=(0, 2)), "codes": (labels >= 0).sum(dim=(0, 2))}


def test_ranks_and_batches_of_any_size_add_up() -> None:
    batches = [batch(2, 6, seed=1), batch(1, 9, seed=2), batch(4, 2, seed=3)]
    whole, first, second = CodeLikelihood(K), CodeLikelihood(K), CodeLikelihood(K)
    for index, (logits, labels) in enumerate(batches):
        row = code_nll(logits, labels)
        whole.update([row])
        (first if index else second).update([row])
    summed = [a + b for a, b in zip(first.totals(), second.totals(), strict=True)]
    values = whole.compute(summed)
    assert values == pytest.approx(whole.compute(whole.totals()))
    nll = sum(float(code_nll(*b)["nll"].sum()) for b in batches)
    codes = sum(int((labels >= 0).sum()) for _, labels in batches)
    assert values["nll"] == pytest.approx(nll / codes, rel=1e-6)
    assert values["ppl"] == pytest.approx(math.exp(nll / codes), rel=1e-6)
    assert values["bits"] == pytest.approx(nll / codes / math.log(2), rel=1e-6)
    whole.reset()
    assert set(whole.totals()) == {0.0}
    assert whole.compute(whole.totals())["nll"] == 0.0


def test_uniform_scores_have_the_codebook_size_as_perplexity() -> None:
    _, labels = batch(2, 6, seed=4)
    metric = CodeLikelihood(K)
    metric.update([code_nll(torch.zeros(2, K, 6, V), labels)])
    values = metric.compute(metric.totals())
    assert values["ppl"] == pytest.approx(V, rel=1e-6)
    assert [values[f"ppl_{k}"] for k in range(K)] == pytest.approx([V] * K, rel=1e-6)


def test_sums_of_other_codebooks_are_refused() -> None:
    row = {"nll": torch.zeros(K + 1), "codes": torch.zeros(K + 1)}
    with pytest.raises(ValueError, match=r"`nll` must have the shape \(3,\)"):
        CodeLikelihood(K).update([row])


def test_unigram_baseline_is_the_entropy_of_frequent_codes() -> None:
    train = torch.tensor([[3, 1, 0, 0], [0, 0, 5, 0]])
    test = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0]])
    values = unigram_likelihood(train, test)
    assert values["nll_0"] == pytest.approx((-math.log(4 / 8) - math.log(2 / 8)) / 2, rel=1e-6)
    assert values["nll_1"] == pytest.approx(-math.log(6 / 9), rel=1e-6)


def test_unseen_codes_are_improbable_but_possible() -> None:
    train, test = torch.tensor([[100, 0, 0, 0]]), torch.tensor([[0, 0, 0, 1]])
    assert unigram_likelihood(train, test)["nll"] == pytest.approx(math.log(104), rel=1e-6)
