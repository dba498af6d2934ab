"""The benchmark of text models runs; with and without a cache the tokens are the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "textlm.py"
MODELS = ("arlm", "mlm", "ilm", "mdlm")


@pytest.mark.slow
def test_text_models_are_measured(tmp_path: Path) -> None:
    report = tmp_path / "report.jsonl"
    cases = [*(f"{model} tiny" for model in MODELS), "arlm tiny cache", "mdlm tiny cache"]
    options = ["--cases", *cases, "--repeats", "1", "--json", str(report)]
    command = [sys.executable, str(BENCHMARK), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "sequences a second" in done.stdout, done.stderr
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    runs = {line["case"]: line["runs"][0] for line in lines if "runs" in line}
    assert list(runs) == cases
    for model in MODELS:
        losses = runs[f"{model} tiny"]["losses"]
        assert losses[8] < losses[0]  # the same batch
    assert runs["arlm tiny cache"]["length"] == runs["mdlm tiny cache"]["length"] == 14
