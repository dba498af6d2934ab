"""The quick start of the contract, word for word; and the life of a model after it."""

import json
import os
import re
import resource
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

NAME = "my_awesome_model"
XLM = ("-c", "from whalesong.cli import main; main()")
SCAFFOLD = ("-m", "whalesong.core.scaffold.command")
CONFIGS = {"commands.yaml", "model", "model_type", "collator", "datamodule", "experiment"}


def run(
    folder: Path, *arguments: str, environ: Mapping[str, str] | None = None
) -> tuple[str, float]:
    """Output and CPU seconds of a successful command in a folder."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("XLM_")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**inherited, **(environ or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a model was scaffolded."""
    folder = tmp_path_factory.mktemp("models")
    run(folder, *SCAFFOLD, NAME)
    return folder


@pytest.fixture(scope="module")
def wheel(place: Path) -> Path:
    """The wheel that the model's setup.py builds."""
    out = place / "wheels"
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    run(place, "-m", "pip", "wheel", "-q", *options, "-w", str(out), f"./{NAME}")
    (built,) = out.glob("*.whl")
    return built


def test_model_learns_before_a_line_is_edited(place: Path) -> None:
    job = ["job_type=train", "job_name=my_model_test", f"experiment=star_easy_{NAME}"]
    out, seconds = run(place, *XLM, *job, "debug=overfit")
    losses = [float(value) for value in re.findall(r"[ ,]loss=([0-9.]+)", out)]
    assert losses[-1] < losses[0] / 10
    assert re.search(r"Stopped at step \d+: val_exact_match 1 reached\.", out)
    assert "val_exact_match 1.0000" in out
    assert seconds < 60
    assert not list(place.rglob("*=*"))  # names that the command line takes as they are


def test_wheel_holds_the_code_and_the_yaml(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    code = {name.split("/")[1] for name in names if name.endswith(".py")}
    parts = ("types", "model", "loss", "predictor", "datamodule", "metrics")
    assert code == {"__init__.py", *(f"{part}_{NAME}.py" for part in parts)}
    configs = {name.split("/")[2] for name in names if name.startswith(f"{NAME}/configs/")}
    assert configs == CONFIGS
    assert {name.split("/")[0] for name in names} == {NAME, f"{NAME}-0.1.0.dist-info"}
    points = zipfile.ZipFile(wheel).read(f"{NAME}-0.1.0.dist-info/entry_points.txt").decode()
    assert points.split() == ["[whalesong.models]", NAME, "=", NAME]


@pytest.mark.slow
def test_command_line_form_trains_evaluates_and_predicts(place: Path) -> None:
    choices = [f"model={NAME}", f"model_type={NAME}"]
    few = ["trainer.max_steps=3", "trainer.val_check_interval=3", "trainer.limit_val_batches=1"]
    out, _ = run(place, *XLM, "job_type=train", *choices, *few)
    (archive,) = place.glob("logs/train/**/*.nemo")
    assert f"Archive: {archive.relative_to(place)}" in out
    given = [f"eval.ckpt_path={archive}", "datamodule.test_ds.input_cfg.0.num_examples=8"]
    out, _ = run(place, *XLM, "job_type=eval", *choices, *given)
    assert re.search(r"test: loss [0-9.]+, acc [0-9.]+, exact_match [0-9.]+, token_accuracy", out)
    asked = ['predict.prompts=["4 7 7 2 4 2","1 2 1 2"]', "predict.output_file=answers.jsonl"]
    run(place, *XLM, "job_type=predict", f"predict.ckpt_path={archive}", *asked)
    rows = [json.loads(line) for line in (place / "answers.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["4 7 7 2 4 2", "1 2 1 2"]
    assert all(row["text"] == out_text(row) for row in rows)
    out, _ = run(place, *XLM, f"job_type=count_parameters_{NAME}", f"experiment=star_easy_{NAME}")
    assert out == "598,528 parameters\n"


def out_text(row: dict) -> str:
    """What a row of the tokenizer of numbers says: seven special tokens come before 0."""
    return " ".join(str(token - 7) for token in row["ids"] if token >= 7)


@pytest.mark.slow
def test_generated_test_passes_from_any_folder(place: Path, tmp_path: Path) -> None:
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(place / NAME / "tests")]
    out, _ = run(tmp_path, *tests)
    assert "1 passed" in out


@pytest.mark.slow
def test_trained_on_plain_texts(place: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be\nthat is the question\n" * 20, encoding="utf-8")
    choices = [f"model={NAME}", f"model_type={NAME}", f"datamodule=text_{NAME}"]
    files = [f"datamodule.{part}_ds.input_cfg.0.paths={text}" for part in ("train", "validation")]
    few = ["trainer.max_steps=20", "trainer.val_check_interval=20", "job_name=text"]
    run(place, *XLM, "job_type=train", *choices, *files, *few)
    out, _ = run(place, *XLM, "job_type=predict", "job_name=text", "predict.num_samples=2")
    assert len(out.strip().splitlines()) >= 1


@pytest.mark.slow
def test_installed_wheel_trains_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    options = ["--no-deps", "--no-index", "--disable-pip-version-check", "--target", str(site)]
    run(tmp_path, "-m", "pip", "install", "-q", *options, str(wheel))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = {"PYTHONPATH": path, "XLM_MODELS_PACKAGES": NAME}
    choices = [f"model={NAME}", f"model_type={NAME}", "trainer.max_steps=3"]
    out, _ = run(elsewhere, *XLM, "job_type=train", *choices, environ=environ)
    assert "Archive: logs/train" in out
    assert list(elsewhere.glob("logs/train/**/*.nemo"))


@pytest.mark.slow
def test_editable_install_is_found_from_another_folder(place: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    run(tmp_path, "-m", "venv", "--system-site-packages", "--without-pip", str(venv))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    prefix = ["--prefix", str(venv), "--ignore-installed"]
    run(place, "-m", "pip", "install", "-q", *options, *prefix, "-e", f"./{NAME}")
    (site,) = venv.glob("lib/python*/site-packages")
    (tmp_path / "elsewhere").mkdir()
    program = f"import site; site.addsitedir({str(site)!r}); {XLM[1]}"
    out, _ = run(tmp_path / "elsewhere", "-c", program, "job_type=list")
    assert re.search(rf"{NAME} +entry point", out)
    assert f"experiment: star_easy_{NAME}" in out
