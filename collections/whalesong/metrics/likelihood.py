"""Negative log-likelihood, perplexity and bits of audio codes, over all and for each codebook."""

import math
from typing import Any

import torch
from torch import Tensor, nn

IGNORED = -100


def code_nll(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Sums that `CodeLikelihood.update` takes, computed in fp32.

    Args:
        logits: scores of the codes, (B, K, F, V).
        labels: the codes, (B, K, F); -100 where none is counted.

    Returns:
        "nll", the summed negative log-likelihood in nats, and "codes", how many were counted, both
        (K,).
    """
    nll = nn.functional.cross_entropy(
        logits.float().flatten(0, 2), labels.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(labels.shape)
    return {"nll": nll.sum(dim=(0, 2)), "codes": (labels != IGNORED).sum(dim=(0, 2))}


def unigram_nll(train: Tensor, test: Tensor, *, codebook_size: int) -> dict[str, Tensor]:
    """The sums of a model that knows only how frequent each code is: a baseline to be beaten.

    Args:
        train: codes to count, (K, M); -100 is left out. Every code is counted once more than it
            occurs (Laplace), so that none is impossible.
        test: codes to score, (K, F), likewise.
        codebook_size: number of codes in a codebook.

    Returns:
        "nll" and "codes", as in `code_nll`.
    """
    counts = torch.stack(
        [torch.bincount(row[row != IGNORED], minlength=codebook_size) + 1 for row in train]
    )
    log_probs = (counts / counts.sum(dim=1, keepdim=True)).log()  # (K, V)
    logits = log_probs[:, None].expand(-1, test.shape[1], -1)  # (K, F, V)
    return code_nll(logits[None], test[None])


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
