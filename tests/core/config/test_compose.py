"""Configs are found where they should be, and overrides mean the same with and without `+`."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from whalesong.core.config.compose import compose, config_roots, packaged_conf
from whalesong.core.errors import ConfigError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a small config folder of its own."""
    conf = tmp_path / "work" / "conf"
    write(conf / "main.yaml", "defaults:\n  - _self_\n  - experiment: null\n\na: 1\nb: {c: null}\n")
    write(conf / "experiment" / "first.yaml", "# @package _global_\na: 2\nitems:\n  - {x: 1}\n")
    write(conf / "experiment" / "sub" / "deep.yaml", "# @package _global_\na: 3\n")
    write(conf / "extra" / "one.yaml", "k: 1\n")
    write(conf / "extra" / "two.yaml", "l: 2\n")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def composed(*overrides: str) -> dict:
    return OmegaConf.to_container(compose("main", overrides=overrides))


def test_plain_override_sets_or_adds(place: Path) -> None:
    base = {"a": 1, "b": {"c": None}}
    assert composed() == base
    assert composed("a=5", "b.c.d=x", "new.key=[1,2]") == {
        "a": 5,
        "b": {"c": {"d": "x"}},
        "new": {"key": [1, 2]},
    }
    assert composed("~b", "new=null") == {"a": 1, "new": None}


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_prefixes_mean_the_same(place: Path, prefix: str) -> None:
    assert composed(f"{prefix}a=5", f"{prefix}z.y=6", f"{prefix}experiment=first") == {
        "a": 5,
        "b": {"c": None},
        "items": [{"x": 1}],
        "z": {"y": 6},
    }


def test_list_items_can_be_set(place: Path) -> None:
    cfg = composed("experiment=first", "items.0.x=2", "items.0.y=3")
    assert cfg["items"] == [{"x": 2, "y": 3}]


def test_groups_take_lists_null_and_subfolders(place: Path) -> None:
    assert composed("experiment=sub/deep")["a"] == 3
    assert composed("experiment=null")["a"] == 1
    # in no defaults list
    assert composed("extra=[one,two]")["extra"] == {"k": 1, "l": 2}
    assert "extra" not in composed("extra=null")


@pytest.mark.parametrize(
    "value",
    ["logs/epoch=299-step=300.ckpt", "my file (1).wav", "What is said?", r"a\b", "it's", "#1"],
)
def test_values_need_no_second_quotes(place: Path, value: str) -> None:
    assert composed(f"path={value}")["path"] == value


def test_result_is_open_for_the_schemas_to_judge(place: Path) -> None:
    cfg = compose("main")
    cfg.anything = 1
    assert "hydra" not in cfg


REFUSED = {
    "experiment=frist": "Could not find 'experiment/frist'; did you mean `first`? (searched: ",
    "extra=zzz": "Could not find 'extra/zzz'; there is `one`, `two` (searched: ",
    "extra=[one,tow]": "Could not find 'extra/tow'; did you mean `two`? (searched: ",
    "word": "Override 'word' is not of the form key=value.",
    "a=[1": "Override 'a=[1' is not of the form key=value.",
    "a=1,2": "Override 'a=1,2' gives several values; write a=[1,2] for a list,",
    "~nope": "Could not delete from config. 'nope' does not exist.",
}


@pytest.mark.parametrize("override, message", REFUSED.items())
def test_wrong_override_is_one_sentence(place: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(override)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_wrong_names_tell_where_was_searched(place: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        compose("mian")
    searched = f"(searched: {place / 'work' / 'conf'}, {packaged_conf()})"
    assert str(caught.value) == f"Could not find 'mian'; did you mean `main`? {searched}"


def test_wrong_name_in_a_defaults_list_names_the_file(place: Path) -> None:
    write(place / "work" / "conf" / "bad.yaml", "defaults:\n  - extra: tow\n")
    with pytest.raises(ConfigError, match="'extra/tow'; did you mean `two`.*in 'bad.yaml'"):
        compose("bad")
    write(place / "work" / "conf" / "bad.yaml", "defaults:\n  - override extra: two\n")
    with pytest.raises(ConfigError, match="In 'bad': Could not override 'extra'. No match"):
        compose("bad")


def test_broken_yaml_names_file_and_line(place: Path) -> None:
    file = write(place / "work" / "conf" / "bad.yaml", "a: 1\nb: [1\nc: 2\n")
    with pytest.raises(ConfigError) as caught:
        compose("bad")
    assert str(caught.value).startswith(f"{file}, line 3, is not valid YAML: ")


def test_first_folder_wins_and_packaged_comes_last(place: Path) -> None:
    script = place / "script"
    write(script / "conf" / "only_script.yaml", "from: script\n")
    write(script / "conf" / "main.yaml", "from: script\n")
    write(script / "beside" / "main.yaml", "from: beside\n")
    work, packaged = place / "work" / "conf", packaged_conf()

    assert config_roots() == [work, packaged]
    assert config_roots("conf", script_dir=script) == [work, script / "conf", packaged]
    assert config_roots("beside", script_dir=script) == [script / "beside", packaged]
    assert config_roots(script / "conf") == [script / "conf", packaged]
    assert config_roots(search_path=[script / "beside"])[-1] == script / "beside"

    assert compose("main", script_dir=script).a == 1
    assert compose("only_script", config_path="conf", script_dir=script)["from"] == "script"
    assert compose("config", config_path="beside", script_dir=script).seed == 42


def test_own_experiment_builds_on_packaged_files(place: Path) -> None:
    text = "# @package _global_\ndefaults:\n  - /salm\n  - _self_\n\nseed: 7\n"
    write(place / "work" / "conf" / "experiment" / "own.yaml", text)
    cfg = compose("config", overrides=["experiment=own", "job_type=train", "debug=fast_dev_run"])
    assert (cfg.seed, cfg.model.target, cfg.trainer.fast_dev_run) == (7, "SALM", True)


def test_own_file_wins_over_a_packaged_one(place: Path) -> None:
    write(place / "work" / "conf" / "debug" / "overfit.yaml", "# @package _global_\nmine: 1\n")
    cfg = compose("config", overrides=["debug=[overfit,fast_dev_run]"])
    assert cfg.mine == 1
    assert list(cfg.trainer) == ["fast_dev_run", "max_time"]


def test_missing_folder_tells_what_was_tried(place: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        compose("main", config_path="cnf", script_dir=place / "script")
    tried = [place / "work" / "cnf", place / "script" / "cnf", packaged_conf().parent / "cnf"]
    assert str(caught.value) == (
        f"`--config-path` must be a folder, but cnf is none of {', '.join(map(str, tried))}."
    )


def test_wrong_name_is_refused_fast_and_light(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from whalesong.core.config.compose import compose\n"
        "try: compose('config', overrides=['experiment=nope'])\n"
        "except ValueError: print(time.process_time(), *sys.modules)"
    )
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    seconds, *modules = out.stdout.split()
    assert float(seconds) < 1.5
    assert not {"torch", "nemo", "lhotse", "lightning"} & set(modules)
