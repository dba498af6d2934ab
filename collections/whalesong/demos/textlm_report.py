"""The text demo's report: one table, verdicts, curves, and answers that fill step by step."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whalesong.core.atomic import atomic_path
from whalesong.demos.report import STYLE, Curve, read_curves
from whalesong.demos.textlm_picture import draw_picture

PUBLISHED = {
    "arlm": (32.3, 75.0, 23.0),
    "ilm": (100.0, 100.0, 99.1),
    "mlm": (100.0, 36.5, 21.0),
    "mdlm": (100.0, 36.5, 21.0),
}
"""Exact match in %, easy, medium and hard, of 85 million parameters (arXiv 2505.05755, table 1).

Its masked diffusion model stands beside both mlm and mdlm, which unmask in its way.
"""

HEADINGS = ("exact", "token", "first", "loss", "steps", "CPU s", "1000 par.")
PUBLISHED_HEADINGS = ("easy", "medium", "hard")
WIDTH = 10

NOTES = """\
exact, token: answers that are right as a whole, tokens that are right; first: answers whose first
  edge is right. In %, of graphs that training never saw.
loss: nats, each model's own: per token (arlm), per masked token (mlm), of where and what to insert
  and whether to stop (ilm), a bound per token (mdlm). They do not compare.
published: arXiv 2505.05755, about 85 million parameters, star_easy, star_medium and star_hard; its
  masked diffusion model stands beside mlm and mdlm (its 100 on easy is quoted second-hand)."""

Values = Mapping[str, Any]
"""What was measured of one model."""


def write_report(
    folder: Path,
    *,
    task: str,
    models: Sequence[str],
    bars: Mapping[str, tuple[float, float]],
) -> None:
    """Write `summary.txt`, `steps.txt`, `picture.png` and `report.html`.

    Args:
        folder: the demo's folder, with `<model>.json` of each model and its log folder.
        task: the data set.
        models: in the order of the rows.
        bars: for each model that has some, between which shares its exact matches have to be.
    """
    values = {name: read_values(folder, name) for name in models}
    curves = {name: exact_match_curve(folder / name) for name in models}
    draw_picture(values, curves, folder / "picture.png")
    summary = summary_of(values, task=task, bars=bars)
    steps = "\n".join(steps_of(name, values[name]["sample"]) for name in models)
    page = PAGE.format(
        style=STYLE, task=task, summary=html.escape(summary), steps=html.escape(steps)
    )
    texts = {"summary.txt": summary, "steps.txt": steps, "report.html": page}
    for name, text in texts.items():
        with atomic_path(folder / name) as path:
            path.write_text(text, encoding="utf-8")


def read_values(folder: Path, name: str) -> Values:
    """What `textlm_answer` measured, and what the training took."""
    measured = json.loads((folder / f"{name}.json").read_text())
    logs = folder / name
    seconds = float((logs / "cpu_seconds.txt").read_text())
    return {**measured, "cpu_seconds": seconds, "steps": trained_steps(logs)}


def trained_steps(logs: Path) -> int:
    """Training steps, as the last checkpoint is named after them."""
    (last,) = logs.glob("checkpoints/step-*-last.ckpt")
    return int(last.name.split("-")[1])


def exact_match_curve(logs: Path) -> Curve:
    """Validation's exact match over steps, in %."""
    steps, shares = read_curves(logs, {"val_exact_match": "exact match"})["exact match"]
    return [step + 1 for step in steps], [100 * share for share in shares]  # steps count from 0


def summary_of(
    values: Mapping[str, Values], *, task: str, bars: Mapping[str, tuple[float, float]]
) -> str:
    """The table, what its columns are, what arlm gets wrong, and whether the bars are passed."""
    count = next(iter(values.values()))["num_graphs"]
    columns = "".join(f"{heading:>{WIDTH}}" for heading in HEADINGS)
    published = "".join(f"{heading:>8}" for heading in PUBLISHED_HEADINGS)
    lines = [
        f"{count} graphs of {task}",
        f"{'':6}{columns}   |{published}  published",
        *(f"{name:6}{_row(found, PUBLISHED[name])}" for name, found in values.items()),
        NOTES,
        arm_choice(values["arlm"]),
        *(verdict(name, values[name]["exact_match"], bar) for name, bar in bars.items()),
    ]
    return "\n".join([*lines, ""])


def arm_choice(values: Values) -> str:
    """What the answers of arlm amount to."""
    shares = {key: f"{100 * values['outcomes'][key]:.1f} %" for key in values["outcomes"]}
    return (
        f"arlm: {shares['right']} right; {shares['other arm']} begin another arm, follow it, and "
        f"end at its end or at the goal; {shares['no arm']} else.\n"
        "  It names the first node behind the centre before it has looked ahead, so 1/degree (1/3\n"
        "  with three arms) is its ceiling, and the choice of the arm its error."
    )


def verdict(name: str, share: float, bar: tuple[float, float]) -> str:
    """Whether a model passes its bar, in words."""
    low, high = bar
    wanted = f"at least {low:.2f}" if high >= 1 else f"{low:.2f} to {high:.2f}"
    passed = "passed" if low <= share <= high else "not passed"
    return f"{name} exact match {share:.3f}; bar {wanted}: {passed}."


def steps_of(name: str, sample: Mapping[str, Any]) -> str:
    """How an answer came about: one line a step."""
    lines = [f"{name}: {sample['prompt']}", f"{'truth':>8}  {sample['truth']}"]
    lines += [f"{step:8}  {' '.join(state)}" for step, state in enumerate(sample["states"])]
    return "\n".join([*lines, ""])


def _row(values: Values, published: Sequence[float]) -> str:
    shares = (values["exact_match"], values["token_accuracy"], values["outcomes"]["first hop"])
    cells = [f"{100 * share:.1f}" for share in shares]
    cells += [f"{values['loss']:.3f}", f"{values['steps']}", f"{values['cpu_seconds']:.0f}"]
    cells += [f"{values['num_parameters'] / 1000:.0f}"]
    row = "".join(f"{cell:>{WIDTH}}" for cell in cells)
    return f"{row}   |{''.join(f'{share:8.1f}' for share in published)}"


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Whalesong: text models</title>
<style>{style}
body{{max-width:90rem}}</style>
<h1>Four text models on {task}</h1>
<pre>{summary}</pre>
<img src="picture.png" alt="exact match over steps, a graph, and answers step by step">
<h2>The same graph, step by step</h2>
<pre>{steps}</pre></html>
"""
