"""Speed of AudioLM on one CPU thread: what a new frame costs, and what a training step.

    python benchmarks/audiolm.py --repeats 3 --json audiolm.jsonl
    python benchmarks/audiolm.py --cases d256 "d256 without cache"

CPU seconds of random models with 4 quantizers of 1024 codes, behind a prompt of 150 frames; each
case and repetition is a process of its own. The first half takes in the prompt and goes on frame
by frame; the second half takes prompt and new frames at once, for each of its three quantizers.
Packing the weights, once for many generations, is left out. Without a cache the first half computes
everything anew for each frame, and must give the same greedy codes. Training is without dropout.
Exits with 1 if a bar is missed; those of milliseconds and seconds are guide figures of one core
that has nothing else to do.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from codec_lm import read_bandwidth

Result = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What a process does.

    Attributes:
        frames: new frames of its generations.
        turns: how often each process generates them all; medians count.
        rows: rows of a batch.
        bar: most milliseconds of a new frame and row, or seconds of a training step.
    """

    name: str
    d_model: int = 256
    num_layers: int = 6
    work: Literal["generate", "without cache", "train"] = "generate"
    frames: tuple[int, ...] = ()
    turns: int = 1
    rows: int = 1
    weight_dtype: str | None = None
    bar: float | None = None


LARGE: dict[str, Any] = {"d_model": 1024, "num_layers": 12, "frames": (100,)}
TINY: dict[str, Any] = {"d_model": 64, "num_layers": 1}
CASES = (
    Case("d256", frames=(50, 100, 200, 400), turns=5, bar=5.0),
    Case("d256 without cache", work="without cache", frames=(250,)),
    Case("d256 B8", frames=(250,), rows=8, bar=1.4),
    Case("d256 train", work="train", rows=4, bar=1.6),
    Case("d1024", **LARGE, bar=50.0),
    Case("d1024 float16", **LARGE, weight_dtype="float16"),
    Case("d1024 bfloat16", **LARGE, weight_dtype="bfloat16"),
    Case("d1024 int8", **LARGE, weight_dtype="int8"),
    Case("tiny", **TINY, frames=(4, 8), rows=2),
    Case("tiny without cache", **TINY, work="without cache", frames=(8,)),
    Case("tiny train", **TINY, work="train"),
)
BY_DEFAULT = [case.name for case in CASES if not case.name.startswith("tiny")]
FLAT = 1.15
LEAST_RATIOS = {"d256 without cache": 10.0, "d1024 int8": 1.7}


@dataclass
class Row:
    """One line of the table: the median of all repetitions, the least and the largest."""

    case: str
    what: str
    value: float
    least: float
    most: float
    bar: str = ""
    met: bool | None = None


def main() -> int:
    """Run the benchmark and print its table; 0 if no bar is missed."""
    options = parse_options()
    print(f"one thread reads {read_bandwidth() / 1e9:.1f} GB/s; medians of {options.repeats}")
    rows: list[Row] = []
    chosen = [case for case in CASES if case.name in options.cases]
    results = measure(chosen, options.repeats)
    for case in chosen:
        for row in table(case, results):
            print_row(row)
            rows.append(row)
    if options.json is not None:
        lines = [json.dumps(asdict(row)) for row in rows]
        lines += [json.dumps({"case": name, "runs": runs}) for name, runs in results.items()]
        options.json.write_text("\n".join(lines) + "\n")
    return int(any(row.met is False for row in rows))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [case.name for case in CASES]
    parser.add_argument("--cases", nargs="+", default=BY_DEFAULT, choices=names, metavar="CASE")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each case")
    parser.add_argument("--json", type=Path, help="write all numbers here, as JSON lines")
    return parser.parse_args()


def measure(cases: Sequence[Case], repeats: int) -> dict[str, list[Result]]:
    """Run all cases in turns, so that those which are compared are neighbours."""
    results: dict[str, list[Result]] = {case.name: [] for case in cases}
    for repeat in range(repeats):
        for case in cases:
            print(f"{case.name}, {repeat + 1}", file=sys.stderr)
            results[case.name].append(run(case))
    return results


def run(case: Case) -> Result:
    """Run `audiolm_side.py`; what its last line holds."""
    script = Path(__file__).with_name("audiolm_side.py")
    command = [sys.executable, str(script), json.dumps(asdict(case))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stderr}\n{case.name} failed with status {done.returncode}.")
    return json.loads(done.stdout.splitlines()[-1])


def table(case: Case, results: dict[str, list[Result]]) -> list[Row]:
    """All lines of a case."""
    runs = results[case.name]
    rows = training_rows(case, runs) if case.work == "train" else generation_rows(case, runs)
    if case.work == "without cache":
        (frames,) = case.frames
        ratios = [run["without_cache"][0] / first_half(run, frames) for run in runs]
        rows.append(at_least(case, "first half, times faster", ratios))
        whole = [
            (run["without_cache"][0] + run["second_half"][0]) / both_halves(run, frames)
            for run in runs
        ]
        rows.append(row_of(case, "both halves, times faster", whole))
    if case.weight_dtype is not None and "d1024" in results:
        pairs = zip(results["d1024"], runs, strict=True)
        ratios = [plain["frame"][0] / run["frame"][0] for plain, run in pairs]
        rows.append(at_least(case, "a frame, times faster", ratios))
    rows.append(row_of(case, "MiB peak", [run["peak"] / 2**20 for run in runs]))
    return rows


def first_half(run: Result, frames: int) -> float:
    """Seconds of the largest number of frames, the prompt included."""
    return run["prompt"][-1] + run["frame"][-1] * (frames - 1)


def both_halves(run: Result, frames: int) -> float:
    """The same with the second half."""
    return first_half(run, frames) + run["second_half"][-1]


def training_rows(case: Case, runs: Sequence[Result]) -> list[Row]:
    """Seconds of a step."""
    return [at_most(case, "CPU s a training step", [run["step"] for run in runs], case.bar)]


def generation_rows(case: Case, runs: Sequence[Result]) -> list[Row]:
    """Milliseconds of a new frame of the first half at each length, how much they differ, what the
    prompt costs, everything together, and the second half's share."""
    rows, costs = [], []
    for index, frames in enumerate(case.frames):
        costs.append([1000 * run["frame"][index] / case.rows for run in runs])
        rows.append(at_most(case, f"a new frame of {frames}, ms", costs[-1], case.bar))
    if len(case.frames) > 1:
        medians = [median(cost) for cost in costs]
        bar = None if case.bar is None else FLAT
        rows.append(at_most(case, "largest / least of these", [max(medians) / min(medians)], bar))
    frames = case.frames[-1]
    prompts = [1000 * run["prompt"][-1] / case.rows for run in runs]
    rows.append(row_of(case, "prompt and first frame, ms", prompts))
    whole = [1000 * both_halves(run, frames) / frames / case.rows for run in runs]
    rows.append(row_of(case, f"all together, ms a frame of {frames}", whole))
    shares = [run["second_half"][-1] / both_halves(run, frames) for run in runs]
    rows.append(row_of(case, "share of the second half", shares))
    return rows


def row_of(case: Case, what: str, values: Sequence[float]) -> Row:
    """A line without a bar."""
    return Row(case.name, what, median(values), min(values), max(values))


def at_most(case: Case, what: str, values: Sequence[float], bar: float | None) -> Row:
    """A line whose median must be at most `bar`."""
    row = row_of(case, what, values)
    if bar is not None:
        row.bar, row.met = f"<= {bar}", row.value <= bar
    return row


def at_least(case: Case, what: str, values: Sequence[float]) -> Row:
    """A line whose median must be at least the ratio that its case has to reach."""
    row = row_of(case, what, values)
    bar = LEAST_RATIOS.get(case.name)
    if bar is not None:
        row.bar, row.met = f">= {bar}", row.value >= bar
    return row


def print_row(row: Row) -> None:
    """Print one line of the table."""
    verdict = "" if row.met is None else f"{row.bar}: {'met' if row.met else 'MISSED'}"
    print(
        f"{row.case:20}{row.what:36}{row.value:10.2f}  ({row.least:.2f}-{row.most:.2f})  {verdict}",
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
