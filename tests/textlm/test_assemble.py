"""From the sections of a text job to `model` and `data`."""

import pytest
from omegaconf import OmegaConf

from whalesong.core.errors import ConfigError
from whalesong.core.schema import validate
from whalesong.data.config import DataConfig
from whalesong.textlm.assemble import TARGET, assembled
from whalesong.textlm.config import TextLMConfig

PART = {"_target_": "some.module.Part", "width": 3}


def job(**changes):
    """A composed job of a text model."""
    sections = {
        "job_type": "train",
        "model": {"_target_": "some.module.Network", "d_model": 8},
        "model_type": {"loss": PART, "predictor": PART, "optimizer": {"_target_": "o.O", "lr": 1}},
        "datamodule": {
            "tokenizer": {"type": "numbers", "count": 5},
            "block_size": 4,
            "collators": {"train": PART},
            "train_ds": {"cuts_path": "a.jsonl", "batch_size": 2},
        },
    }
    return OmegaConf.create({**sections, **changes})


def test_the_sections_become_model_and_data():
    cfg = assembled(job())
    assert set(cfg) == {"job_type", "model", "data"}
    model = validate(TextLMConfig, cfg.model, path="model")
    data = validate(DataConfig, cfg.data, path="data")
    assert cfg.model.target == TARGET
    assert model.network.target == "some.module.Network"
    assert (model.block_size, model.input_block_size) == (4, 0)
    assert data.train_ds.batch_size == 2


def test_what_is_given_under_data_wins():
    cfg = assembled(job(data={"train_ds": {"batch_size": 7}, "block_size": 9}))
    assert (cfg.data.train_ds.batch_size, cfg.data.train_ds.cuts_path) == (7, "a.jsonl")
    assert cfg.model.block_size == 9
    assert "block_size" not in cfg.data


def test_a_job_of_another_family_stays_as_it_is():
    cfg = OmegaConf.create({"model": {"target": "SALM"}, "data": {"train_ds": None}})
    assert assembled(cfg) is cfg


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {}}, "`model` is missing beside `model_type`; choose one with model=NAME"),
        ({"datamodule": {}}, "`datamodule` is missing; choose one with datamodule=NAME"),
        ({"model": {"d_model": 3}}, r"`model._target_` is mandatory"),
        ({"model_type": {"loss": PART}}, r"`model_type.predictor` is mandatory"),
        ({"data": {"block_sise": 9}}, r"`data.block_sise` \(9\) is not a known key"),
    ],
)
def test_what_is_missing_or_unknown_is_named_where_the_user_wrote_it(changes, said):
    with pytest.raises(ConfigError, match=said):
        assembled(job(**changes))


def test_a_misspelled_key_of_the_datamodule_gets_the_near_one():
    datamodule = {**OmegaConf.to_container(job().datamodule), "blok_size": 3}
    with pytest.raises(ConfigError, match=r"`datamodule.blok_size` .* did you mean `block_size`"):
        assembled(job(datamodule=datamodule))


def test_lora_is_for_pretrained_llms():
    with pytest.raises(ConfigError, match="has `lora`, which is for pretrained LLMs only"):
        validate(TextLMConfig, {**assembled(job()).model, "lora": {"r": 4}}, path="model")
