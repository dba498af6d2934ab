"""Error rates of generated text against references."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jiwer

EDITS = ("substitutions", "deletions", "insertions")
APOSTROPHES = "'\u2019"


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


def spoken_words(text: str) -> str:
    """What is heard of a text: lower case, no punctuation but apostrophes inside of words."""
    text = text.lower()
    kept = [" " if _is_silent(text, index) else sign for index, sign in enumerate(text)]
    return " ".join("".join(kept).split())


def _is_silent(text: str, index: int) -> bool:
    if text[index] in APOSTROPHES:
        return not (text[index - 1 : index].isalnum() and text[index + 1 : index + 2].isalnum())
    return unicodedata.category(text[index])[0] in "PS"


class WordErrorRate:
    """Word error rate over rows; a `core.parts.Metric`.

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
        name: str = "wer",
        *,
        normalize: Callable[[str], str] = str,
    ) -> None:
        self.keys = (reference_key, hypothesis_key)
        self.name = name
        self.normalize = normalize
        self.counts = EditCounts()

    def update(self, rows: list[dict[str, Any]]) -> None:
        """Add the edits of these rows."""
        pairs = [[row[key] for key in self.keys] for row in rows if self.keys[1] in row]
        references, hypotheses = ([self.normalize(pair[side]) for pair in pairs] for side in (0, 1))
        self.counts += word_edits(references, hypotheses)

    def totals(self) -> list[float]:
        """`[edits, reference words]`."""
        return [float(self.counts.edits), float(self.counts.length)]

    def compute(self, totals: list[float]) -> dict[str, float]:
        """`{"wer": ...}` from summed totals."""
        edits, length = totals
        return {self.name: edits / max(length, 1.0)}

    def reset(self) -> None:
        """Forget all counts."""
        self.counts = EditCounts()
