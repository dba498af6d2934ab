"""Installed models: wheels and editable installations, by variable and by entry point."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.plugins import register, write, write_model, write_setup

DOCUMENTED_SETUP = """\
from setuptools import setup
setup(
    name="plug_dev",
    packages=["plug_dev"],
    package_data={"plug_dev": ["configs/**/*.yaml", "configs/**/*.yml"]},
    include_package_data=True,
)
"""


def install(root: Path, site: Path, *options: str) -> None:
    """Install a project into a folder that stands for site-packages."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    offline = ["--no-index", "--disable-pip-version-check", "--target", str(site)]
    subprocess.run([*pip, *offline, *options, str(root)], check=True, capture_output=True)


def xlm(folder: Path, site: Path, *arguments: str, **environ: str) -> str:
    """Output of a successful `xlm` of an environment with that folder of packages."""
    program = f"import site; site.addsitedir({str(site)!r})\nfrom whalesong.cli import main; main()"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("XLM_")}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        env={**inherited, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages: one model with an entry point, one without; sources are elsewhere."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("plug_point", "plug_plain"):
        root = write_model(folder / name, name)
        write(root / "configs" / "commands.yaml", f"say_{name}: {name}.model_{name}.report\n")
        write_setup(root, name, entry_point=name == "plug_point")
        install(root, folder / "site")
    return folder / "site"


def test_entry_point_is_found_and_the_variable_finds_the_rest(wheels: Path, tmp_path: Path) -> None:
    listed = xlm(tmp_path, wheels, "job_type=list")
    assert f"plug_point  entry point  {wheels / 'plug_point'} (installed by plug_point)" in listed
    assert "experiment: star_easy_plug_point" in listed
    assert "plug_plain" not in listed
    both = xlm(tmp_path, wheels, "job_type=list", XLM_MODELS_PACKAGES="plug_plain:plug_point")
    assert f"plug_plain  package  {wheels / 'plug_plain'} (XLM_MODELS_PACKAGES)" in both
    assert both.count("\nplug_point ") == 1 and "CONFLICT" not in both


def test_configs_and_commands_of_a_wheel_work_from_any_folder(wheels: Path, tmp_path: Path) -> None:
    chosen = ("model=plug_plain", "model_type=plug_plain", "extra=1")
    variable = {"XLM_MODELS_PACKAGES": "plug_plain"}
    said = xlm(tmp_path, wheels, "job_type=say_plug_plain", *chosen, **variable)
    assert said == "report of say_plug_plain 1\n"
    composed = xlm(tmp_path, wheels, "--cfg", "job", "job_type=train", *chosen, **variable)
    assert "block_size: 14" in composed
    assert xlm(tmp_path, wheels, "job_type=say_plug_point") == "report of say_plug_point None\n"


def test_editable_installation_beside_json_and_variable_is_one_model(tmp_path: Path) -> None:
    """From the folder above, the root looks like a namespace package and hides the real one."""
    root = write_model(tmp_path / "plug_dev", "plug_dev")
    write(root / "setup.py", DOCUMENTED_SETUP)
    write(root / "configs" / "commands.yaml", "say: plug_dev.model_plug_dev.report\n")
    install(root, tmp_path / "site", "-e")
    variable = {"XLM_MODELS_PACKAGES": "plug_dev"}
    listed = xlm(tmp_path, tmp_path / "site", "job_type=list", **variable)
    assert f"plug_dev  package  {root} (XLM_MODELS_PACKAGES)" in listed
    assert xlm(tmp_path, tmp_path / "site", "job_type=say", **variable) == "report of say None\n"
    register(tmp_path, {"plug_dev": "plug_dev"})
    listed = xlm(tmp_path, tmp_path / "site", "job_type=list", **variable)
    assert f"plug_dev  directory  {root} ({tmp_path / 'xlm_models.json'})" in listed
    assert "CONFLICT" not in listed
    assert xlm(tmp_path, tmp_path / "site", "job_type=say", **variable) == "report of say None\n"
