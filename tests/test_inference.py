"""Evaluating and asking a saved model through composed jobs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from whalesong.core.config.compose import compose
from whalesong.core.errors import ConfigError, DataError
from whalesong.experiment import run


@pytest.fixture(scope="module")
def archive(build_salm: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "salm.nemo"
    build_salm(generation={"max_new_tokens": 3}).save_to(path)
    return path


def job(config: str, *overrides: str) -> Any:
    job_type = {"salm_eval": "eval", "salm_generate": "predict"}[config]
    return compose(config, overrides=[f"job_type={job_type}", *overrides])


def test_evaluation_writes_one_line_for_each_example(
    archive: Path, speech_shar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rows.jsonl"
    data = f"data.test_ds.shar_path={speech_shar}"
    run(job("salm_eval", f"eval.ckpt_path={archive}", f"eval.output_file={output}", data))
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == sorted(f"utt{index}" for index in range(12))
    assert {"reference", "hypothesis", "wer"} <= rows[0].keys()
    assert "over 12 examples" in capsys.readouterr().out


def test_evaluation_reads_a_manifest_too(archive: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).standard_normal(16000) / 10, 16000)
    line = {"audio_filepath": "a.wav", "text": "turn on", "duration": 1.0}
    (tmp_path / "test.jsonl").write_text(json.dumps(line) + "\n")
    manifest = f"data.test_ds.manifest_filepath={tmp_path}/test.jsonl"
    output = f"eval.output_file={tmp_path}/rows.jsonl"
    run(job("salm_eval", f"eval.ckpt_path={archive}", manifest, output))
    assert json.loads((tmp_path / "rows.jsonl").read_text())["reference"] == "turn on"


def test_answers_go_to_the_terminal_or_to_a_file(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wav = tmp_path / "a.wav"
    soundfile.write(wav, np.random.default_rng(0).standard_normal(16000) / 10, 16000)
    ask = [f"predict.ckpt_path={archive}", f"predict.audio=[{wav}]"]
    run(job("salm_generate", *ask))
    assert capsys.readouterr().out.startswith(f"{wav}: ")
    run(job("salm_generate", *ask, f"predict.output_file={tmp_path}/answers.jsonl"))
    row = json.loads((tmp_path / "answers.jsonl").read_text())
    assert row["audio"] == str(wav) and row["prompt"] == "Transcribe the following:"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["predict.ckpt_path=none.nemo", "predict.audio=[]"], "existing file, but 'none.nemo'"),
        (["predict.ckpt_path=ARCHIVE", "predict.audio=[no.wav]"], "'no.wav' does not exist"),
        (
            ["predict.ckpt_path=ARCHIVE", "predict.audio=[a,b,c]", "predict.prompts=[x,y]"],
            "3 audio",
        ),
        (["predict.ckpt_path=ARCHIVE", "predict.audio=[]", "predict.prompts=[]"], "both are empty"),
        (["predict.ckpt_path=null", "predict.audio=[]"], "there is no .nemo under"),
    ],
)
def test_bad_request_is_said_before_the_model_is_loaded(
    archive: Path, overrides: list[str], message: str
) -> None:
    overrides = [override.replace("ARCHIVE", str(archive)) for override in overrides]
    with pytest.raises((ConfigError, DataError), match=message):
        run(job("salm_generate", *overrides))
