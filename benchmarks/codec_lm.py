"""Our codec language model beside Musicgen of transformers, with the same weights in one run.

    python benchmarks/codec_lm.py --repeats 3 --json codec_lm.json
    python benchmarks/codec_lm.py --cases "d256 B1" "d256 train"

Each side and repetition is a process of its own, in turns; one thread, CPU seconds. Both sides
compute greedy codes and losses first, which must agree. Ratios are medians over pairs of
neighbouring processes, above 1 in our favour, but for memory: ours / transformers'. Text encoder
and codec are left out on both sides, or next to nothing. Exits with 1 if a bar is missed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

SIDES = ("whalesong", "transformers")
CODEBOOKS, CODEBOOK_SIZE = 4, 2048
LOSS_TOLERANCE = 1e-4
NOISE = 0.05

Result = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What both sides do in one case.

    `bar` is the least ratio of speeds. `packs` packs the weights before the clock starts, once for
    many generations; else each generation packs for itself what pays back.
    """

    name: str
    d_model: int
    num_layers: int
    frames: int
    rows: int = 1
    guidance: float = 3.0
    weight_dtype: str | None = None
    packs: bool = False
    train: bool = False
    bar: float | None = None


CASES = (
    Case("d256 B1", 256, 6, 250, bar=2.2),
    Case("d256 B1 no guidance", 256, 6, 250, guidance=1.0),
    Case("d256 B1 1500 frames", 256, 6, 1500, bar=2.6),
    Case("d256 B4", 256, 6, 250, rows=4, bar=1.4),
    Case("d256 train", 256, 6, 250, rows=4, train=True, bar=1.0),
    Case("d1024 B1", 1024, 24, 50, packs=True, bar=1.8),
    Case("d1024 B1 no copies", 1024, 24, 50),
    Case("d1024 B1 float16", 1024, 24, 50, weight_dtype="float16", packs=True, bar=2.4),
    Case("d1024 B1 int8", 1024, 24, 50, weight_dtype="int8", packs=True, bar=2.4),
    Case("d1024 train", 1024, 24, 50, train=True, bar=1.0),
    Case("tiny B2", 64, 2, 12, rows=2),
    Case("tiny train", 64, 2, 12, rows=2, train=True),
)
BY_DEFAULT = [case.name for case in CASES if not case.name.startswith("tiny")]


@dataclass
class Row:
    """One line of the table: medians of both sides; median, least and largest of the ratios."""

    name: str
    unit: str
    whalesong: float
    transformers: float
    ratio: float
    spread: tuple[float, float]
    bar: str = ""
    met: bool | None = None
    note: str = ""


def main() -> int:
    """Run the benchmark and print its table; 0 if no bar is missed."""
    options = parse_options()
    chosen = [case for case in CASES if case.name in options.cases]
    speed = read_bandwidth()
    print(f"one thread reads {speed / 1e9:.1f} GB/s; medians of {options.repeats}")
    print(f"{'':24}{'':16}{'whalesong':>12}{'transformers':>14}{'ratio':>8}  (all ratios)")
    rows: list[Row] = []
    report: dict[str, Any] = {"bandwidth": speed}
    for case in chosen:
        results = measure(case, options)
        rows_here = table(case, results, bandwidth=speed)
        for row in rows_here:
            print_row(row)
        report[case.name] = {"rows": [asdict(row) for row in rows_here], "runs": results}
        rows += rows_here
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1))
    return int(any(row.met is False for row in rows))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [case.name for case in CASES]
    parser.add_argument("--cases", nargs="+", default=BY_DEFAULT, choices=names, metavar="CASE")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each side")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    return parser.parse_args()


def read_bandwidth() -> float:
    """Bytes per CPU second that one thread reads in a product of a large matrix and a vector."""
    torch.set_num_threads(1)
    matrix, vector = torch.ones(16384, 4096), torch.ones(4096)
    seconds = []
    for _ in range(5):
        began = time.process_time()
        torch.mv(matrix, vector)
        seconds.append(time.process_time() - began)
    return matrix.numel() * 4 / min(seconds)


def measure(case: Case, options: argparse.Namespace) -> list[dict[str, Result]]:
    """Run both sides in turns and check that they compute the same."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        run("material", folder, case, environment=environment)
        results = []
        for repeat in range(options.repeats):
            result: dict[str, Result] = {}
            for side in SIDES if repeat % 2 == 0 else SIDES[::-1]:
                print(f"{case.name}, {repeat + 1}: {side}", file=sys.stderr)
                result[side] = json.loads(run(side, folder, case, environment=environment))
            check_agreement(case, result["whalesong"], result["transformers"])
            results.append(result)
    return results


def run(role: str, folder: str, case: Case, *, environment: dict[str, str]) -> str:
    """Run `codec_lm_side.py`; the last line that it prints."""
    script = Path(__file__).with_name("codec_lm_side.py")
    command = [sys.executable, str(script), role, folder, json.dumps(asdict(case))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stderr}\n{role} failed with status {done.returncode}.")
    return (done.stdout.splitlines() or [""])[-1]


def check_agreement(case: Case, ours: Result, theirs: Result) -> None:
    """Stop if both sides do not have the same greedy codes, or losses."""
    if case.train:
        worst = max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True))
        if not worst <= LOSS_TOLERANCE:
            raise SystemExit(f"the losses must agree, but differ by {worst}.")
    elif ours["codes"] != theirs["codes"]:
        raise SystemExit("the greedy codes must be the same on both sides, but are not.")


def table(case: Case, results: Sequence[dict[str, Result]], *, bandwidth: float) -> list[Row]:
    """Rows of one case: speed by CPU seconds, and peak memory of the process."""
    if case.train:
        speed = compare(case.name, "steps/cpu s", results, lambda r: 1 / r["cpu"])
    else:
        frames = case.frames * case.rows
        speed = compare(case.name, "frames/cpu s", results, lambda r: frames / r["cpu"])
        speed.note = f"{floor(case, bandwidth) / speed.whalesong * case.rows:.1f} x floor"
    if case.bar is not None:
        noise = NOISE if case.train else 0.0
        speed.bar, speed.met = f">= {case.bar}", speed.ratio >= case.bar - noise
    memory = compare("", "MiB peak", results, lambda r: r["peak"] / 2**20)
    if not case.packs:
        memory.bar, memory.met = "<= 1", memory.ratio <= 1 + NOISE
    return [speed, memory]


def floor(case: Case, bandwidth: float) -> float:
    """Frames per second of one row if a step were nothing but reading all weights in fp32 once."""
    numbers = 14 * case.d_model**2 * case.num_layers + CODEBOOKS * CODEBOOK_SIZE * case.d_model
    return bandwidth / (4 * numbers)


def compare(
    name: str, unit: str, results: Sequence[dict[str, Result]], value: Callable[[Result], float]
) -> Row:
    """A row about `value` on both sides and its ratios ours / theirs."""
    ours, theirs = ([value(result[side]) for result in results] for side in SIDES)
    ratios = [own / other for own, other in zip(ours, theirs, strict=True)]
    spread = (min(ratios), max(ratios))
    return Row(name, unit, median(ours), median(theirs), median(ratios), spread)


def print_row(row: Row) -> None:
    """Print one line of the table."""
    verdict = "" if row.met is None else f"{row.bar}: {'met' if row.met else 'MISSED'}"
    print(
        f"{row.name:24}{row.unit:16}{row.whalesong:12.2f}{row.transformers:14.2f}{row.ratio:8.2f}"
        f"  ({row.spread[0]:.2f}-{row.spread[1]:.2f})  {verdict}  {row.note}",
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
