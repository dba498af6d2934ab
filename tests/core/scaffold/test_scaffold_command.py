"""`xlm-scaffold` writes the tree of the contract and the entry in the json, or nothing at all."""

import ast
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from whalesong.core.errors import DataError
from whalesong.core.scaffold import writing
from whalesong.core.scaffold.command import main

NAME = "my_awesome_model"
TREE = f"""\
{NAME}/README.md
{NAME}/configs/collator/default_{NAME}.yaml
{NAME}/configs/collator/seq2seq_{NAME}.yaml
{NAME}/configs/collator/seq2seq_pred_{NAME}.yaml
{NAME}/configs/commands.yaml
{NAME}/configs/datamodule/star_easy_{NAME}.yaml
{NAME}/configs/datamodule/text_{NAME}.yaml
{NAME}/configs/experiment/star_easy_{NAME}.yaml
{NAME}/configs/model/{NAME}.yaml
{NAME}/configs/model_type/{NAME}.yaml
{NAME}/{NAME}/__init__.py
{NAME}/{NAME}/datamodule_{NAME}.py
{NAME}/{NAME}/loss_{NAME}.py
{NAME}/{NAME}/metrics_{NAME}.py
{NAME}/{NAME}/model_{NAME}.py
{NAME}/{NAME}/predictor_{NAME}.py
{NAME}/{NAME}/types_{NAME}.py
{NAME}/setup.py
{NAME}/tests/test_{NAME}.py
xlm_models.json
""".split()
CODE = [path for path in TREE if path.startswith(f"{NAME}/{NAME}/")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no other place where models are looked for."""
    for variable in ("XLM_MODELS_PATH", "XLM_MODELS_PACKAGES"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> list[str]:
    """Paths of all files below a folder, hidden ones, too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command ends."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    out = capsys.readouterr()
    assert (caught.value.code, out.out) == (2, "")
    assert out.err.startswith("Error: ") and out.err.count("\n") == 1
    return out.err


def test_writes_the_tree_and_nothing_else(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([NAME])
    assert files(place) == sorted(TREE)
    assert json.loads((place / "xlm_models.json").read_text("utf-8")) == {NAME: NAME}
    out = capsys.readouterr().out
    assert all(f"  {path}\n" in out for path in TREE)
    assert f"  xlm job_type=train job_name=my_model_test experiment=star_easy_{NAME}" in out


def test_every_file_of_code_tells_what_to_do(place: Path) -> None:
    main([NAME])
    for path in CODE:
        text = (place / path).read_text("utf-8")
        tree = ast.parse(text)
        defined = [tree, *(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef))]
        assert all(ast.get_docstring(node) for node in defined), path
        assert "TODO" in text or path.endswith("__init__.py"), path
    texts = [(place / path).read_text("utf-8") for path in TREE]
    assert not [text for text in texts if "{{" in text or "NAME" in text]


@pytest.mark.parametrize("name", [NAME, "x"])
def test_code_is_in_the_form_of_the_house(place: Path, name: str) -> None:
    main([name])
    ruff = [sys.executable, "-m", "ruff"]
    options = ["--isolated", "--line-length", "100"]
    select = ["--select", "E,F,I,UP,B,A005"]
    subprocess.run([*ruff, "check", *options, *select, "."], check=True)
    if name == NAME:
        subprocess.run([*ruff, "format", "--check", *options, "."], check=True)


def test_dry_run_lists_exactly_what_is_written(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([NAME, "--dry-run"])
    listed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert sorted(line.strip() for line in listed) == sorted(TREE)
    assert files(place) == []


def test_output_dir_holds_the_json_too(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([NAME, "--output-dir", "models/mine"])
    assert files(place) == sorted(f"models/mine/{path}" for path in TREE)
    assert f"  export XLM_MODELS_PATH={place}/models/mine\n" in capsys.readouterr().out
    main(["other", "--output-dir", "xlm-models"])  # a folder that is searched anyway
    assert "export" not in capsys.readouterr().out


def test_json_keeps_what_it_has(place: Path) -> None:
    (place / "real.json").write_text('{\n    "old": "some/path"\n}\n', encoding="utf-8")
    (place / "real.json").chmod(0o640)
    (place / "xlm_models.json").symlink_to("real.json")
    main([NAME])
    text = (place / "real.json").read_text("utf-8")
    assert text == f'{{\n    "old": "some/path",\n    "{NAME}": "{NAME}"\n}}\n'
    assert (place / "xlm_models.json").is_symlink()
    assert (place / "real.json").stat().st_mode & 0o777 == 0o640


def test_nothing_is_overwritten(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "one").mkdir()
    (place / "two").write_text("mine", encoding="utf-8")
    (place / "three").symlink_to("nowhere")
    (place / "four" / "configs").mkdir(parents=True)
    before = files(place)
    for name in ("one", "two", "three", "four"):
        assert f"{name}: exists already, and nothing is overwritten" in refused([name], capsys)
    assert files(place) == before
    main([NAME])
    capsys.readouterr()
    (place / NAME / "README.md").write_text("mine", encoding="utf-8")
    assert "is that of a model that there is already" in refused([NAME], capsys)
    (place / "xlm_models.json").unlink()
    assert "exists already" in refused([NAME], capsys)
    assert (place / NAME / "README.md").read_text("utf-8") == "mine"


def test_broken_json_stops_it_before_anything_is_written(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "xlm_models.json").write_text('{"a": ', encoding="utf-8")
    assert "xlm_models.json: is not valid JSON: " in refused([NAME], capsys)
    assert files(place) == ["xlm_models.json"]


def test_names_of_known_models_are_refused_wherever_they_are(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "'mdlm' is that of a model" in refused(["mdlm"], capsys)
    main(["elsewhere", "--output-dir", str(place / "shared")])
    monkeypatch.setenv("XLM_MODELS_PATH", str(place / "shared"))
    capsys.readouterr()
    assert "'elsewhere' is that of a model" in refused(["elsewhere"], capsys)
    message = refused(["pred_elsewhere"], capsys)
    assert "shared/elsewhere/configs/collator/seq2seq_pred_elsewhere.yaml: exists" in message
    assert "conf/collator/default_pred_arlm.yaml: exists" in refused(["pred_arlm"], capsys)


def test_output_dir_must_be_a_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "file").write_text("", encoding="utf-8")
    message = refused([NAME, "--output-dir", "file/below"], capsys)
    assert message == "Error: file: is no folder, so nothing can be written below it.\n"


def test_failing_write_leaves_nothing(place: Path) -> None:
    planned = writing.plan(NAME, place)
    (place / "xlm_models.json").mkdir()  # made by somebody else meanwhile
    with pytest.raises(DataError, match="is a folder"):
        writing.write(planned)
    assert files(place) == []
    assert [path.name for path in place.iterdir()] == ["xlm_models.json"]


def test_command_is_light(place: Path) -> None:
    heavy = "{'torch', 'nemo', 'lightning', 'hydra', 'transformers'}"
    code = (
        f"import sys; from whalesong.core.scaffold.command import main; main(['{NAME}']);"
        f" assert not {heavy} & set(sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1.0
    assert files(place) == sorted(TREE)
