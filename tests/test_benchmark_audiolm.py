"""The benchmark of AudioLM runs; with and without a cache the codes are the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "audiolm.py"


@pytest.mark.slow
def test_audiolm_is_measured(tmp_path: Path) -> None:
    report = tmp_path / "report.jsonl"
    cases = ["tiny", "tiny without cache", "tiny train"]
    options = ["--cases", *cases, "--repeats", "1", "--json", str(report)]
    command = [sys.executable, str(BENCHMARK), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "ms a frame" in done.stdout, done.stderr
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    runs = {line["case"]: line["runs"][0] for line in lines if "runs" in line}
    assert list(runs) == cases
    assert all(len(runs["tiny"][part]) == 2 for part in ("prompt", "frame", "second_half"))
    assert runs["tiny train"]["losses"][-1] < runs["tiny train"]["losses"][0]
