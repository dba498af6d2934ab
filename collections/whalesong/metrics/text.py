"""Error rates of generated text against references."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jiwer

EDITS = ("substitutions", "deletions", "insertions")


@dataclass
class EditCounts:
    """Edits between references and hypotheses, in words or characters."""

    edits: int = 0
    length: int = 0

    @property
    def rate(self) -> float:
        """Edits per reference unit; edits of an empty reference count as one unit each."""
        return self.edits / max(self.length, 1)

    def __add__(self, other: "EditCounts") -> "EditCounts":
        return EditCounts(self.edits + other.edits, self.length + other.length)


def word_edits(references: Sequence[str], hypotheses: Sequence[str]) -> EditCounts:
    """Count word edits; upper and lower case and all other signs count as they are."""
    return _count(references, hypotheses, jiwer.process_words, str.split)


def character_edits(references: Sequence[str], hypotheses: Sequence[str]) -> EditCounts:
    """Count character edits."""
    return _count(references, hypotheses, jiwer.process_characters, list)


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Word error rate of all pairs together, 0.05 for 5 %."""
    return word_edits(references, hypotheses).rate


def _count(
    references: Sequence[str],
    hypotheses: Sequence[str],
    process: Callable[..., Any],
    split: Callable[[str], list[str]],
) -> EditCounts:
    counts = EditCounts()
    pairs = list(zip(references, hypotheses, strict=True))
    spoken = [(reference, hypothesis) for reference, hypothesis in pairs if reference.strip()]
    if spoken:
        output = process([r for r, _ in spoken], [h for _, h in spoken])
        edits = sum(getattr(output, kind) for kind in EDITS)
        counts += EditCounts(edits, output.hits + output.substitutions + output.deletions)
    # jiwer refuses empty references: everything said for one of them is inserted
    silent = [hypothesis for reference, hypothesis in pairs if not reference.strip()]
    return counts + EditCounts(sum(len(split(hypothesis)) for hypothesis in silent), 0)


class WordErrorRate:
    """Word error rate over rows with "reference" and "hypothesis"; a `core.parts.Metric`."""

    def __init__(self) -> None:
        self.counts = EditCounts()

    def update(self, rows: list[dict[str, Any]]) -> None:
        """Add the edits of these rows."""
        self.counts += word_edits(
            [row["reference"] for row in rows], [row["hypothesis"] for row in rows]
        )

    def totals(self) -> list[float]:
        """`[edits, reference words]`."""
        return [float(self.counts.edits), float(self.counts.length)]

    def compute(self, totals: list[float]) -> dict[str, float]:
        """`{"wer": ...}` from summed totals."""
        edits, length = totals
        return {"wer": edits / max(length, 1.0)}

    def reset(self) -> None:
        """Forget all counts."""
        self.counts = EditCounts()
