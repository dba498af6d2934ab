"""What `xlm` says of external models, as real processes: texts, exit codes, CPU time, modules."""

import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from fixtures.plugins import CODE, register, write, write_model

HEAVY = {"torch", "nemo", "lightning", "lhotse", "transformers"}
CPU_LIMIT = 1.5

_PROGRAM = """\
import atexit, sys
atexit.register(lambda: print("MODULES", *sys.modules, file=sys.stderr))
from whalesong.cli import main
main()
"""


@dataclass(frozen=True)
class Outcome:
    """What a process left: exit code, texts, CPU seconds, loaded top-level modules."""

    code: int
    out: str
    err: str
    seconds: float
    modules: set[str]


def xlm(folder: Path, *arguments: str, **environ: str) -> Outcome:
    """Run `xlm` in a folder as its own process."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("XLM_")}
    before = _cpu_of_children()
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments],
        cwd=folder,
        env={**inherited, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    err, _, modules = done.stderr.rpartition("MODULES ")
    seconds = _cpu_of_children() - before
    loaded = {name.partition(".")[0] for name in modules.split()}
    return Outcome(done.returncode, done.stdout, err, seconds, loaded)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def fails(outcome: Outcome, code: int, first_line: str) -> str:
    """Check a refusal: exit code, first line, no traceback, light and fast; gives all its text."""
    assert (outcome.code, outcome.err.splitlines()[0]) == (code, first_line), outcome.err
    assert "Traceback" not in outcome.err
    assert not HEAVY & outcome.modules
    assert outcome.seconds < CPU_LIMIT
    return outcome.err


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory with one sound external model."""
    write_model(tmp_path / "my_model", "my_model")
    register(tmp_path, {"my_model": "my_model"})
    return tmp_path


def test_list_shows_models_and_what_they_bring(place: Path) -> None:
    register(place, {"my_model": "my_model", "gone": "gone"})
    write(place / "my_model" / "configs" / "commands.yaml", "report: my_model.model_my_model.f\n")
    outcome = xlm(place, "job_type=list")
    assert outcome.code == 0 and not HEAVY & outcome.modules and outcome.seconds < CPU_LIMIT
    assert "my_model" not in outcome.modules
    for text in (
        f"my_model  directory  {place / 'my_model'} ({place / 'xlm_models.json'})",
        "experiment: star_easy_my_model\n",
        "datamodule: star_easy_my_model\n",
        "commands: report\n",
        f"BROKEN: the folder {place / 'gone'} does not exist\n",
        "Next: xlm job_type=train model=my_model model_type=my_model",
    ):
        assert text in outcome.out


def test_model_not_found(place: Path) -> None:
    """Its experiment lies in the user's own folder, but nobody knows the model."""
    experiment = "# @package _global_\nmodel: {_target_: other_model.model.Model}\n"
    write(place / "conf" / "experiment" / "own.yaml", experiment)
    text = fails(
        xlm(place, "job_type=train", "experiment=own"), 3, "Error: No module named 'other_model'"
    )
    for check in ("xlm_models.json", "XLM_MODELS_PACKAGES", "directory structure", "__init__.py"):
        assert check in text
    assert "Unable to find or instantiate other_model.model.Model (`model._target_`)" in text


def test_duplicate_names(place: Path) -> None:
    write_model(place / "xlm-models" / "second", "my_model")
    register(place / "xlm-models", {"my_model": "second"})
    first_line = "ExternalModelConflictError: Duplicate model name: my_model"
    chosen = ("job_type=train", "model=my_model", "model_type=my_model")
    text = fails(xlm(place, *chosen), 3, first_line)
    first, second = text.splitlines()[1:3]
    assert first == f"  {place / 'my_model'} ({place / 'xlm_models.json'})"
    assert second.startswith(f"  {place / 'xlm-models' / 'second'} (")
    listed = xlm(place, "job_type=list")
    assert (listed.code, listed.err.splitlines()[0]) == (3, first_line)
    assert listed.out.count("CONFLICT: another model has the same name") == 2


def test_config_not_found(place: Path) -> None:
    (place / "my_model" / "configs" / "model" / "my_model.yaml").unlink()
    outcome = xlm(place, "job_type=train", "model=my_model", "model_type=my_model")
    assert outcome.err.startswith(
        "hydra.errors.ConfigCompositionException: Could not find 'model/my_model'"
    )
    text = fails(outcome, 2, outcome.err.splitlines()[0])
    for part in (
        str(place / "my_model" / "configs"),
        "configs/model/my_model.yaml exists",
        "configs/model_type/my_model.yaml exists",
        "valid YAML syntax",
        "`_target_` paths point to correct classes",
    ):
        assert part in text


@pytest.mark.parametrize(
    "target, cause, module",
    [
        (
            "my_model.model_my_model.Modle",
            "ImportError: cannot import name 'Modle' from 'my_model.model_my_model' (FILE);"
            " did you mean `Model`?",
            "my_model.model_my_model",
        ),
        (
            "my_model.modle_my_model.Model",
            "ModuleNotFoundError: No module named 'my_model.modle_my_model';"
            " did you mean `model_my_model`?",
            "my_model.modle_my_model",
        ),
        (
            "abc.xyz.MyClass",
            "ModuleNotFoundError: No module named 'abc.xyz'; 'abc' is not a package",
            "abc.xyz",
        ),
    ],
)
def test_wrong_target_is_found_without_importing_it(
    place: Path, target: str, cause: str, module: str
) -> None:
    file = place / "my_model" / "my_model" / "model_my_model.py"
    chosen = ("job_type=train", "experiment=star_easy_my_model", f"model._target_={target}")
    first_line = f"Error: Unable to find or instantiate {target}: {cause}"
    text = fails(xlm(place, *chosen), 2, first_line.replace("FILE", str(file)))
    name = target.rpartition(".")[2]
    assert f'python -c "from {module} import {name}"' in text


@pytest.mark.parametrize("flat", [False, True])
def test_command_of_a_model_gets_the_config(tmp_path: Path, flat: bool) -> None:
    folder = tmp_path / "models"
    broken = CODE + "raise RuntimeError('a broken neighbour')\n"
    for name, code in (("plug_g", CODE), ("neighbour", broken)):
        configs = write_model(folder / name, name, flat=flat, code=code) / "configs"
        command = {"plug_g": "report", "neighbour": "other"}[name]
        write(configs / "commands.yaml", f"{command}: {name}.model_{name}.report\n")
    register(folder, {"plug_g": "plug_g", "neighbour": "neighbour"})
    chosen = ("experiment=star_easy_plug_g", "extra=5")
    outcome = xlm(tmp_path, "job_type=report", *chosen, XLM_MODELS_PATH=str(folder))
    assert (outcome.code, outcome.out) == (0, "report of report 5\n"), outcome.err
    assert "neighbour" not in outcome.modules
    failed = xlm(tmp_path, "job_type=other", XLM_MODELS_PATH=str(folder))
    assert failed.code == 2
    target = "neighbour.model_neighbour.report"
    assert failed.err.startswith(
        f"Error: Unable to find or instantiate {target}: RuntimeError: a broken neighbour"
    )


def test_help_explains_external_models(tmp_path: Path) -> None:
    outcome = xlm(tmp_path, "--help")
    assert outcome.code == 0 and outcome.seconds < 1 and not HEAVY & outcome.modules
    for word in (
        "job_type=list", "prepare_data", "xlm_models.json", "XLM_MODELS_PATH",
        "XLM_MODELS_PACKAGES", "xlm-scaffold", "debug=", "small_data", "profile",
    ):  # fmt: skip
        assert word in outcome.out


def test_traceback_on_request(place: Path) -> None:
    outcome = xlm(place, "job_type=trian", WHALESONG_TRACEBACK="1")
    assert outcome.code == 1 and "Traceback" in outcome.err
