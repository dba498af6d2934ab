"""What is shipped: one package with all YAML in it; and what it needs is declared."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("collections", "conf", "setup.py", "pyproject.toml", "constraints.txt", "LICENSE")

# Import name -> distribution, where they differ.
DISTRIBUTIONS = {
    "espeakng_loader": "espeakng-loader",
    "hydra": "hydra-core",
    "nemo": "nemo_toolkit",
    "yaml": "pyyaml",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the checkout."""
    copy = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=ignored)
        else:
            shutil.copy(source, copy / name)
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", "out"]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    (built,) = (copy / "out").glob("*.whl")
    return built


def requirements(name: str) -> set[str]:
    """The distribution names in a list of setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            items = [item.value for item in node.value.elts if isinstance(item, ast.Constant)]
            return {re.split(r"[\[<>=]", item)[0].lower() for item in items}
    raise AssertionError(f"setup.py has no list {name}")


def test_wheel_holds_one_package_with_all_yaml(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"whalesong"}
    shipped = {name for name in names if name.startswith("whalesong/conf/")}
    own = {f"whalesong/{file.relative_to(ROOT)}" for file in (ROOT / "conf").rglob("*.yaml")}
    assert shipped == own
    sources = ROOT / "collections"
    templates = {str(file.relative_to(sources)) for file in sources.rglob("*.tmpl")}
    assert len(templates) > 10 and templates <= set(names)
    modules = {name for name in names if name.endswith(".py")}
    files = (ROOT / "collections").rglob("*.py")
    assert modules == {str(file.relative_to(ROOT / "collections")) for file in files}


def test_installed_package_finds_its_conf_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "from whalesong.cli import main; main()"
    command = [sys.executable, "-c", code, "--cfg", "job", "job_type=train", "debug=overfit"]
    (tmp_path / "elsewhere").mkdir()
    out = subprocess.run(
        command,
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "overfit_batches: 1" in out.stdout


def test_source_root_is_no_package() -> None:
    assert not (ROOT / "collections" / "__init__.py").exists()  # it would shadow the stdlib
    folders = {file.parent for file in (ROOT / "collections" / "whalesong").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_what_is_imported_is_declared() -> None:
    imported = set()
    for file in (ROOT / "collections").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"whalesong"}
    needed = {DISTRIBUTIONS.get(name, name) for name in foreign}
    assert needed - requirements("REQUIRES") - requirements("PHONEMES") == set()


def test_constraints_pin_what_is_declared() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().split("==") for line in lines if "==" in line)
    declared = requirements("REQUIRES") | requirements("TEST") | requirements("DEV")
    assert declared - set(pins) == set()
    assert pins["torch"].endswith("+cpu")


def test_contributing_gives_a_reason_for_each_dependency() -> None:
    text = (ROOT / "CONTRIBUTING.rst").read_text(encoding="utf-8").lower()
    declared = requirements("REQUIRES") | requirements("TEST") | requirements("DEV")
    assert [name for name in sorted(declared) if f"``{name}``" not in text] == []


def test_tools_agree_on_the_line_length() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert tools["ruff"]["line-length"] == 100
    assert set(tools["ruff"]["lint"]["select"]) == {"E", "F", "I", "UP", "B", "A005"}


@pytest.mark.slow
def test_clean_environment_installs_and_answers(tmp_path: Path) -> None:
    environment = tmp_path / "env"
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run([ROOT / ".ci" / "environment", environment], check=True, env=clean)
    xlm = environment / "bin" / "xlm"
    out = subprocess.run([xlm, "--help"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "job_type=" in out.stdout
    heavy = "import nemo.collections.asr, lhotse, peft, transformers, whalesong.core.config.job"
    subprocess.run([environment / "bin" / "python", "-c", heavy], check=True, cwd=tmp_path)
