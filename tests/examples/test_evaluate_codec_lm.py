"""`examples/codec_lm/evaluate.py` as a user calls it."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "codec_lm" / "evaluate.py"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run the script with these arguments."""

    def run(*arguments: Any) -> None:
        monkeypatch.setattr("sys.argv", [str(SCRIPT), *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


@pytest.fixture(scope="module")
def archive(build_codec_lm: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "model.nemo"
    build_codec_lm().save_to(path)
    return path


def test_script_prints_a_table_and_writes_json(
    call: Callable[..., None], archive: Path, music_shar: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    output = tmp_path / "deep" / "results.json"
    options = ["--num-clips", 4, "--seconds", 0.3, "--guidance-scale", 2, "--temperature", 0.8]
    call(archive, music_shar, "--output", output, "--train", music_shar, *options)
    printed = capsys.readouterr().out
    assert "NLL (nats per code)" in printed and "unigram" in printed
    assert "4 generated clips, 4 of the reference" in printed
    assert printed.endswith(f"Written: {output}\n")
    written = json.loads(output.read_text())
    assert written["generation"]["guidance_scale"] == 2 and len(written["clips"]) == 4


def test_script_ends_with_one_line_about_what_is_missing(
    call: Callable[..., None], archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        call(archive, tmp_path / "nothing", "--output", tmp_path / "results.json")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error == f"Error: {tmp_path}/nothing: no such shar folder.\n"
