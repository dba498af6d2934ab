"""BLEU of generated text, from counts that can be summed over batches and ranks."""

from collections.abc import Callable
from typing import Any

from sacrebleu.metrics.bleu import BLEU, MAX_NGRAM_ORDER


class Bleu:
    """Corpus BLEU over rows, exactly sacrebleu's; a `core.parts.Metric`.

    Args:
        reference_key: key of a row's reference.
        hypothesis_key: key of what was generated; rows without it are passed over.
        name: of the value.
        normalize: applied to both texts before.
    """

    def __init__(
        self,
        reference_key: str = "reference",
        hypothesis_key: str = "hypothesis",
        name: str = "bleu",
        *,
        normalize: Callable[[str], str] = str,
    ) -> None:
        self.keys = (reference_key, hypothesis_key)
        self.name = name
        self.normalize = normalize
        self.reset()

    def update(self, rows: list[dict[str, Any]]) -> None:
        """Add the n-grams of these rows."""
        pairs = [
            [self.normalize(row[key]) for key in self.keys] for row in rows if self.keys[1] in row
        ]
        if not pairs:
            return
        references, hypotheses = zip(*pairs, strict=True)
        score = BLEU(force=True).corpus_score(hypotheses, [references])
        counts = (score.sys_len, score.ref_len, *score.counts, *score.totals)
        self._counts = [total + new for total, new in zip(self._counts, counts, strict=True)]

    def totals(self) -> list[float]:
        """`[words, reference words, *matches by order, *n-grams by order]`."""
        return [float(count) for count in self._counts]

    def compute(self, totals: list[float]) -> dict[str, float]:
        """`{name: 0 ... 100}` from summed totals; nothing where no row was counted."""
        if not any(totals):
            return {}
        words, reference_words, *counts = (int(total) for total in totals)
        score = BLEU.compute_bleu(
            correct=counts[:MAX_NGRAM_ORDER],
            total=counts[MAX_NGRAM_ORDER:],
            sys_len=words,
            ref_len=reference_words,
            smooth_method="exp",
        )
        return {self.name: score.score}

    def reset(self) -> None:
        """Forget all counts."""
        self._counts = [0] * (2 + 2 * MAX_NGRAM_ORDER)
