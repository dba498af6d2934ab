"""What is in a set of a text model: counts, lengths in tokens, and what training would refuse."""

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from whalesong.core.errors import DataError
from whalesong.data.conversation import Example, text_of
from whalesong.data.plan import BatchPlan
from whalesong.data.text_example import TextExample
from whalesong.textlm.collation import TextCollator, TokenExample

NUM_SHOWN = 3
"""Examples that are printed."""

SIDES = {"input_ids": ("target", "block_size"), "prompt_ids": ("prompt", "input_block_size")}
"""What an example is made of, and the size that it must fit into with its special tokens."""


@dataclass
class Survey:
    """What was seen of a set."""

    name: str
    lengths: dict[str, array] = field(default_factory=lambda: {side: array("l") for side in SIDES})
    """Tokens of each example without special ones, by the keys of `SIDES`; of refused ones, too."""
    written: int = 0
    """Examples that can be trained on."""
    refused: int = 0
    """Examples that cannot."""
    reasons: list[str] = field(default_factory=list)
    """Why, for the first of them."""
    kinds: set[tuple[str, ...]] = field(default_factory=set)
    """Fields that the written examples have beside their id."""
    shown: list[dict[str, Any]] = field(default_factory=list)
    """The first examples."""

    def refuse(self, reason: str, *, count: int = 1) -> None:
        """Count examples that cannot be trained on."""
        self.refused += count
        if count and len(self.reasons) < NUM_SHOWN:
            self.reasons.append(reason)

    def figures(self) -> dict[str, Any]:
        """Counts and lengths, ready for JSON."""
        lengths = {SIDES[side][0]: _spread(values) for side, values in self.lengths.items()}
        return {
            "examples": self.written,
            "refused": self.refused,
            "tokens": {name: spread for name, spread in lengths.items() if spread},
        }

    def item(self, folder: Path) -> dict[str, Any]:
        """The item of `input_cfg` that reads the written examples."""
        fields = next(iter(self.kinds), ())
        item = {"type": "text_pairs", "paths": str(folder / f"{self.name}.jsonl")}
        item |= {f"{name}_field": name for name in fields if name.endswith("_ids")}
        return item if "prompt" in fields else {**item, "prompt_field": None}


def survey_of(plan: BatchPlan, collator: TextCollator, file: Path) -> Survey:
    """Read a set once, in order, and write what can be trained on as JSON lines.

    Args:
        plan: of the set; its faults are left out and counted.
        collator: what training would load examples with.
        file: where to write; its name is that of the set.

    Raises:
        DataError: nothing can be trained on, or the examples are of several kinds.
    """
    survey, path = Survey(file.stem), plan.path
    with file.open("w", encoding="utf-8") as lines:
        for row in _rows(_kept(plan, survey), collator, survey):
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    dropped = sum(plan.filters.dropped.values())
    survey.refuse(f"the filters leave out {plan.filters.summary()}.", count=dropped)
    survey.refuse(f"{plan.faults.total} cannot be read, see above.", count=plan.faults.total)
    if not survey.written:
        reason = survey.reasons[0] if survey.reasons else "it is empty."
        raise DataError(f"`{path}`: nothing can be trained on: {reason}")
    if len(survey.kinds) > 1:
        kinds = " and ".join(" with ".join(kind) for kind in sorted(survey.kinds))
        raise DataError(f"`{path}`: its examples must be of one kind, but there are {kinds}.")
    return survey


def _kept(plan: BatchPlan, survey: Survey) -> Iterator[Example]:
    """Every example once that the filters keep, whatever the weights of its source."""
    for source in plan.sources:
        for example in source.iterate(0, shuffle=False):
            try:
                if plan.filters.keeps(example):
                    yield example
            except DataError as error:  # its tokens cannot be counted
                survey.refuse(str(error))


def _rows(
    examples: Iterator[Example], collator: TextCollator, survey: Survey
) -> Iterator[dict[str, Any]]:
    """The rows to write; everything is counted in the survey."""
    for example in examples:
        try:
            tokens = _checked(example, collator)
        except DataError as error:
            survey.refuse(str(error))
            tokens = None
        _measure(example, tokens, collator, survey)
        if tokens is not None:
            row = _row(text_of(example))
            survey.written += 1
            survey.kinds.add(tuple(key for key in row if key != "id"))
            if len(survey.shown) < NUM_SHOWN:
                survey.shown.append(row)
            yield row


def _checked(example: Example, collator: TextCollator) -> TokenExample:
    """The tokens of an example as training would get them."""
    tokens = collator.load(example)
    if not hasattr(collator.collate, "load"):
        collator([tokens])  # parts without a `load` refuse an example when they collate it
    return tokens


def _measure(
    example: Example, tokens: TokenExample | None, collator: TextCollator, survey: Survey
) -> None:
    if tokens is None:
        try:
            tokens = collator.tokenized(example)
        except DataError:  # it has no tokens at all
            return
    for side, lengths in survey.lengths.items():
        if side in tokens:
            lengths.append(len(tokens[side]))


def _row(example: TextExample) -> dict[str, Any]:
    """An example as a line of `text_pairs`."""
    sides = {
        "prompt": example.prompt, "prompt_ids": example.prompt_ids,
        "text": example.text or None, "input_ids": example.input_ids,
    }  # fmt: skip
    given = {key: value for key, value in sides.items() if value is not None}
    if "prompt_ids" in given:
        given.pop("prompt", None)
    if "input_ids" in given:
        given.pop("text", None)
    return {"id": example.id, **given}


def _spread(lengths: array) -> dict[str, int]:
    """Least, median, 99th percentile and greatest length."""
    if not lengths:
        return {}
    values = np.percentile(np.asarray(lengths), [0, 50, 99, 100], method="higher")
    return dict(zip(("min", "median", "p99", "max"), map(int, values), strict=True))


def draw_lengths(surveys: Sequence[Survey], sizes: Mapping[str, int], path: Path) -> None:
    """Draw how many examples have how many tokens, and the sizes that they must fit into."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sides = [side for side in SIDES if any(survey.lengths[side] for survey in surveys)]
    figure, row = pyplot.subplots(1, len(sides), figsize=(5 * len(sides), 3.6), squeeze=False)
    for axes, side in zip(row[0], sides, strict=True):
        name, key = SIDES[side]
        longest = max(max(survey.lengths[side], default=0) for survey in surveys)
        bins = np.arange(0, longest + 2, max(1, longest // 50)) - 0.5
        for survey in surveys:
            axes.hist(survey.lengths[side], bins=bins, label=survey.name, alpha=0.6, log=True)
        axes.axvline(sizes[key], linestyle="--", color="black", label=f"{key} {sizes[key]}")
        axes.set(xlabel=f"tokens of a {name}", ylabel="examples")
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
