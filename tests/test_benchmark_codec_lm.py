"""The benchmark of the codec LM runs, and both sides compute the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "codec_lm.py"


@pytest.mark.slow
def test_codec_lm_stands_beside_transformers(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--cases", "tiny B2", "tiny train", "--repeats", "1", "--json", str(report)]
    command = [sys.executable, str(BENCHMARK), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "frames/cpu s" in done.stdout, done.stderr
    cases = json.loads(report.read_text())
    (generation,), (training,) = (cases[name]["runs"] for name in ("tiny B2", "tiny train"))
    assert generation["whalesong"]["codes"] == generation["transformers"]["codes"]
    ours, theirs = (training[side]["losses"] for side in ("whalesong", "transformers"))
    assert ours == pytest.approx(theirs, abs=1e-4) and ours[-1] < ours[0]
