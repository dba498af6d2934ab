"""The AudioLM demo's report: curves, values, and players with spectrograms beside each other."""

import html
import json
from collections.abc import Sequence
from pathlib import Path

from whalesong.core.atomic import atomic_path
from whalesong.demos.audiolm_continue import ROWS
from whalesong.demos.report import STYLE, Panel, draw_curves, player, read_curves

LOSSES = {"loss": "training loss", "val_loss": "validation loss"}
HALVES = {
    "val_ar_top1": "quantizer 0 (AR)",
    **{f"val_nar_top1_q{index}": f"quantizer {index} (NAR)" for index in (1, 2, 3)},
}
VERSIONS = ("prompt", "continued", "real")
"""Endings of an example's files, in the order of the table's columns."""


def write_report(folder: Path, *, logs: Path) -> None:
    """Write `curves.png` and `report.html`.

    Args:
        folder: the demo's folder, with `values.json`, `summary.txt` and `examples/`.
        logs: exp_manager's log folder with TensorBoard's event files.

    Raises:
        RuntimeError: the training loss has not fallen.
    """
    first, last = training_loss(logs)
    panels = [
        Panel(read_curves(logs, LOSSES), "cross-entropy per code (nats)"),
        Panel(read_curves(logs, HALVES), "validation top-1 accuracy", from_zero=True),
    ]
    draw_curves(panels, folder / "curves.png")
    table = json.loads((folder / "values.json").read_text())["table"]
    count = len(list((folder / "examples").glob("*_continued.wav")))
    summary = (folder / "summary.txt").read_text()
    page = PAGE.format(
        style=STYLE,
        verdicts=html.escape("\n".join(summary.splitlines()[-2:])),
        losses=f"{first:.2f} to {last:.2f}",
        quantizers="".join(f"<th>{quantizer}</th>" for quantizer in range(len(table["top1"]))),
        rows="\n".join(_row(*ROWS[key], table[key]) for key in ROWS),
        examples="\n".join(map(_example, range(1, count + 1))),
    )
    with atomic_path(folder / "report.html") as path:
        path.write_text(page, encoding="utf-8")


def training_loss(logs: Path) -> tuple[float, float]:
    """The first and the last training loss that was logged.

    Raises:
        RuntimeError: it has not fallen.
    """
    _, values = read_curves(logs, LOSSES)["training loss"]
    if not values or values[-1] >= values[0]:
        raise RuntimeError(f"the training loss has not fallen: {values}")
    return values[0], values[-1]


def _row(label: str, meaning: str, shares: Sequence[float | None]) -> str:
    cells = ["-" if share is None else f"{100 * share:.1f}" for share in shares]
    numbers = "".join(f"<td>{cell}</td>" for cell in cells)
    return f"<tr><td>{html.escape(label)}</td>{numbers}<td>{html.escape(meaning)}</td></tr>"


def _example(number: int) -> str:
    cells = []
    for name in VERSIONS:
        stem = f"examples/{number:02d}_{name}"
        cells.append(f'{player(f"{stem}.wav")}<br><img src="{stem}.png" alt="spectrogram">')
    return f"<tr><td>{'</td><td>'.join(cells)}</td></tr>"


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Whalesong: AudioLM demo</title>
<style>{style}
body{{max-width:90rem}}
td img{{width:24rem}}</style>
<h1>AudioLM on looped melodies</h1>
<pre>{verdicts}
Training loss: from {losses} nats a code.</pre>
<img src="curves.png" alt="losses and accuracies over training steps">
<h2>Codes that are right, in %, by quantizer</h2>
<table><tr><th></th>{quantizers}<th>shows</th></tr>
{rows}
</table>
<h2>Melodies of motifs that training never heard</h2>
<table><tr><th>prompt</th><th>prompt, continued by the model</th>
<th>the real melody, through the codec</th></tr>
{examples}
</table></html>
"""
