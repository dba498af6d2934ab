"""Configs of external models join the packaged ones: choices, defaults, and who wins."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from fixtures.plugins import register, write, write_model
from omegaconf import OmegaConf

from whalesong.core.config.job import check_job
from whalesong.core.errors import ConfigError, ConfigNotFoundError
from whalesong.core.external import compose_job

CHOICE = ("model=plug_x", "model_type=plug_x")
DEBUG = ("overfit", "fast_dev_run", "small_data", "profile")


@pytest.fixture(autouse=True)
def place(tmp_path: Path) -> Path:
    """The working directory, with one sound external model."""
    write_model(tmp_path / "plug_x", "plug_x")
    register(tmp_path, {"plug_x": "plug_x"})
    return tmp_path


def composed(*overrides: str, job_type: str = "train") -> dict[str, Any]:
    job = compose_job("config", overrides=[f"job_type={job_type}", *overrides])
    return OmegaConf.to_container(job.cfg)


def test_model_and_model_type_take_the_star_data() -> None:
    cfg = composed(*CHOICE)
    assert cfg["datamodule"]["block_size"] == 14
    assert cfg["model"] == {"_target_": "plug_x.model_plug_x.Model", "width": 2}
    assert cfg == composed(*CHOICE, "datamodule=star_easy_plug_x")


def test_debug_keys_of_the_data_do_not_count_as_data() -> None:
    assert composed(*CHOICE, "debug=overfit")["datamodule"]["block_size"] == 14


def test_jobs_without_data_need_none() -> None:
    assert "block_size" not in composed(*CHOICE, job_type="predict").get("datamodule", {})


def test_missing_star_data_tell_how_to_choose_others(place: Path) -> None:
    (place / "plug_x" / "configs" / "datamodule" / "star_easy_plug_x.yaml").unlink()
    with pytest.raises(ConfigNotFoundError, match="^Could not find 'datamodule/star_easy_plug_x'"):
        composed(*CHOICE)
    assert composed(*CHOICE, "datamodule=star_easy_arlm")["datamodule"]["block_size"] > 0


@pytest.mark.parametrize("chosen, other", [("model", "model_type"), ("model_type", "model")])
def test_model_and_model_type_belong_together(chosen: str, other: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(f"{chosen}=plug_x")
    message = f"`{chosen}` is 'plug_x', but there is no `{other}`; add {other}=plug_x."
    assert str(caught.value) == message


def test_choices_may_come_in_any_order() -> None:
    overrides = ("experiment=star_easy_plug_x", "debug=overfit", "model.width=9")
    results = [composed(*order) for order in itertools.permutations(overrides)]
    assert all(result == results[0] for result in results)
    assert results[0]["model"]["width"] == 9


def test_command_line_beats_experiment_beats_defaults() -> None:
    experiment = "experiment=star_easy_plug_x"
    assert composed(*CHOICE)["model"]["width"] == 2
    assert composed(experiment)["model"]["width"] == 3
    assert composed("model.width=4", experiment)["model"]["width"] == 4
    other = composed(experiment, "model=arlm")
    assert other["model"]["_target_"].endswith("ArlmModel")
    assert other["model"]["width"] == 3


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_keys_need_no_plus(prefix: str) -> None:
    cfg = composed(*CHOICE, f"{prefix}predict.infill=[a b]", f"{prefix}stop_at.val_loss=1.0")
    assert (cfg["predict"]["infill"], cfg["stop_at"]) == (["a b"], {"val_loss": 1.0})


@pytest.mark.parametrize("group", [f"{a},{b}" for a, b in itertools.permutations(DEBUG, 2)])
def test_pairs_of_debug_modes_pass_the_schemas(group: str) -> None:
    job = compose_job("config", overrides=["job_type=train", *CHOICE, f"debug=[{group}]"])
    checked = check_job(job.cfg)
    assert checked.trainer.max_steps > 0 or checked.trainer.fast_dev_run


def test_packaged_file_wins_and_the_other_is_named(place: Path) -> None:
    file = place / "plug_x" / "configs" / "experiment" / "star_easy_arlm.yaml"
    write(file, "# @package _global_\nseed: 7\n")
    with pytest.raises(ConfigError, match="'experiment/star_easy_arlm' is in two places") as caught:
        composed("experiment=star_easy_arlm")
    assert str(file) in str(caught.value)
    assert composed(*CHOICE)["seed"] == 42


def test_file_of_two_models_is_refused_when_it_is_chosen(place: Path) -> None:
    write_model(place / "plug_y", "plug_y")
    register(place, {"plug_x": "plug_x", "plug_y": "plug_y"})
    for name in ("plug_x", "plug_y"):
        write(place / name / "configs" / "datamodule" / "same.yaml", "a: 1\n")
    with pytest.raises(ConfigError, match="'datamodule/same' is in two places"):
        composed(*CHOICE, "datamodule=same")
    assert composed(*CHOICE)["model"]["width"] == 2


def test_own_file_may_hide_one_of_a_model(place: Path) -> None:
    text = "# @package _global_\nseed: 8\n"
    write(place / "conf" / "experiment" / "star_easy_plug_x.yaml", text)
    assert composed(*CHOICE, "experiment=star_easy_plug_x")["seed"] == 8


def test_models_in_use_are_known() -> None:
    overrides = ["job_type=train", "experiment=star_easy_plug_x"]
    assert compose_job("config", overrides=overrides).used == ("plug_x",)
    assert compose_job("config", overrides=["job_type=train", "experiment=salm_demo"]).used == ()
