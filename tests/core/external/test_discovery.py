"""Models are found in folders and packages, and what is wrong with one stays with that one."""

import sys
from pathlib import Path

import pytest
from fixtures.plugins import register, write, write_model

from whalesong.core.errors import ExternalModelConflictError, ModelNotFoundError
from whalesong.core.external import CORE_MODELS, Registry, discover
from whalesong.core.external.listing import listing
from whalesong.core.external.yaml_files import targets_of


def found(folder: Path, **environ: str) -> Registry:
    return discover(folder=folder, environ=environ)


def externals(registry: Registry) -> list[str]:
    return [name for name in registry.models if name not in CORE_MODELS]


def test_core_models_need_no_registration(tmp_path: Path) -> None:
    registry = found(tmp_path)
    assert list(registry.models) == list(CORE_MODELS)
    assert {model.origin for model in registry.models.values()} == {"core"}
    assert registry.config_roots() == []
    assert registry.get("arlm").name == "arlm"


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("place", [".", "xlm-models", "elsewhere"])
def test_both_layouts_are_found_in_every_search_folder(
    tmp_path: Path, flat: bool, place: str
) -> None:
    folder = tmp_path / place
    write_model(folder / "sub" / "plug_a", "plug_a", flat=flat)
    register(folder, {"plug_a": "sub/plug_a"})
    model = found(tmp_path, XLM_MODELS_PATH=f"/nowhere:{tmp_path / 'elsewhere'}").get("plug_a")
    assert model.root == folder / "sub" / "plug_a"
    assert model.import_path == (model.root.parent if flat else model.root)
    assert model.configs == model.root / "configs"
    assert (model.origin, model.problem) == ("directory", None)
    assert model.found_by == str(folder / "xlm_models.json")


def test_paths_are_relative_to_the_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "models" / "plug_b", "plug_b")
    register(tmp_path / "json", {"plug_b": "../models/plug_b"})
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    registry = discover(environ={"XLM_MODELS_PATH": "../json"})
    assert registry.get("plug_b").root == tmp_path / "models" / "plug_b"


def test_configs_may_lie_in_lightning_train(tmp_path: Path) -> None:
    root = write_model(tmp_path / "plug_c", "plug_c", configs="configs/lightning_train")
    register(tmp_path, {"plug_c": "plug_c"})
    registry = found(tmp_path)
    inner = root / "configs" / "lightning_train"
    assert registry.get("plug_c").config_folders == [inner, root / "configs"]
    assert registry.config_roots() == [inner, root / "configs"]
    assert targets_of(registry.get("plug_c")) == {
        "plug_c.model_plug_c.Model",
        "plug_c.model_plug_c.Loss",
    }


def test_same_real_path_twice_is_one_model(tmp_path: Path) -> None:
    write_model(tmp_path / "plug_d", "plug_d")
    register(tmp_path, {"plug_d": "plug_d"})
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "again").mkdir()
    register(tmp_path / "again", {"plug_d": "../plug_d"})
    registry = found(tmp_path, XLM_MODELS_PATH=f"{tmp_path / 'link'}:{tmp_path / 'again'}")
    assert registry.get("plug_d").found_by == str(tmp_path / "xlm_models.json")
    assert registry.conflicts == {}


def test_same_name_at_two_paths_is_a_conflict(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "xlm-models"):
        write_model(folder / "my_model", "my_model")
        register(folder, {"my_model": "my_model"})
    registry = found(tmp_path)
    with pytest.raises(ExternalModelConflictError) as caught:
        registry.get("my_model")
    first, second = tmp_path / "my_model", tmp_path / "xlm-models" / "my_model"
    assert str(caught.value).splitlines() == [
        "Duplicate model name: my_model",
        f"  {first} ({tmp_path / 'xlm_models.json'})",
        f"  {second} ({tmp_path / 'xlm-models' / 'xlm_models.json'})",
    ]


def test_core_name_elsewhere_is_a_conflict(tmp_path: Path) -> None:
    write_model(tmp_path / "arlm", "arlm")
    write_model(tmp_path / "fine", "fine")
    register(tmp_path, {"arlm": "arlm", "fine": "fine"})
    registry = found(tmp_path)
    with pytest.raises(ExternalModelConflictError, match="^Duplicate model name: arlm\n"):
        registry.get("arlm")
    assert registry.get("fine").problem is None


@pytest.mark.parametrize("second", ["one", "two"])
def test_repeated_key_of_one_json_is_a_conflict(tmp_path: Path, second: str) -> None:
    for name in ("one", "two"):
        write_model(tmp_path / name, "twice")
    text = f'{{"twice": "one", "twice": "{second}"}}'
    write(tmp_path / "xlm_models.json", text)
    with pytest.raises(ExternalModelConflictError) as caught:
        found(tmp_path).get("twice")
    assert str(caught.value).count("\n") == 2


BROKEN = {
    "gone": "the folder ROOT/gone does not exist",
    "no_init": "ROOT/no_init/no_init has no __init__.py",
    "empty": "ROOT/empty holds no Python package empty (a folder empty with an __init__.py)",
    "renamed": "ROOT/renamed_folder is a package called renamed_folder, but has to be called"
    " renamed",
    "no_configs": "ROOT/no_configs has no folder configs",
    "bad-name": "'bad-name' is no name that Python can import",
    "class": "'class' is no name that Python can import",
    "json": "its name is that of a module of Python itself; rename the model",
    "number": "its value must be a path, but is 3",
}


def write_broken(folder: Path) -> None:
    """A search folder with one sound model and one of each kind of broken ones."""
    (folder / "no_init" / "no_init").mkdir(parents=True)
    (folder / "empty").mkdir()
    write(folder / "no_configs" / "no_configs" / "__init__.py", "")
    write(folder / "renamed_folder" / "__init__.py", "")
    for name in ("bad-name", "class", "json", "sound_one"):
        write_model(folder / name, name)
    paths = {name: name for name in BROKEN} | {"renamed": "renamed_folder", "number": 3}
    register(folder, {**paths, "sound_one": "sound_one"})


def test_broken_models_tell_why_and_stop_no_other(tmp_path: Path) -> None:
    write_broken(tmp_path)
    registry = found(tmp_path)
    assert registry.get("sound_one").problem is None
    for name, problem in BROKEN.items():
        assert registry.models[name].problem == problem.replace("ROOT", str(tmp_path))
        with pytest.raises(ModelNotFoundError) as caught:
            registry.get(name)
        assert problem.replace("ROOT", str(tmp_path)) in "\n".join(caught.value.__notes__)
    table = listing(registry)
    assert table.count("BROKEN: ") == len(BROKEN)


def test_name_of_an_installed_module_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "torch", "torch")
    register(tmp_path, {"torch": "torch"})
    problem = found(tmp_path).models["torch"].problem
    assert problem.startswith("its name is that of an installed module, ")


@pytest.mark.parametrize(
    "text, problem",
    [
        ('{"a": "b",\n', "is not valid JSON, line 2: "),
        ('["a"]', 'must hold one object, {"name": "path"}'),
        ('[["a", "b"]]', 'must hold one object, {"name": "path"}'),
    ],
)
def test_broken_json_is_reported_and_stops_no_other(
    tmp_path: Path, text: str, problem: str
) -> None:
    write(tmp_path / "xlm_models.json", text)
    write_model(tmp_path / "xlm-models" / "plug_e", "plug_e")
    register(tmp_path / "xlm-models", {"plug_e": "plug_e"})
    registry = found(tmp_path)
    assert registry.get("plug_e").problem is None
    assert len(registry.problems) == 1
    assert registry.problems[0].startswith(f"{tmp_path / 'xlm_models.json'} {problem}")
    assert registry.problems[0] in listing(registry)


def test_folder_of_the_variable_without_json_is_reported(tmp_path: Path) -> None:
    registry = found(tmp_path, XLM_MODELS_PATH=f"{tmp_path / 'nowhere'}::")
    (problem,) = registry.problems
    assert problem.startswith(f"XLM_MODELS_PATH names {tmp_path / 'nowhere'}, but ")


def test_unknown_name_tells_where_was_searched(tmp_path: Path) -> None:
    write_model(tmp_path / "my_model", "my_model")
    register(tmp_path, {"my_model": "my_model"})
    with pytest.raises(ModelNotFoundError) as caught:
        found(tmp_path).get("my_modle")
    assert str(caught.value) == "No module named 'my_modle'"
    notes = "\n".join(caught.value.__notes__)
    for text in ("did you mean `my_model`?", str(tmp_path / "xlm_models.json"), "__init__.py"):
        assert text in notes


def test_packages_that_are_none_are_broken_models(tmp_path: Path) -> None:
    registry = found(tmp_path, XLM_MODELS_PACKAGES="not_there:my-model:json:typing_extensions")
    assert registry.models["not_there"].problem == (
        "no package not_there is installed in this environment"
    )
    assert registry.models["my-model"].problem.endswith("did you mean `my_model`?")
    assert registry.models["json"].problem.startswith("its name is that of a module of Python")
    assert registry.models["typing_extensions"].problem.endswith("has to be a package, a folder")
    assert "no package not_there" in listing(registry)


def test_core_models_may_stand_in_the_variable(tmp_path: Path) -> None:
    registry = found(tmp_path, XLM_MODELS_PACKAGES="arlm:mlm")
    assert registry.conflicts == {}
    assert registry.get("arlm").origin == "core"


def test_discovery_imports_nothing(tmp_path: Path) -> None:
    write_model(tmp_path / "plug_f", "plug_f", code="raise SystemExit('imported')\n")
    write(tmp_path / "plug_f" / "plug_f" / "__init__.py", "raise SystemExit('imported')\n")
    register(tmp_path, {"plug_f": "plug_f"})
    before = set(sys.modules)
    path = list(sys.path)
    registry = found(tmp_path)
    assert registry.get("plug_f").problem is None
    assert "plug_f" not in sys.modules and sys.path == path
    assert not {"torch", "nemo"} & (set(sys.modules) - before)
    assert externals(registry) == ["plug_f"]
