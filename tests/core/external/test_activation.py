"""Code of a model is imported only when it is used, and only what its YAML names may be built."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.plugins import register, write, write_model

from whalesong.core.errors import ConfigError, ExternalModelConflictError, ModelNotFoundError
from whalesong.core.external import activate, activate_for, discover
from whalesong.core.instantiate import allowed_targets, check_targets, instantiate


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The working directory."""
    return tmp_path


def network(name: str, cls: str = "Model") -> dict:
    return {"network": {"_target_": f"{name}.model_{name}.{cls}", "width": 7}}


@pytest.mark.parametrize("flat", [False, True])
def test_classes_of_a_found_model_can_be_built(place: Path, flat: bool) -> None:
    name = f"act_{'flat' if flat else 'nested'}"
    write_model(place / "sub" / name, name, flat=flat)
    register(place, {name: f"sub/{name}"})
    config = network(name)
    with pytest.raises(ConfigError, match="is not an allowed class"):
        check_targets(config)
    (model,) = activate_for(config)
    assert name not in sys.modules
    assert sys.path[0] == str(model.import_path)
    assert instantiate(config["network"]).width == 7
    assert activate_for(config) == [model]
    assert sys.path.count(str(model.import_path)) == 1


def test_only_what_its_yaml_names_is_allowed_but_for_the_users_own_config(place: Path) -> None:
    write_model(place / "act_exact", "act_exact")
    write(place / "act_exact" / "act_exact" / "more.py", "class Other: pass\n")
    register(place, {"act_exact": "act_exact"})
    other = {"x": {"_target_": "act_exact.more.Other"}}
    activate_for(other, source="x.nemo")
    activate_for(other)
    assert "act_exact.model_act_exact.Model" in allowed_targets()
    with pytest.raises(ConfigError, match="'act_exact.more.Other' is not an allowed class"):
        check_targets(other)
    activate_for(other, composed=True)
    check_targets(other)


def test_archive_without_its_model_says_which_one_is_missing(place: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        activate_for(network("my_awesome_model"), source="x.nemo")
    assert str(caught.value) == (
        "x.nemo: No module named 'my_awesome_model', the model that wrote it; make it known by an"
        " xlm_models.json, XLM_MODELS_PATH or XLM_MODELS_PACKAGES."
    )
    assert caught.value.exit_code == 3


def test_archive_of_a_broken_model_tells_both(place: Path) -> None:
    register(place, {"act_gone": "act_gone"})
    with pytest.raises(ModelNotFoundError, match="^No module named 'act_gone'") as caught:
        activate_for(network("act_gone"), source="x.nemo")
    notes = "\n".join(caught.value.__notes__)
    assert "does not exist" in notes and "Needed by x.nemo." in notes


def test_other_classes_are_left_to_the_allow_list(place: Path) -> None:
    config = {"a": {"_target_": "os.system"}, "b": {"_target_": "torch.optim.AdamW"}}
    assert activate_for(config, source="x.nemo") == []
    with pytest.raises(ConfigError, match="'os.system' is not an allowed class"):
        check_targets(config)


def test_broken_model_called_like_a_library_does_not_stop_its_classes(place: Path) -> None:
    write_model(place / "torch", "torch")
    register(place, {"torch": "torch"})
    assert activate_for({"optimizer": {"_target_": "torch.optim.AdamW"}}) == []


def test_conflict_shows_when_the_model_is_used(place: Path) -> None:
    for folder in (place, place / "xlm-models"):
        write_model(folder / "act_twice", "act_twice")
        register(folder, {"act_twice": "act_twice"})
    assert activate_for({"x": 1}) == []
    with pytest.raises(ExternalModelConflictError, match="Duplicate model name: act_twice"):
        activate_for(network("act_twice"))


def test_interpolations_are_left_alone(place: Path) -> None:
    from omegaconf import OmegaConf

    cfg = OmegaConf.create({"a": {"_target_": "${b}"}, "b": "???", "c": "${nowhere}"})
    assert activate_for(cfg) == []


def test_namespace_package_in_the_way_is_dropped(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the folder above, the model's root looks like a package without `__init__.py`."""
    write_model(place / "act_trap", "act_trap")
    register(place, {"act_trap": "act_trap"})
    monkeypatch.syspath_prepend(str(place))
    assert importlib.import_module("act_trap").__file__ is None
    activate(discover().get("act_trap"))
    assert instantiate(network("act_trap")["network"]).width == 7


def test_process_keeps_to_one_model_of_a_name(place: Path) -> None:
    for folder in ("one", "two"):
        write_model(place / folder / "act_moved", "act_moved")
        register(place / folder, {"act_moved": "act_moved"})
    activate(discover(folder=place / "one").get("act_moved"))
    importlib.import_module("act_moved")
    sys.path.remove(str(place / "one" / "act_moved"))
    with pytest.raises(ConfigError, match="but this process has imported"):
        activate(discover(folder=place / "two").get("act_moved"))


def test_failing_import_names_class_cause_and_line(place: Path) -> None:
    write_model(place / "act_fails", "act_fails", code="import act_nowhere\nclass Model: pass\n")
    register(place, {"act_fails": "act_fails"})
    config = network("act_fails")["network"]
    activate_for(config)
    with pytest.raises(ConfigError) as caught:
        instantiate(config)
    file = place / "act_fails" / "act_fails" / "model_act_fails.py"
    assert str(caught.value) == (
        "Unable to find or instantiate act_fails.model_act_fails.Model:"
        f" ModuleNotFoundError: No module named 'act_nowhere' ({file}, line 1)"
    )
    assert 'python -c "from act_fails.model_act_fails import Model"' in caught.value.__notes__[-1]


SPAWNING = """
import multiprocessing, sys
from whalesong.core.external import activate, discover

def work():
    from act_spawn.model_act_spawn import Model
    print("width", Model().width, flush=True)

if __name__ == "__main__":
    activate(discover().get("act_spawn"))
    process = multiprocessing.get_context("spawn").Process(target=work)
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


def test_spawned_workers_can_import_the_model(place: Path) -> None:
    write_model(place / "models" / "act_spawn", "act_spawn")
    register(place, {"act_spawn": "models/act_spawn"})
    script = write(place / "scripts" / "spawn.py", SPAWNING)
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True)
    assert done.stdout == "width 1\n"
