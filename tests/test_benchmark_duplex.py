"""The benchmark of duplex models runs, and both sides compute the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "duplex.py"


@pytest.mark.slow
def test_duplex_is_measured(tmp_path: Path) -> None:
    report = tmp_path / "report.jsonl"
    names = ["session", "session without cache", "llm", "train", "train nemo"]
    cases = [f"tiny {name}" for name in names]
    options = ["--cases", *cases, "--repeats", "1", "--json", str(report)]
    command = [sys.executable, str(BENCHMARK), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "faster than NeMo" in done.stdout, done.stderr
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    runs = {line["case"]: line["runs"][0] for line in lines if "runs" in line}
    assert list(runs) == cases
    session, anew = runs["tiny session"], runs["tiny session without cache"]
    assert session["loudness"] == pytest.approx(anew["loudness"], rel=1e-3)
    assert runs["tiny train"]["losses"] == pytest.approx(
        runs["tiny train nemo"]["losses"], abs=1e-3
    )
    assert runs["tiny train"]["losses"][-1] < runs["tiny train"]["losses"][0]
