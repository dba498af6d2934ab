"""Perplexity of text: how many tokens a model hesitates between."""

import math
from typing import Any


class Perplexity:
    """The exponential of the mean negative log-likelihood, or of a bound of it.

    A `core.parts.Metric` over the "sums" of a loss.
    """

    def __init__(self) -> None:
        self.reset()

    def update(self, rows: list[dict[str, Any]]) -> None:
        """Add the sums of batches: "nll" in nats, and "num_tokens"."""
        for row in rows:
            self._nll += float(row["nll"])
            self._num_tokens += float(row["num_tokens"])

    def totals(self) -> list[float]:
        """Summed negative log-likelihood, tokens."""
        return [self._nll, self._num_tokens]

    def compute(self, totals: list[float]) -> dict[str, float]:
        """`perplexity`; 1 without a token, infinite where it is beyond a float."""
        nll, num_tokens = totals
        mean = nll / max(num_tokens, 1.0)
        return {"perplexity": math.exp(mean) if mean < 700 else math.inf}

    def reset(self) -> None:
        """Forget all counts."""
        self._nll = self._num_tokens = 0.0
