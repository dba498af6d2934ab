"""The duplex demo's report: curves, values, and conversations to listen to and to look at."""

import html
import json
from pathlib import Path
from typing import Any

from whalesong.core.atomic import atomic_path
from whalesong.demos.report import STYLE, Panel, draw_curves, player, read_curves

LOSSES = {"text_loss": "text, training", "val_text_loss": "text, validation"}
CODES = {"audio_loss": "codes, training", "val_audio_loss": "codes, validation"}
SCORES = {"val_bleu": "BLEU of the text", "val_asr_bleu": "BLEU of the audio by recognizer"}


def write_report(folder: Path, *, logs: Path) -> None:
    """Write `curves.png` and `report.html`.

    Args:
        folder: the demo's folder, with `values.json`, `test.jsonl`, `summary.txt` and `examples/`.
        logs: exp_manager's log folder with TensorBoard's event files.
    """
    panels = [
        Panel(read_curves(logs, LOSSES), "cross-entropy per frame (nats)"),
        Panel(read_curves(logs, CODES), "cross-entropy per code (nats)"),
        Panel(read_curves(logs, SCORES), "validation BLEU", from_zero=True),
    ]
    draw_curves(panels, folder / "curves.png")
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    known = {row["id"]: row for row in rows}
    chosen = json.loads((folder / "values.json").read_text())["examples"]
    page = PAGE.format(
        style=STYLE,
        summary=html.escape((folder / "summary.txt").read_text()),
        rows="\n".join(_example(n, known[name]) for n, name in enumerate(chosen, start=1)),
    )
    with atomic_path(folder / "report.html") as path:
        path.write_text(page, encoding="utf-8")


def _example(number: int, row: dict[str, Any]) -> str:
    stem = f"examples/{number:02d}"
    said = [
        f"{html.escape(role)}, {turn['begin']:.2f} s: {html.escape(turn['text'])}"
        for turn, role in sorted(_turns(row), key=lambda item: item[0]["begin"])
    ]
    heard = f"the recognizer hears: {html.escape(row['asr_hypothesis'])}"
    picture = f'<img src="{stem}.png" alt="both channels">'
    words = "<br>".join([*said, heard])
    return f"<tr><td>{player(f'{stem}_stereo.wav')}<br>{picture}</td><td>{words}</td></tr>"


def _turns(row: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Turns with who takes them."""
    channels = {"user": row["user_turns"], "agent": row["agent_turns"]}
    return [(turn, role) for role, turns in channels.items() for turn in turns]


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Whalesong: duplex demo</title>
<style>{style}</style>
<h1>Speech to speech, both ways at the same time</h1>
<p>The user's voices, speeds and commands are in none of the training dialogues.</p>
<pre>{summary}</pre>
<img src="curves.png" alt="losses and BLEU over training steps">
<h2>Conversations, streamed: the user is on the left, the agent on the right</h2>
<table><tr><th>audio</th><th>words</th></tr>
{rows}
</table></html>
"""
