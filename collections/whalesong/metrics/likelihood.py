"""Negative log-likelihood, perplexity and bits of audio codes, over all and for each codebook."""

import math
from typing import Any

import torch
from torch import Tensor


class CodeLikelihood:
    """Likelihood of codes over batches; a `core.parts.Metric` over the "sums" of a loss.

    Args:
        num_codebooks: K.
    """

    def __init__(self, num_codebooks: int) -> None:
        self.num_codebooks = num_codebooks
        self.reset()

    def update(self, rows: list[dict[str, Any]]) -> None:
        """Add the sums of batches: "nll" in nats and "codes", (K,) each.

        Raises:
            ValueError: they are not of K codebooks.
        """
        for row in rows:
            for total, name in ((self._nll, "nll"), (self._codes, "codes")):
                values = row[name].detach().cpu().double()
                if values.shape != total.shape:
                    raise ValueError(
                        f"`{name}` must have the shape ({self.num_codebooks},), one value for each "
                        f"codebook, but has {tuple(values.shape)} instead."
                    )
                total += values

    def totals(self) -> list[float]:
        """Summed NLL of each codebook, then the number of codes of each."""
        return [*self._nll.tolist(), *self._codes.tolist()]

    def compute(self, totals: list[float]) -> dict[str, float]:
        """`nll` in nats, `ppl` and `bits` of a code, over all codes; `nll_0`, `ppl_0`, ... of each
        codebook."""
        nll, codes = totals[: self.num_codebooks], totals[self.num_codebooks :]
        mean = sum(nll) / max(sum(codes), 1.0)
        values = {"nll": mean, "ppl": _perplexity(mean), "bits": mean / math.log(2)}
        for index, (total, count) in enumerate(zip(nll, codes, strict=True)):
            mean = total / max(count, 1.0)
            values |= {f"nll_{index}": mean, f"ppl_{index}": _perplexity(mean)}
        return values

    def reset(self) -> None:
        """Forget all counts."""
        self._nll = torch.zeros(self.num_codebooks, dtype=torch.float64)
        self._codes = torch.zeros(self.num_codebooks, dtype=torch.float64)


def _perplexity(nll: float) -> float:
    """`exp(nll)`, infinite where it is beyond a float."""
    return math.exp(nll) if nll < 700 else math.inf


def unigram_likelihood(train: Tensor, test: Tensor) -> dict[str, float]:
    """The likelihood by how frequent each code is: a baseline that a model has to beat.

    Args:
        train: how often each code occurs in the training set, (K, V). Each is counted once more
            than that (Laplace), so that none is impossible.
        test: the same in what is scored.

    Returns:
        Values of `CodeLikelihood`.
    """
    smoothed = train.double() + 1
    log_probs = (smoothed / smoothed.sum(dim=1, keepdim=True)).log()
    nll = -(test * log_probs).sum(dim=1)
    return CodeLikelihood(len(train)).compute([*nll.tolist(), *test.sum(dim=1).tolist()])
