"""The commands answer fast, say what is wrong in one line, and hand the job a checked config."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import DictConfig

import whalesong
from whalesong.cli import main, main_script
from whalesong.core.errors import DataError

DEBUG_MODES = ("overfit", "fast_dev_run", "small_data", "profile")
HEAVY = {"torch", "nemo", "lightning", "lhotse", "transformers"}


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[DictConfig]]:
    """The configs that reach `whalesong.experiment`, from an empty working directory."""
    received: list[DictConfig] = []
    experiment = ModuleType("whalesong.experiment")
    experiment.run = received.append
    monkeypatch.setitem(sys.modules, "whalesong.experiment", experiment)
    monkeypatch.setattr(whalesong, "experiment", experiment, raising=False)
    monkeypatch.chdir(tmp_path)
    yield received


def fails(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and standard error of a failing `xlm`."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    return caught.value.code, capsys.readouterr().err


def test_job_gets_its_config(jobs: list[DictConfig]) -> None:
    main(["job_type=train", "job_name=first", "model.target=SALM", "trainer.max_steps=3"])
    (cfg,) = jobs
    assert (cfg.job_type, cfg.exp_manager.name, cfg.model.target) == ("train", "first", "SALM")
    assert cfg.trainer.max_steps == 3


def test_documented_keys_need_no_plus(jobs: list[DictConfig]) -> None:
    main(["job_type=eval", "eval.ckpt_path=a/epoch=1-step=2.ckpt", "resume=true"])
    main(["job_type=predict", "predict.ckpt_path=a.nemo", "predict.audio=[a.wav]", "seed=1"])
    assert jobs[0].eval.ckpt_path == "a/epoch=1-step=2.ckpt"
    assert jobs[0].exp_manager.resume_if_exists is True
    assert jobs[1].predict.audio == ["a.wav"]


@pytest.mark.parametrize("debug", [*DEBUG_MODES, "[overfit,fast_dev_run]"])
def test_debug_modes_pass_the_schemas(jobs: list[DictConfig], debug: str) -> None:
    main(["job_type=train", "model.target=SALM", f"debug={debug}", "trainer.max_steps=5"])
    assert jobs[0].trainer.max_steps == 5


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "`job_type` is mandatory, but has no value."),
        (
            ["job_type=trian"],
            "`job_type` must be one of train, eval, predict, generate, prepare_data, list, inspect,"
            " but is 'trian' instead; did you mean `train`?",
        ),
        (
            ["job_type=train"],
            "`model` is missing; choose an experiment with experiment=NAME, or a text model with"
            " model=NAME model_type=NAME.",
        ),
        (
            ["job_type=train", "trainer.max_step=3"],
            "`trainer.max_step` (3) is not a known key; did you mean `max_steps`?",
        ),
        (
            ["job_type=train", "job_nme=x"],
            "`job_nme` ('x') is not a known key; did you mean `job_name`?",
        ),
    ],
)
def test_wrong_job_is_one_line(
    jobs: list[DictConfig], capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert fails(argv, capsys) == (2, f"Error: {message}\n")
    assert jobs == []


def test_errors_of_the_job_end_it_by_kind(
    jobs: list[DictConfig], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(error: BaseException) -> Any:
        def raise_it(cfg: DictConfig) -> None:
            raise error

        return raise_it

    argv = ["job_type=eval"]
    experiment = sys.modules["whalesong.experiment"]
    monkeypatch.setattr(experiment, "run", run(DataError("`a.tar` is truncated.")))
    assert fails(argv, capsys) == (2, "Error: `a.tar` is truncated.\n")
    monkeypatch.setenv("WHALESONG_TRACEBACK", "1")
    with pytest.raises(DataError):
        main(argv)
    monkeypatch.setattr(experiment, "run", run(KeyboardInterrupt()))
    assert fails(argv, capsys)[0] == 130
    monkeypatch.setattr(experiment, "run", run(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        main(argv)


def test_cfg_prints_instead_of_running(
    jobs: list[DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--cfg", "job", "job_type=train", "model.target=SALM"])
    assert "\nmodel:\n  target: SALM\n" in capsys.readouterr().out
    assert jobs == []


def test_schema_is_exported_for_the_family(
    jobs: list[DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--cfg", "schema", "model.target=SALM"])
    exported = json.loads(capsys.readouterr().out)
    assert exported["properties"]["model"]["$ref"] == "#/$defs/SALMConfig"
    assert "pretrained_llm" in exported["$defs"]["SALMConfig"]["properties"]
    assert jobs == []


def test_schema_of_a_text_job_has_the_sections_that_its_user_writes(
    jobs: list[DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--cfg", "schema", "experiment=star_easy_arlm"])
    exported = json.loads(capsys.readouterr().out)
    schemas = {name: exported["properties"][name] for name in ("model_type", "datamodule", "model")}
    names = [schema["$ref"].rpartition("/")[2] for schema in schemas.values()]
    assert names == ["ModelTypeConfig", "DatamoduleConfig", "TargetConfig"]
    assert "data" not in exported["required"]
    assert jobs == []


def test_script_is_one_job_of_one_family(jobs: list[DictConfig], tmp_path: Path) -> None:
    conf = tmp_path / "scripts" / "own"
    conf.mkdir(parents=True)
    (conf / "mine.yaml").write_text("model: {a: 1}\n", encoding="utf-8")
    script = str(tmp_path / "scripts" / "train.py")
    argv = ["model.b=2", "--config-path=own", "-cn", "mine", "seed=3"]
    main_script(script, job_type="train", default_config="salm", target="SALM", argv=argv)
    (cfg,) = jobs
    assert cfg == {
        "model": {"a": 1, "b": 2, "target": "SALM"},
        "seed": 3,
        "job_type": "train",
    }


def run_python(code: str, folder: Path) -> tuple[float, set[str], str]:
    """CPU seconds, loaded modules and output of a new process."""
    report = "import sys, time; print(time.process_time(), *sys.modules, file=sys.stderr)"
    program = f"import atexit\natexit.register(lambda: exec({report!r}))\n{code}"
    command = [sys.executable, "-c", program]
    out = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    seconds, *modules = out.stderr.splitlines()[-1].split()
    return float(seconds), set(modules), out.stdout


def test_help_is_fast_light_and_useful(tmp_path: Path) -> None:
    code = "from whalesong.cli import main; main(['--help'])"
    seconds, modules, text = run_python(code, tmp_path)
    assert seconds < 1
    assert not HEAVY & modules
    for word in ("job_type=", "experiment=", "debug=", "--config-path", "--cfg"):
        assert word in text


def test_import_is_fast_and_light(tmp_path: Path) -> None:
    seconds, modules, text = run_python("import whalesong; print(dir(whalesong))", tmp_path)
    assert seconds < 0.2  # the interpreter itself takes most of it
    assert not (HEAVY | {"pydantic", "omegaconf"}) & modules
    assert "'SALM'" in text and "'load'" in text


def test_public_names_are_checked() -> None:
    with pytest.raises(AttributeError, match="module 'whalesong' has no attribute 'SLAM'"):
        _ = whalesong.SLAM
