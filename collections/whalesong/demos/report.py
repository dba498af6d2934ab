"""The demo's report: one page with curves, word error rates and ten transcripts to listen to."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from whalesong.core.atomic import atomic_path

LOSSES = {"loss": "training loss", "val_loss": "validation loss"}
ERRORS = {"val_wer": "validation WER"}
FEW_POINTS = 20

Curve = tuple[list[int], list[float]]
"""Steps and values."""


@dataclass(frozen=True)
class Panel:
    """Curves over training steps in one picture, and what their values are."""

    curves: dict[str, Curve]
    """By the name in the legend."""
    label: str
    from_zero: bool = False


def write_report(folder: Path, *, logs: Path) -> None:
    """Write `curves.png` and `report.html`.

    Args:
        folder: the demo's folder, with `test.jsonl`, `summary.txt` and `examples/`.
        logs: exp_manager's log folder with TensorBoard's event files.
    """
    errors = {
        name: (steps, [100 * rate for rate in rates])
        for name, (steps, rates) in read_curves(logs, ERRORS).items()
    }
    panels = [
        Panel(read_curves(logs, LOSSES), "cross-entropy per token (nats)"),
        Panel(errors, "validation WER (%)", from_zero=True),
    ]
    draw_curves(panels, folder / "curves.png")
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    page = PAGE.format(
        style=STYLE,
        summary=html.escape((folder / "summary.txt").read_text()),
        rows="\n".join(_table_row(folder, number, row) for number, row in enumerate(rows[:10], 1)),
    )
    with atomic_path(folder / "report.html") as path:
        path.write_text(page, encoding="utf-8")


def read_curves(logs: Path, tags: Mapping[str, str]) -> dict[str, Curve]:
    """The curves of TensorBoard tags, over all runs that continued each other.

    Args:
        logs: folder of event files.
        tags: tag -> name of its curve.
    """
    events = EventAccumulator(str(logs))
    events.Reload()
    known = set(events.Tags()["scalars"])
    curves = {}
    for tag, name in tags.items():
        points = (
            sorted({event.step: event.value for event in events.Scalars(tag)}.items())
            if tag in known
            else []
        )
        curves[name] = ([step for step, _ in points], [value for _, value in points])
    return curves


def draw_curves(panels: Sequence[Panel], path: Path) -> None:
    """Draw the panels side by side; a curve of few points gets markers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, row = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 3.6), squeeze=False)
    for axes, panel in zip(row[0], panels, strict=True):
        for name, (steps, values) in panel.curves.items():
            axes.plot(steps, values, label=name, marker="o" if len(steps) <= FEW_POINTS else None)
        axes.set(xlabel="step", ylabel=panel.label)
        if panel.from_zero:
            axes.set_ylim(0, None)
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def player(wav: str) -> str:
    """HTML of a player with a link to the file."""
    return f'<audio controls preload="none" src="{wav}"></audio> <a href="{wav}">{wav}</a>'


def _table_row(folder: Path, number: int, row: dict[str, str]) -> str:
    wav = f"examples/{number:02d}.wav"
    words = "</td><td>".join(html.escape(row[key]) for key in ("reference", "hypothesis"))
    return f"<tr><td>{player(wav)}</td><td>{words}</td></tr>"


STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse}
td,th{padding:.3rem .8rem;border-bottom:1px solid #ddd;text-align:left}
img{max-width:100%}"""
"""What the pages of all demos look like."""

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Whalesong: SALM demo</title>
<style>{style}</style>
<h1>SALM on spoken commands</h1>
<pre>{summary}</pre>
<img src="curves.png" alt="loss and word error rate over training steps">
<h2>Ten utterances of voices that training never heard</h2>
<table><tr><th>audio</th><th>said</th><th>transcribed</th></tr>
{rows}
</table></html>
"""
