"""Speed of duplex models on one CPU thread: frames of a session, training steps beside NeMo's.

    python benchmarks/duplex.py --repeats 3 --json duplex.jsonl
    python benchmarks/duplex.py --cases session --model demo/duplex/duplex.nemo --seconds 60

Random models that listen with a causal Conformer, or that of `--model`, hear noise in pieces of
80 ms; each case and repetition is a process of its own. Without a cache the speech decoder computes
its window anew for each frame; the LLM likewise, all that came before. Training steps are those of
DuplexS2SModel and NeMo's with equal weights: on rows of one length, where the losses are equal,
which is checked, and on rows of many lengths, whose padding NeMo trains on. Ratios above 1 are in
our favour. Exits with 1 if a bar is missed; those of time are for a core with nothing else to do.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

Result = dict[str, Any]

LOSS_TOLERANCE = 1e-3
REAL_TIME = 0.5
FLAT = 1.15


@dataclass(frozen=True)
class Case:
    """What a process does.

    Attributes:
        width: of the LLM and the speech decoder; the encoder has half of it.
        layers: of each of the three.
        seconds: of audio.
        rows: of a training batch.
        shortest: of these, as a part of the longest one.
        beside: the case that has to be slower.
        ratio: by how much, at least.
    """

    name: str
    work: Literal["session", "without cache", "llm", "train", "train nemo"] = "session"
    family: Literal["heads", "decoder"] = "decoder"
    width: int = 256
    layers: int = 4
    vocab: int = 2000
    seconds: int = 60
    rows: int = 4
    shortest: float = 1.0
    steps: int = 5
    model: str | None = None
    beside: str | None = None
    ratio: float | None = None


TINY: dict[str, Any] = {"width": 64, "layers": 1, "seconds": 4, "steps": 2}
TRAIN: dict[str, Any] = {"family": "heads", "seconds": 16, "vocab": 32000}
PADDED: dict[str, Any] = {**TRAIN, "shortest": 0.25}
CASES = (
    Case("session", beside="session without cache", ratio=2.0),
    Case("session without cache", work="without cache"),
    Case("session of heads", family="heads"),
    Case("llm", work="llm", seconds=40),
    Case("train", work="train", **TRAIN, beside="train nemo", ratio=0.9),
    Case("train nemo", work="train nemo", **TRAIN),
    Case("train padded", work="train", **PADDED, beside="train padded nemo", ratio=1.1),
    Case("train padded nemo", work="train nemo", **PADDED),
    Case("tiny session", **TINY, beside="tiny session without cache"),
    Case("tiny session without cache", work="without cache", **TINY),
    Case("tiny llm", work="llm", **TINY),
    Case("tiny train", work="train", **{**TINY, "family": "heads"}, beside="tiny train nemo"),
    Case("tiny train nemo", work="train nemo", **{**TINY, "family": "heads"}),
)
BY_DEFAULT = [case.name for case in CASES if not case.name.startswith("tiny")]


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
    chosen = [changed(case, options) for case in CASES if case.name in options.cases]
    results = measure(chosen, options.repeats)
    rows = [row for case in chosen for row in table(case, results)]
    print(f"one thread, medians of {options.repeats}")
    for row in rows:
        print_row(row)
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
    parser.add_argument("--model", help="a .nemo of ours, for the case `session`")
    parser.add_argument("--seconds", type=int, help="of audio that a session hears")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each case")
    parser.add_argument("--json", type=Path, help="write all numbers here, as JSON lines")
    return parser.parse_args()


def changed(case: Case, options: argparse.Namespace) -> Case:
    """The case as the command line wants it."""
    if not case.name.startswith("session"):
        return case
    if options.model is not None and case.name == "session":
        case = replace(case, model=str(Path(options.model).resolve()), beside=None)
    return replace(case, seconds=options.seconds or case.seconds)


def measure(cases: Sequence[Case], repeats: int) -> dict[str, list[Result]]:
    """Run all cases in turns, there and back, so that those which are compared are neighbours."""
    results: dict[str, list[Result]] = {case.name: [] for case in cases}
    for repeat in range(repeats):
        for case in cases if repeat % 2 == 0 else cases[::-1]:
            print(f"{case.name}, {repeat + 1}", file=sys.stderr)
            results[case.name].append(run(case))
    return results


def run(case: Case) -> Result:
    """Run `duplex_side.py`; what its last line holds."""
    script = Path(__file__).with_name("duplex_side.py")
    command = [sys.executable, str(script), json.dumps(asdict(case))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stderr}\n{case.name} failed with status {done.returncode}.")
    return json.loads(done.stdout.splitlines()[-1])


def table(case: Case, results: dict[str, list[Result]]) -> list[Row]:
    """All lines of a case."""
    runs = results[case.name]
    if case.work == "llm":
        rows = llm_rows(case, runs)
    elif case.work.startswith("train"):
        rows = training_rows(case, runs)
    else:
        rows = session_rows(case, runs)
    other = results.get(case.beside or "")
    if other:
        rows += beside_rows(case, runs, other)
    rows.append(row_of(case, "MiB peak", runs, lambda run: run["peak"] / 2**20))
    return rows


def session_rows(case: Case, runs: Sequence[Result]) -> list[Row]:
    """Real-time factor, spread of the milliseconds of a frame, and whether frames stay as cheap."""
    has_bar = case.work == "session" and not case.name.startswith("tiny")
    rows = []
    for clock in ("cpu", "wall"):
        factor = row_of(
            case,
            f"real-time factor, {clock}",
            runs,
            lambda r, c=clock: r[c]["mean"] / r["frame_length"],
        )
        rows.append(at_most(factor, REAL_TIME if has_bar and clock == "cpu" else None))
    for name in ("p50", "p95", "p99", "max"):
        rows.append(
            row_of(case, f"ms a frame, {name}", runs, lambda r, n=name: 1000 * r["wall"][n])
        )
    growth = row_of(case, "last / first quarter", runs, lambda r: r["cpu"]["growth"])
    rows.append(at_most(growth, FLAT if has_bar else None))
    return rows


def llm_rows(case: Case, runs: Sequence[Result]) -> list[Row]:
    """What the LLM's cache saves over the whole of a session."""
    return [
        row_of(case, "ms a frame, cached", runs, lambda r: 1000 * r["cached"] / r["frames"]),
        row_of(case, "ms a frame, anew", runs, lambda r: 1000 * r["anew"] / r["frames"]),
        row_of(case, "times faster", runs, lambda r: r["anew"] / r["cached"]),
    ]


def training_rows(case: Case, runs: Sequence[Result]) -> list[Row]:
    """Steps per second and memory above the weights."""
    return [
        row_of(case, "steps a CPU second", runs, lambda r: 1 / r["seconds"]["cpu"]),
        row_of(case, "MiB above weights", runs, lambda r: r["above_weights"] / 2**20),
    ]


def beside_rows(case: Case, runs: Sequence[Result], others: Sequence[Result]) -> list[Row]:
    """How many times faster than the case beside, and in training how much less memory."""
    if case.work != "train":
        ratios = [b["cpu"]["mean"] / a["cpu"]["mean"] for a, b in zip(runs, others, strict=True)]
        return [at_least(row_of_values(case, f"faster than {case.beside}", ratios), case.ratio)]
    pairs = list(zip(runs, others, strict=True))
    if case.shortest == 1:
        for own, other in pairs:
            check_agreement(own["losses"], other["losses"])
    speed = [b["seconds"]["cpu"] / a["seconds"]["cpu"] for a, b in pairs]
    memory = [b["above_weights"] / a["above_weights"] for a, b in pairs]
    return [
        at_least(row_of_values(case, "faster than NeMo", speed), case.ratio),
        row_of_values(case, "less memory than NeMo", memory),
    ]


def check_agreement(ours: Sequence[float], theirs: Sequence[float]) -> None:
    """Stop if the two sides do not have the same losses."""
    worst = max(abs(own - other) for own, other in zip(ours, theirs, strict=True))
    if not worst <= LOSS_TOLERANCE:
        raise SystemExit(f"losses must agree within {LOSS_TOLERANCE}, but differ by {worst}.")


def row_of(case: Case, what: str, runs: Sequence[Result], value: Callable[[Result], float]) -> Row:
    """A line without a bar."""
    return row_of_values(case, what, [value(run) for run in runs])


def row_of_values(case: Case, what: str, values: Sequence[float]) -> Row:
    """A line without a bar from its numbers."""
    return Row(case.name, what, median(values), min(values), max(values))


def at_most(row: Row, bar: float | None) -> Row:
    """The line with a bar that its median must not be above."""
    if bar is not None:
        row.bar, row.met = f"<= {bar}", row.value <= bar
    return row


def at_least(row: Row, bar: float | None) -> Row:
    """The line with a bar that its median must not be below."""
    if bar is not None:
        row.bar, row.met = f">= {bar}", row.value >= bar
    return row


def print_row(row: Row) -> None:
    """Print one line of the table."""
    verdict = "" if row.met is None else f"{row.bar}: {'met' if row.met else 'MISSED'}"
    print(
        f"{row.case:26}{row.what:36}{row.value:10.2f}  ({row.least:.2f}-{row.most:.2f})  {verdict}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
