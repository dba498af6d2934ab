"""The music demo's report: curves, values, and players with spectrograms beside captions."""

import html
import json
from pathlib import Path

from whalesong.core.atomic import atomic_path
from whalesong.demos.report import STYLE, Panel, draw_curves, player, read_curves

LOSSES = {"loss": "training loss", "val_loss": "validation loss"}
CODEBOOKS = {f"val_nll_{index}": f"codebook {index}" for index in range(4)}
VERSIONS = ("text", "prompted", "prompt", "real")
"""Endings of an example's files, in the order of the table's columns."""


def write_report(folder: Path, *, logs: Path) -> None:
    """Write `curves.png` and `report.html`.

    Args:
        folder: the demo's folder, with `test.jsonl`, `summary.txt` and `examples/`.
        logs: exp_manager's log folder with TensorBoard's event files.
    """
    panels = [
        Panel(read_curves(logs, LOSSES), "cross-entropy per code (nats)"),
        Panel(read_curves(logs, CODEBOOKS), "validation cross-entropy (nats)"),
    ]
    draw_curves(panels, folder / "curves.png")
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    count = len(list((folder / "examples").glob("*_text.wav")))
    page = PAGE.format(
        style=STYLE,
        summary=html.escape((folder / "summary.txt").read_text()),
        examples="\n".join(_example(number, row) for number, row in enumerate(rows[:count], 1)),
        rows="\n".join(map(_measured, rows)),
    )
    with atomic_path(folder / "report.html") as path:
        path.write_text(page, encoding="utf-8")


def _example(number: int, row: dict[str, object]) -> str:
    cells = []
    for name in VERSIONS:
        stem = f"examples/{number:02d}_{name}"
        cells.append(f'{player(f"{stem}.wav")}<br><img src="{stem}.png" alt="spectrogram">')
    caption = html.escape(str(row["caption"]))
    return f"<tr><td>{caption}</td><td>{'</td><td>'.join(cells)}</td></tr>"


def _measured(row: dict[str, dict[str, str | None]]) -> str:
    cells = [html.escape(str(row["caption"]))]
    for kind in ("tempo", "register"):
        asked, measured = row["asked"][kind], row["measured"][kind]
        mark = "" if asked in (None, measured) else " class=wrong"
        cells += [f"<td>{asked or '-'}</td><td{mark}>{measured or '-'}</td>"]
    return f"<tr><td>{cells[0]}</td>{''.join(cells[1:])}</tr>"


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Whalesong: text to music demo</title>
<style>{style}
body{{max-width:100rem}}
td img{{width:16rem}}
.wrong{{color:#b00}}</style>
<h1>Text to music on synthesized loops</h1>
<pre>{summary}</pre>
<img src="curves.png" alt="losses over training steps">
<h2>Captions that training never saw</h2>
<table><tr><th>caption</th><th>played from the text</th><th>with an audio prompt</th>
<th>that prompt</th><th>a real loop of this caption, through the codec</th></tr>
{examples}
</table>
<h2>All of them, measured</h2>
<table><tr><th>caption</th><th>tempo</th><th>measured</th><th>register</th><th>measured</th></tr>
{rows}
</table></html>
"""
