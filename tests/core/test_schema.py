"""A schema refuses what YAML did not mean, in one sentence with the path and the near key."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from omegaconf import OmegaConf
from pydantic import AliasChoices, Field, field_validator

from whalesong.core.errors import ConfigError
from whalesong.core.schema import Schema, json_schema, validate


class Shar(Schema):
    type: Literal["lhotse_shar"]
    shar_path: str | list[str]
    weight: float = 1.0


class Cuts(Schema):
    type: Literal["lhotse", "lhotse_cuts"]
    cuts_path: Path
    weight: float | None = None


class Group(Schema):
    type: Literal["group"]
    input_cfg: list["Item"]


Item = Annotated[Shar | Cuts | Group, Field(discriminator="type")]
Group.model_rebuild()


class Optim(Schema):
    lr: float = 1e-3
    """Learning rate at the peak."""
    betas: tuple[float, float] = (0.9, 0.98)


class Train(Schema):
    input_cfg: list[Item] = []
    batch_size: int | None = Field(None, gt=0)
    shuffle: bool = True
    devices: int | str | list[int] = 1
    strategy: str | Optim = "ddp"
    mode: Literal["min", "max"] = "min"
    shard_seed: int | Literal["randomized", "trng"] = "trng"
    use_sampler: bool = Field(True, validation_alias=AliasChoices("use_sampler", "old_name"))
    optim: Optim = Optim()
    named: dict[str, Optim] = {}
    free: dict[str, Any] = {}

    @field_validator("devices")
    @classmethod
    def _lucky(cls, value: Any) -> Any:
        if value == 13:
            raise ValueError("must not be 13")
        return value


SHAR = {"type": "lhotse_shar", "shar_path": "a"}

REFUSED = {
    "unknown key": (
        {"bacth_size": 8},
        "`data.train_ds.bacth_size` (8) is not a known key; did you mean `batch_size`?",
    ),
    "unknown key of a list item": (
        {"input_cfg": [SHAR, SHAR, {**SHAR, "wieght": 2}]},
        "`data.train_ds.input_cfg[2].wieght` (2) is not a known key; did you mean `weight`?",
    ),
    "unknown key far below": (
        {"input_cfg": [{"type": "group", "input_cfg": [{**SHAR, "x": None}]}]},
        "`data.train_ds.input_cfg[0].input_cfg[0].x` (null) is not a known key;"
        " known keys are `type`, `shar_path`, `weight`.",
    ),
    "unknown key of one member of a union": (
        {"strategy": {"lrr": 1}},
        "`data.train_ds.strategy.lrr` (1) is not a known key; did you mean `lr`?",
    ),
    "bool is no int": (
        {"batch_size": True},
        "`data.train_ds.batch_size` must be an integer or null, but is true instead.",
    ),
    "word is no number": (
        {"batch_size": "four"},
        "`data.train_ds.batch_size` must be an integer or null, but is 'four' instead.",
    ),
    "quoted number is no number": (
        {"optim": {"lr": "0.1"}},
        "`data.train_ds.optim.lr` must be a number, but is '0.1' instead.",
    ),
    "float is no int": (
        {"batch_size": 1.5},
        "`data.train_ds.batch_size` must be an integer or null, but is 1.5 instead.",
    ),
    "number is no bool": (
        {"shuffle": 1},
        "`data.train_ds.shuffle` must be true or false, but is 1 instead.",
    ),
    "bound": (
        {"batch_size": 0},
        "`data.train_ds.batch_size` must be greater than 0, but is 0 instead.",
    ),
    "all members of a union are named": (
        {"devices": True},
        "`data.train_ds.devices` must be an integer, a string or a list, but is true instead.",
    ),
    "item of one member of a union": (
        {"devices": [1, "a"]},
        "`data.train_ds.devices[1]` must be an integer, but is 'a' instead.",
    ),
    "choice": (
        {"mode": "mni"},
        "`data.train_ds.mode` must be 'min' or 'max', but is 'mni' instead; did you mean `min`?",
    ),
    "choice in a union": (
        {"shard_seed": "randomised"},
        "`data.train_ds.shard_seed` must be an integer, 'randomized' or 'trng',"
        " but is 'randomised' instead; did you mean `randomized`?",
    ),
    "tag of a union": (
        {"input_cfg": [{"type": "lhotse_shr"}]},
        "`data.train_ds.input_cfg[0].type` must be one of 'lhotse_shar', 'lhotse', 'lhotse_cuts',"
        " 'group', but is 'lhotse_shr' instead; did you mean `lhotse_shar`?",
    ),
    "tag left out": (
        {"input_cfg": [{"shar_path": "a"}]},
        "`data.train_ds.input_cfg[0].type` is mandatory, but is missing.",
    ),
    "key left out": (
        {"input_cfg": [{"type": "lhotse_shar"}]},
        "`data.train_ds.input_cfg[0].shar_path` is mandatory, but is missing.",
    ),
    "key not filled in": (
        {"input_cfg": [{**SHAR, "shar_path": "???"}]},
        "`data.train_ds.input_cfg[0].shar_path` is mandatory, but has no value.",
    ),
    "length": (
        {"optim": {"betas": [1, 2, 3]}},
        "`data.train_ds.optim.betas` must have at most 2 items, but is [1, 2, 3] instead.",
    ),
    "section is null": (
        {"optim": None},
        "`data.train_ds.optim` must be a mapping, but is null instead.",
    ),
    "value of a mapping": (
        {"named": {"a": {"lr": False}}},
        "`data.train_ds.named.a.lr` must be a number, but is false instead.",
    ),
    "old name": (
        {"old_name": "x"},
        "`data.train_ds.old_name` must be true or false, but is 'x' instead.",
    ),
    "own rule": ({"devices": 13}, "`data.train_ds.devices` must not be 13."),
    "object": (
        {"free": {"a": object()}},
        "`data.train_ds.free.a` must be a plain YAML value, but is of class object.",
    ),
    "several, an unknown key first": (
        {"shuffle": 1, "batch_size": "???", "bacth_size": 8},
        "`data.train_ds.bacth_size` (8) is not a known key; did you mean `batch_size`?"
        " (and 2 more: data.train_ds.batch_size, data.train_ds.shuffle)",
    ),
}


@pytest.mark.parametrize("data, message", REFUSED.values(), ids=REFUSED.keys())
def test_refusal_is_one_sentence(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Train, data, path="data.train_ds")
    assert str(caught.value) == message


def test_what_yaml_means_is_taken() -> None:
    data = {
        "optim": {"lr": 1, "betas": [0, 1]},
        "input_cfg": [{"type": "lhotse", "cuts_path": "a/b.jsonl"}],
        "old_name": False,
        "free": {"x": float("inf"), "y": [1, None, {"z": "w"}]},
    }
    config = validate(Train, data)
    assert config.optim == Optim(lr=1.0, betas=(0.0, 1.0))
    assert config.input_cfg[0].cuts_path == Path("a/b.jsonl")
    assert config.use_sampler is False
    assert config.free == data["free"]


def test_interpolations_are_resolved_against_the_whole_config() -> None:
    cfg = OmegaConf.create({"size": 4, "data": {"batch_size": "${size}"}})
    assert validate(Train, cfg.data, path="data").batch_size == 4
    assert cfg.data._get_node("batch_size")._value() == "${size}"


@pytest.mark.parametrize(
    "value, message",
    [
        ("${sise}", "`data.batch_size` cannot be resolved: Interpolation key 'sise' not found."),
        ("${size}", "`size` is mandatory, but has no value."),
    ],
)
def test_reference_to_nothing_is_named(value: str, message: str) -> None:
    cfg = OmegaConf.create({"size": "???", "data": {"batch_size": value}})
    with pytest.raises(ConfigError) as caught:
        validate(Train, cfg.data, path="data")
    assert str(caught.value) == message


def test_any_type_can_be_validated() -> None:
    assert validate(list[Item], [SHAR])[0].shar_path == "a"
    with pytest.raises(ConfigError, match="`input_cfg` must be a mapping, but is 3 instead."):
        validate(Train, 3, path="input_cfg")


def test_json_schema_completes_keys_and_allows_interpolation() -> None:
    exported = json_schema(Optim)
    rate = exported["properties"]["lr"]
    assert rate["description"] == "Learning rate at the peak."
    assert [member["type"] for member in rate["anyOf"]] == ["number", "string"]
    assert exported["additionalProperties"] is False


def test_schemas_import_fast_and_light() -> None:
    code = (
        "import time; start = time.process_time(); import whalesong.core.config.job;"
        "import sys; print(time.process_time() - start, *sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *modules = out.stdout.split()
    assert float(seconds) < 0.5
    assert not {"torch", "nemo", "lhotse", "lightning", "omegaconf", "hydra"} & set(modules)
