"""`examples/codec_lm/from_musicgen.py` as a user calls it."""

import runpy
from pathlib import Path

import pytest

import whalesong
from whalesong.tiny.musicgen import build_tiny_musicgen

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "codec_lm" / "from_musicgen.py"


def test_a_musicgen_folder_becomes_an_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = build_tiny_musicgen(tmp_path / "musicgen", texts=["a calm piano"])
    archive = tmp_path / "musicgen.nemo"
    monkeypatch.setattr("sys.argv", [str(SCRIPT), str(folder), str(archive)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert f"Written: {archive}" in capsys.readouterr().out
    made = whalesong.load(archive).generate_audio(
        [{"text": "a calm piano"}], seconds=0.3, seeds=[1]
    )
    assert made.codes[0].shape == (4, 15)


def test_a_folder_without_a_musicgen_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [str(SCRIPT), str(tmp_path), str(tmp_path / "x.nemo")])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    error = capsys.readouterr().err.strip()
    assert str(tmp_path) in error and "\n" not in error
