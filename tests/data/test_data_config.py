"""The schema of the `data` section."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from whalesong.core.errors import ConfigError
from whalesong.core.schema import validate
from whalesong.data.config import UNSUPPORTED, DataConfig

SPEC = """
train_ds:
  sample_rate: ${data.target_sample_rate}
  input_cfg:
    - type: lhotse_shar
      shar_path: /path/to/train_data
  seed: 42
  shard_seed: "randomized"
  num_workers: 4
  batch_size: 16
  batch_duration: 100
  bucket_duration_bins: [8.94766,10.1551,11.64118,19.30376,42.85]
  use_bucketing: true
  num_buckets: 5
  bucket_buffer_size: 5000
validation_ds:
  datasets:
    val_set_name:
      shar_path: /path/to/validation_data
  sample_rate: ${data.target_sample_rate}
  batch_size: 1
  seed: 42
  shard_seed: "randomized"
frame_length: 0.08
source_sample_rate: 16000
target_sample_rate: 22050
input_roles: ["user", "User"]
output_roles: ["agent", "Assistant"]
"""


def refuse(section):
    with pytest.raises(ConfigError) as caught:
        validate(DataConfig, section, path="data")
    return str(caught.value)


def test_the_section_of_the_specification():
    document = OmegaConf.create({"data": OmegaConf.create(SPEC)})
    config = validate(DataConfig, document.data, path="data")
    assert config.train_ds.sample_rate == 22050 and config.train_ds.shard_seed == "randomized"
    [(name, dataset)] = config.validation_ds.named_sets(path="data.validation_ds").items()
    assert (name, dataset.shar_path) == ("val_set_name", "/path/to/validation_data")
    assert (dataset.sample_rate, dataset.batch_size, dataset.seed) == (22050, 1, 42)


def test_a_set_has_the_last_word_and_its_own_input():
    section = {
        "input_cfg": [{"type": "lhotse", "cuts_path": "common"}],
        "batch_size": 4,
        "max_duration": 9.0,
        "datasets": {"a": {"shar_path": "a", "batch_size": 2}, "b": {"text_field": "words"}},
    }
    config = validate(DataConfig, {"validation_ds": section}, path="data")
    sets = config.validation_ds.named_sets(path="data.validation_ds")
    assert list(sets) == ["a", "b"]
    assert (sets["a"].input_keys, sets["b"].input_keys) == (["shar_path"], ["input_cfg"])
    assert [s.batch_size for s in sets.values()] == [2, 4]
    assert [s.max_duration for s in sets.values()] == [9.0, 9.0]


def test_a_section_with_an_input_of_its_own_is_one_set():
    config = validate(DataConfig, {"test_ds": {"shar_path": "x", "batch_size": 1}}, path="data")
    assert list(config.test_ds.named_sets(path="data.test_ds")) == ["test"]


@pytest.mark.parametrize(
    ("train_ds", "message"),
    [
        ({"bacth_size": 3}, "bacth_size` (3) is not a known key; did you mean `batch_size`?"),
        ({"batch_size": 0}, "batch_size` must be greater than 0"),
        ({"shard_seed": "random"}, "shard_seed` must be"),
        ({"shar_path": "???"}, "shar_path` is mandatory"),
        ({"sample_rate": -1}, "sample_rate` must be greater than 0"),
        ({"min_duration": 3.0, "max_duration": 1.0}, "of 3.0 above its `max_duration` of 1.0"),
        ({"bucket_duration_bins": [2.0, 1.0]}, "`bucket_duration_bins` that do not rise"),
        ({"bucket_batch_size": [1]}, "no `bucket_duration_bins` beside it"),
        (
            {"bucket_duration_bins": [2.0], "bucket_batch_size": [1, 2, 3]},
            "3 values in `bucket_batch_size`, but 1 in `bucket_duration_bins`",
        ),
    ],
)
def test_messages(train_ds, message):
    refused = refuse({"train_ds": train_ds})
    assert refused.startswith("`data.train_ds") and message in refused


def test_messages_name_the_set():
    message = refuse({"validation_ds": {"datasets": {"v": {"shar_pat": "x"}}}})
    assert message.startswith("`data.validation_ds.datasets.v.shar_pat` ('x') is not a known key")
    assert "`data.on_bad_cut` must be" in refuse({"on_bad_cut": "ignore"})


@pytest.mark.parametrize("key", sorted(UNSUPPORTED))
def test_what_is_not_supported_is_said(key):
    assert f"has `{key}`, which is not supported" in refuse({"train_ds": {key: 1}})
    validate(DataConfig, {"train_ds": {key: False}}, path="data")


def test_nothing_heavy_is_imported():
    code = "import sys, whalesong.data.config; print({'torch', 'lhotse', 'nemo'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
