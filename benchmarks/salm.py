"""Our SALM beside NeMo's: training step, generation and peak memory, at the same size in one run.

    python benchmarks/salm.py --vocab 128256 32000 --repeats 3 --json salm.json

A frozen tiny LLM under LoRA and a frozen tiny Conformer, with equal weights and equal batches. Each
side and repetition is a process of its own, in turns. Before anything is reported, losses and
generated ids of both sides are compared. Ratios are medians over pairs of neighbouring processes,
above 1 in our favour, but for memory: ours / NeMo's. Exits with 1 if a bar is missed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

SIDES = ("whalesong", "nemo")
SHARES = (0.1, 0.3, 1.0)
GENERATION_ROWS = 4
NEW_TOKENS = 32
LOSS_TOLERANCE = 1e-4
NOISE = 0.05

Result = dict[str, Any]


@dataclass
class Row:
    """One line of the table: medians of both sides; median, least and largest of the ratios."""

    name: str
    unit: str
    whalesong: float
    nemo: float
    ratio: float
    spread: tuple[float, float]
    bar: str = ""
    met: bool | None = None


def main() -> int:
    """Run the benchmark and print its tables; 0 if no bar is missed."""
    options = parse_options()
    report: dict[str, Any] = {"options": vars(options) | {"json": str(options.json)}}
    rows: list[Row] = []
    for vocab_size in options.vocab:
        results = measure(vocab_size, options)
        rows_here = table(results, vocab_size=vocab_size, clock=clock_of(options))
        print_table(rows_here, vocab_size=vocab_size, options=options)
        report[str(vocab_size)] = {"rows": [asdict(row) for row in rows_here], "runs": results}
        rows += rows_here
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1))
    return int(any(row.met is False for row in rows))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, nargs="+", default=[128256, 32000])
    parser.add_argument("--audio-seconds", type=float, default=20.0)
    parser.add_argument("--batch", type=int, default=2, help="rows of a training batch")
    parser.add_argument("--steps", type=int, default=5, help="timed steps in each process")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all numbers here")
    return parser.parse_args()


def clock_of(options: argparse.Namespace) -> str:
    """CPU seconds bear a busy machine; with several threads they would count waiting as work."""
    return "cpu" if options.threads == 1 else "wall"


def measure(vocab_size: int, options: argparse.Namespace) -> list[dict[str, Result]]:
    """Run both sides in turns, `options.repeats` times, and check that they compute the same."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with tempfile.TemporaryDirectory() as folder:
        values = (folder, vocab_size, options.audio_seconds, options.batch, GENERATION_ROWS)
        run("salm_material.py", *values, *SHARES, environment=environment)
        results = []
        for repeat in range(options.repeats):
            result: dict[str, Result] = {}
            for side in SIDES if repeat % 2 == 0 else SIDES[::-1]:
                print(f"vocabulary {vocab_size}, {repeat + 1}: {side}", file=sys.stderr)
                values = (side, folder, options.steps, options.threads, NEW_TOKENS)
                result[side] = json.loads(run("salm_side.py", *values, environment=environment))
            check_agreement(result["whalesong"], result["nemo"])
            results.append(result)
    return results


def run(script: str, *values: Any, environment: dict[str, str]) -> str:
    """Run a script that lies beside this one; the last line that it prints."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, values)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stderr}\n{script} failed with status {done.returncode}.")
    return (done.stdout.splitlines() or [""])[-1]


def check_agreement(ours: Result, theirs: Result) -> None:
    """Stop if the two sides do not have the same losses and greedy ids."""
    for share, training in ours["training"].items():
        pairs = zip(training["losses"], theirs["training"][share]["losses"], strict=True)
        worst = max(abs(own - other) for own, other in pairs)
        if not worst <= LOSS_TOLERANCE:
            raise SystemExit(f"the losses at {share} must agree, but differ by {worst}.")
    if ours["generation"]["ids"] != theirs["generation"]["ids"]:
        raise SystemExit("the generated ids must be the same on both sides, but are not.")


def table(results: Sequence[dict[str, Result]], *, vocab_size: int, clock: str) -> list[Row]:
    """Rows of one vocabulary size; the bars are those of the 10 % case and of generation."""
    rows = []
    for share in results[0]["whalesong"]["training"]:
        speed, memory = bars(vocab_size) if share == "10%" else (None, None)
        rows += training_rows(results, share, clock=clock, speed=speed, memory=memory)
    return rows + generation_rows(results, clock=clock)


def bars(vocab_size: int) -> tuple[float | None, float | None]:
    """Least ratio of steps per second and largest ratio of memory, where a bar is set."""
    if vocab_size >= 128_000:
        return 4.0, 0.6
    return (1.5, None) if vocab_size >= 32_000 else (None, None)


def training_rows(
    results: Sequence[dict[str, Result]],
    share: str,
    *,
    clock: str,
    speed: float | None,
    memory: float | None,
) -> list[Row]:
    """Steps per second by both clocks, and the peak memory above the weights."""
    rows = []
    for name in ("cpu", "wall"):
        row = compare(results, lambda r, name=name: 1 / r["training"][share]["seconds"][name])
        row.name, row.unit = f"train {share}", f"steps/{name} s"
        rows.append(at_least(row, speed) if name == clock else row)
    row = compare(results, lambda r: r["training"][share]["peak"] / 2**20)
    row.name, row.unit = f"train {share}", "MiB above weights"
    if memory is not None:
        row.bar, row.met = f"<= {memory}", row.ratio <= memory
    return [*rows, row]


def generation_rows(results: Sequence[dict[str, Result]], *, clock: str) -> list[Row]:
    """Tokens per second, of the whole and of its two parts."""
    speeds: dict[str, Callable[[Result], float]] = {
        "generate": lambda r: GENERATION_ROWS * NEW_TOKENS / r["whole"][clock],
        "  prefill, 1 token": lambda r: GENERATION_ROWS / r["first"][clock],
        "  decode": lambda r: (
            GENERATION_ROWS * (NEW_TOKENS - 1) / (r["whole"][clock] - r["first"][clock])
        ),
    }
    rows = []
    for name, speed in speeds.items():
        row = compare(results, lambda r, speed=speed: speed(r["generation"]))
        row.name, row.unit = name, f"tokens/{clock} s"
        rows.append(row)
    rows[0] = at_least(rows[0], 1.0, noise=NOISE)
    return rows


def compare(results: Sequence[dict[str, Result]], value: Callable[[Result], float]) -> Row:
    """A row about `value` on both sides and its ratios ours / NeMo's."""
    ours, theirs = ([value(result[side]) for result in results] for side in SIDES)
    ratios = [own / other for own, other in zip(ours, theirs, strict=True)]
    spread = (min(ratios), max(ratios))
    return Row("", "", median(ours), median(theirs), median(ratios), spread)


def at_least(row: Row, bar: float | None, *, noise: float = 0.0) -> Row:
    """The row with a bar that its ratio has to reach, up to `noise`."""
    if bar is not None:
        row.bar = f">= {bar}" + (f" - {noise:.0%}" if noise else "")
        row.met = row.ratio >= bar - noise
    return row


def print_table(rows: Sequence[Row], *, vocab_size: int, options: argparse.Namespace) -> None:
    """Print the rows of one vocabulary size."""
    print(
        f"\nvocabulary {vocab_size}, {options.batch} x {options.audio_seconds:g} s of audio, "
        f"{options.threads} thread(s), medians of {options.repeats}"
    )
    print(f"{'':20}{'':20}{'whalesong':>12}{'NeMo':>12}{'ratio':>8}  (all ratios)")
    for row in rows:
        verdict = "" if row.met is None else f"{row.bar}: {'met' if row.met else 'MISSED'}"
        print(
            f"{row.name:20}{row.unit:20}{row.whalesong:12.2f}{row.nemo:12.2f}"
            f"{row.ratio:8.2f}  ({row.spread[0]:.2f}-{row.spread[1]:.2f})  {verdict}"
        )


if __name__ == "__main__":
    raise SystemExit(main())
