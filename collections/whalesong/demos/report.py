"""The demo's report: one page with curves, word error rates and ten transcripts to listen to."""

import html
import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from whalesong.core.atomic import atomic_path

CURVES = {"loss": "training loss", "val_loss": "validation loss", "val_wer": "validation WER"}


def write_report(folder: Path, *, logs: Path) -> None:
    """Write `curves.png` and `report.html`.

    Args:
        folder: the demo's folder, with `test.jsonl`, `summary.txt` and `examples/`.
        logs: exp_manager's log folder with TensorBoard's event files.
    """
    draw_curves(read_curves(logs), folder / "curves.png")
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    page = PAGE.format(
        summary=html.escape((folder / "summary.txt").read_text()),
        rows="\n".join(_table_row(folder, number, row) for number, row in enumerate(rows[:10], 1)),
    )
    with atomic_path(folder / "report.html") as path:
        path.write_text(page, encoding="utf-8")


def read_curves(logs: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of each curve, over all runs that continued each other."""
    events = EventAccumulator(str(logs))
    events.Reload()
    known = set(events.Tags()["scalars"])
    curves = {}
    for tag in CURVES:
        points = (
            sorted({event.step: event.value for event in events.Scalars(tag)}.items())
            if tag in known
            else []
        )
        curves[tag] = ([step for step, _ in points], [value for _, value in points])
    return curves


def draw_curves(curves: dict[str, tuple[list[int], list[float]]], path: Path) -> None:
    """Draw losses on the left and the word error rate on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (losses, errors) = pyplot.subplots(1, 2, figsize=(10, 3.6))
    for tag in ("loss", "val_loss"):
        losses.plot(*curves[tag], label=CURVES[tag], marker="o" if tag == "val_loss" else None)
    losses.set(xlabel="step", ylabel="cross-entropy per token (nats)")
    losses.legend()
    steps, rates = curves["val_wer"]
    errors.plot(steps, [100 * rate for rate in rates], marker="o", color="tab:red")
    errors.set(xlabel="step", ylabel="validation WER (%)", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _table_row(folder: Path, number: int, row: dict[str, str]) -> str:
    wav = f"examples/{number:02d}.wav"
    player = f'<audio controls preload="none" src="{wav}"></audio> <a href="{wav}">{wav}</a>'
    words = "</td><td>".join(html.escape(row[key]) for key in ("reference", "hypothesis"))
    return f"<tr><td>{player}</td><td>{words}</td></tr>"


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Whalesong: SALM demo</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse}}
td,th{{padding:.3rem .8rem;border-bottom:1px solid #ddd;text-align:left}}
img{{max-width:100%}}</style>
<h1>SALM on spoken commands</h1>
<pre>{summary}</pre>
<img src="curves.png" alt="loss and word error rate over training steps">
<h2>Ten utterances of voices that training never heard</h2>
<table><tr><th>audio</th><th>said</th><th>transcribed</th></tr>
{rows}
</table></html>
"""
