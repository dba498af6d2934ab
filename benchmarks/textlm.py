"""Speed of the text models on one CPU thread: training, generation, and what the caches save.

    python benchmarks/textlm.py --repeats 3 --json textlm.jsonl
    python benchmarks/textlm.py --cases "arlm cache" "mdlm cache"

CPU seconds of random models of the sizes of `experiment=star_easy_NAME`, without dropout, on star
graphs: batches of 64 to train on, and 32 prompts for which each model writes all 14 tokens of a
target. The cases with d256 have six layers. Beside the speeds stands how many times faster arlm is.
"arlm cache" writes 256 tokens, greedily, with and without keys and values kept; "mdlm cache" takes
256 steps for 64 tokens, with and without those that change nothing; both ways must write the same.
Each case and repetition is a process of its own. Exits with 1 if a bar is missed.
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

Result = dict[str, Any]
MODELS = ("arlm", "mlm", "ilm", "mdlm")


@dataclass(frozen=True)
class Case:
    """What a process does.

    Attributes:
        model: name of the model.
        work: train and generate, or generate with and without a cache.
        overrides: of the experiment `star_easy_NAME`.
        train_rows: rows of a batch to train on.
        rows: rows of a batch to generate.
        turns: repetitions in one process, whose medians count.
        generation: settings of the predictor.
    """

    name: str
    model: str
    work: Literal["speed", "cache"] = "speed"
    overrides: tuple[str, ...] = ()
    train_rows: int = 64
    rows: int = 32
    turns: int = 5
    generation: tuple[tuple[str, Any], ...] = ()

    @property
    def size(self) -> str:
        """The name without that of the model."""
        return self.name.removeprefix(self.model).strip()


D256 = ("model.d_model=256", "model.num_layers=6")
TINY = ("model.d_model=16", "model.num_layers=1", "model.num_heads=2")
SPEEDS = tuple(
    Case(f"{model} {size}", model, overrides=overrides, turns=turns)
    for size, overrides, turns in (("easy", (), 5), ("d256", D256, 3))
    for model in MODELS
)
CACHES = (
    Case(
        "arlm cache",
        "arlm",
        work="cache",
        overrides=("datamodule.block_size=256",),
        rows=4,
        turns=3,
        generation=(("top_k", 1),),
    ),
    Case(
        "arlm cache d256",
        "arlm",
        work="cache",
        overrides=("datamodule.block_size=256", *D256),
        rows=4,
        turns=1,
        generation=(("top_k", 1),),
    ),
    Case(
        "mdlm cache",
        "mdlm",
        work="cache",
        overrides=("datamodule.block_size=64",),
        rows=4,
        turns=3,
        generation=(("num_steps", 256),),
    ),
)
TINIES = (
    *(
        Case(f"{model} tiny", model, overrides=TINY, train_rows=4, rows=2, turns=1)
        for model in MODELS
    ),
    Case("arlm tiny cache", "arlm", work="cache", overrides=TINY, rows=2, turns=1),
    Case("mdlm tiny cache", "mdlm", work="cache", overrides=TINY, rows=2, turns=1),
)
CASES = (*SPEEDS, *CACHES, *TINIES)
BY_DEFAULT = [case.name for case in (*SPEEDS, *CACHES)]
LEAST_RATIOS = {"arlm cache": 5.0, "arlm cache d256": 5.0, "mdlm cache": 3.0}


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
    chosen = [case for case in CASES if case.name in options.cases]
    results = measure(chosen, options.repeats)
    rows = [row for case in chosen for row in table(case, results)]
    print(f"one thread, CPU seconds; medians of {options.repeats}, least and largest")
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
    """Run `textlm_side.py`; what its last line holds."""
    script = Path(__file__).with_name("textlm_side.py")
    command = [sys.executable, str(script), json.dumps(asdict(case))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stderr}\n{case.name} failed with status {done.returncode}.")
    return json.loads(done.stdout.splitlines()[-1])


def table(case: Case, results: dict[str, list[Result]]) -> list[Row]:
    """All lines of a case."""
    runs = results[case.name]
    if case.work == "cache":
        return cache_rows(case, runs)
    rows = [
        row_of(case, "training steps a second", [1 / run["step"] for run in runs]),
        row_of(case, "sequences a second", [case.rows / run["sample"] for run in runs]),
    ]
    arlm = results.get(f"arlm {case.size}")
    if arlm is not None and case.model != "arlm":
        for what, part in (("training, arlm is faster", "step"), ("sampling, arlm", "sample")):
            ratios = [run[part] / other[part] for run, other in zip(runs, arlm, strict=True)]
            rows.append(row_of(case, f"{what}, times", ratios))
    rows.append(row_of(case, "MiB peak", [run["peak"] / 2**20 for run in runs]))
    return rows


def cache_rows(case: Case, runs: Sequence[Result]) -> list[Row]:
    """Seconds of a batch with and without a cache, and their ratio, which has a bar."""
    ratios = [
        without / cached
        for run in runs
        for cached, without in zip(run["cached"], run["without_cache"], strict=True)
    ]
    rows = [
        row_of(case, "with cache, s", [median(run["cached"]) for run in runs]),
        row_of(case, "without cache, s", [median(run["without_cache"]) for run in runs]),
        row_of(case, "times faster", ratios),
    ]
    if (bar := LEAST_RATIOS.get(case.name)) is not None:
        rows[-1].bar, rows[-1].met = f">= {bar}", rows[-1].value >= bar
    return rows


def row_of(case: Case, what: str, values: Sequence[float]) -> Row:
    """A line without a bar."""
    return Row(case.name, what, median(values), min(values), max(values))


def print_row(row: Row) -> None:
    """Print one line of the table."""
    verdict = "" if row.met is None else f"{row.bar}: {'met' if row.met else 'MISSED'}"
    print(
        f"{row.case:18}{row.what:34}{row.value:10.2f}  ({row.least:.2f}-{row.most:.2f})  {verdict}",
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
