"""Configurations of stable-audio-tools load unchanged and run; the specification's examples, too.

In the files of `audio_lm_configs` AUTOENCODER, DAC, ENCODEC and T5 stand for names on the hub, in
fields that take a folder as well. The specification's examples are smaller, else as they are.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from whalesong import create_audio_lm_from_config
from whalesong.cli import main
from whalesong.core.config.compose import compose
from whalesong.models.codec_lm.factory_config import audio_lm_json_schema
from whalesong.modules.codec.build import build_codec

FILES = Path(__file__).parent / "audio_lm_configs"
ROWS: dict[str, dict[str, Any]] = {
    "text_to_music": {"prompt": "a calm piano piece", "seconds_start": 0, "seconds_total": [30]},
    "prefix_seanet": {"prompt": "rain", "key": "A minor"},
    "stereo_fsq": {"lyrics": "slow tone", "genre": 3},
    "unconditional_dac": {},
    "every_route": {
        "caption": "rain",
        "melody": torch.zeros(1, 1600),
        "bpm": torch.ones(64),
        "mood": "wild",
    },
}
NUMBER = {"type": "number", "config": {"min_val": 0, "max_val": 200}}
MISSING_CONDITIONERS = {
    2: [{"id": "tempo", **NUMBER}],
    3: [
        {"id": "text", "type": "text", "config": {}},
        {"id": "audio_context", "type": "audio_prompt", "config": {}},
        {"id": "artist", "type": "list", "config": {"options": ["a", "b"]}},
        {"id": "style", "type": "text", "config": {}},
        {"id": "duration", **NUMBER},
        {"id": "key", "type": "int", "config": {"max_val": 12}},
    ],
}


@pytest.fixture(scope="module")
def tiny_dac(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained DAC: 3 codebooks of 16 ids, 512 samples a frame, of 44.1 kHz audio."""
    from transformers import DacConfig, DacModel

    torch.manual_seed(0)
    config = DacConfig(
        sampling_rate=44100, encoder_hidden_size=4, downsampling_ratios=[4, 8, 16],
        decoder_hidden_size=16, n_codebooks=3, codebook_size=16, codebook_dim=4,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("dac")
    DacModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with its `model_config.json` beside it, as stable-audio-tools leaves them."""
    section = json.loads((FILES / "stereo_fsq.json").read_text())["model"]["pretransform"]
    torch.manual_seed(0)
    codec = build_codec(section, sample_rate=48000)
    folder = tmp_path_factory.mktemp("autoencoder")
    config = {"model_type": "autoencoder", "sample_rate": 48000, "model": section["config"]}
    (folder / "model_config.json").write_text(json.dumps(config))
    torch.save({"state_dict": codec.state_dict()}, folder / "autoencoder.ckpt")
    return folder / "autoencoder.ckpt"


@pytest.fixture(scope="module")
def config_text(
    tiny_t5: Path, tiny_encodec: Path, tiny_dac: Path, tiny_autoencoder: Path
) -> Callable[[str], str]:
    """A file's content with folders in place of the names."""
    places = {
        "T5": tiny_t5, "ENCODEC": tiny_encodec, "DAC": tiny_dac, "AUTOENCODER": tiny_autoencoder,
    }  # fmt: skip

    def text(name: str) -> str:
        content = (FILES / f"{name}.json").read_text()
        for placeholder, path in places.items():
            content = content.replace(f'"{placeholder}"', json.dumps(str(path)))
        return content

    return text


@pytest.fixture
def example(config_text: Callable[[str], str]) -> Callable[[int], dict[str, Any]]:
    """An example of the specification by its number."""
    return lambda number: json.loads(config_text(f"specification_{number}"))


def run_through(wrapper: Any, row: dict[str, Any]) -> None:
    """Forward and generation give what their sizes promise."""
    shape = (wrapper.num_quantizers, 5)
    codes = torch.randint(wrapper.codebook_size, (2, *shape))
    output = wrapper(codes, torch.tensor([5, 3]), [row, row])
    assert output.logits.shape == (2, *shape, wrapper.codebook_size)
    assert output.logits.isfinite().all()
    made = wrapper.eval().generate_audio([row, row], seconds=0.1, seeds=0, guidance_scale=2.0)
    frames = round(0.1 * wrapper.pretransform.frame_rate)
    for codes, audio in zip(made.codes, made.audio, strict=True):
        assert codes.shape == (wrapper.num_quantizers, frames)
        channels = wrapper.pretransform.num_channels
        assert audio.shape == (channels, frames * wrapper.min_input_length)
        assert audio.isfinite().all()


@pytest.mark.parametrize("name", ROWS)
def test_native_configurations_load_from_their_file_and_run(
    name: str, config_text: Callable[[str], str], tmp_path: Path
) -> None:
    path = tmp_path / "model.json"
    path.write_text(config_text(name))
    run_through(create_audio_lm_from_config(path), ROWS[name])


# -- the specification's examples -----------------------------------------------------------------


def test_the_first_example_loads_and_runs(example: Callable[[int], dict[str, Any]]) -> None:
    wrapper = create_audio_lm_from_config(example(1))
    assert (wrapper.sample_rate, wrapper.num_quantizers) == (44100, 3)
    run_through(wrapper, {})


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (2, "`model.lm.global_cond_ids` names 'tempo', but `model.conditioning.configs` has no "
            "conditioner of this id (it has: text, genre)."),
        (3, "`model.lm.cross_attention_cond_ids` names 'text', but `model.conditioning.configs` "
            "has no conditioner of this id (it has: none)."),
    ],
)  # fmt: skip
def test_examples_with_conditions_of_nobody_have_one_clear_error(
    example: Callable[[int], dict[str, Any]], number: int, message: str
) -> None:
    with pytest.raises(ValueError) as error:
        create_audio_lm_from_config(example(number))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("number", "row"),
    [
        (2, {"text": "rain", "genre": 3, "tempo": 120}),
        (3, {"text": "rain", "audio_context": None, "artist": "b", "style": "calm",
             "duration": 10, "key": 4}),
    ],
)  # fmt: skip
def test_examples_with_all_conditioners_load_and_run(
    example: Callable[[int], dict[str, Any]], number: int, row: dict[str, Any]
) -> None:
    config = example(number)
    conditioning = config["model"].setdefault("conditioning", {"configs": []})
    conditioning["configs"] += MISSING_CONDITIONERS[number]
    wrapper = create_audio_lm_from_config(config)
    assert wrapper.num_quantizers == 2  # of the autoencoder, and as `num_quantizers` asks for
    run_through(wrapper, row)


# -- errors ---------------------------------------------------------------------------------------

MISTAKES: list[tuple[list[str], Any, type[Exception], str]] = [
    (["model_type"], "zz", NotImplementedError, "Unknown model type: zz"),
    (["model"], None, AssertionError, "model config must be specified in config"),
    (["model"], "zz", ValueError, "`model` must be a mapping, but is 'zz'."),
    (["sample_rate"], None, AssertionError, "Must specify sample_rate in config"),
    (["model", "lm"], None, AssertionError, "lm config must be specified in model config"),
    (["model", "lm"], [], ValueError, "`lm` must be a mapping, but is []."),
    (["model", "pretransform"], None, ValueError,
     "`model.pretransform` is mandatory, but is missing."),
    (["model", "pretransform"], "zz", ValueError, "`pretransform` must be a mapping, but is 'zz'."),
    (["model", "pretransform", "type"], None, AssertionError,
     "type must be specified in pretransform config"),
    (["model", "pretransform", "type"], "zz", NotImplementedError,
     "Unknown pretransform type: zz"),
    (["model", "pretransform", "type"], "wavelet", AssertionError, "Pretransform must be discrete"),
    (["model", "lm", "codebook_pattern"], "zz", ValueError,
     "`model.lm.codebook_pattern`: The codebook pattern must be one of ['parallel', 'delay', "
     "'unroll', 'musiclm', 'coarse_first'], but is 'zz'."),
    (["model", "conditioning", "configs"], None, ValueError,
     "`conditioning.configs` is mandatory, but is missing."),
    (["model", "conditioning", "configs"], [{"id": "x", "type": "t6"}], ValueError,
     "conditioner 'x': Unknown conditioner type: t6"),
    (["model", "lm", "type"], None, AssertionError, "Must specify lm type in lm config"),
    (["model", "lm", "config"], None, AssertionError, "Must specify lm model config in lm config"),
    (["model", "lm", "type"], "zz", NotImplementedError, "Unrecognized lm type zz"),
    (["model", "lm", "config"], {"embed_dim": 64, "depht": 2}, ValueError,
     "`model.lm.config.depht` (2) is not a known key; did you mean `depth`? "
     "(and 1 more: sample_rate)"),
    (["model", "lm", "config"], {"embed_dim": 64, "depth": 2, "n_layers": 3}, ValueError,
     "`model.lm.config` is refused: `n_layers` must be `depth` (2), but is 3. "
     "(and 1 more: sample_rate)"),
    (["sample_rate"], -1, ValueError, "`sample_rate` must be greater than 0, but is -1 instead."),
    (["model", "lm", "prepend_cond_ids"], ["zz"], ValueError,
     "`model.lm.prepend_cond_ids` names 'zz', but `model.conditioning.configs` has no conditioner "
     "of this id (it has: prompt, seconds_start, seconds_total)."),
]  # fmt: skip


def set_at(config: dict[str, Any], path: list[str], value: Any) -> Any:
    """Set a key and return what it had; None is a key that is missing."""
    for key in path[:-1]:
        config = config[key]
    before = config.pop(path[-1], None)
    if value is not None:
        config[path[-1]] = value
    return before


@pytest.mark.parametrize("suffix", ["dict", ".json", ".yaml"])
def test_of_all_mistakes_the_first_is_told(
    config_text: Callable[[str], str], tmp_path: Path, suffix: str
) -> None:
    config = json.loads(config_text("text_to_music"))
    fixes = [(path, set_at(config, path, value)) for path, value, _, _ in reversed(MISTAKES)]
    for path, value, kind, text in MISTAKES:
        with pytest.raises(kind) as error:
            create_audio_lm_from_config(as_source(config, tmp_path, suffix))
        assert str(error.value) == text, (path, value)
        set_at(config, *fixes.pop())
    assert create_audio_lm_from_config(as_source(config, tmp_path, suffix)).sample_rate == 32000


def as_source(config: dict[str, Any], folder: Path, suffix: str) -> dict[str, Any] | Path:
    """The configuration as it is, or in a file."""
    if suffix == "dict":
        return config
    path = folder / f"model{suffix}"
    path.write_text(json.dumps(config) if suffix == ".json" else yaml.safe_dump(config))
    return path


@pytest.mark.parametrize("content", ["[1, 2]", "{", "sample_rate: [", ""])
def test_files_without_a_configuration_are_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match="model.yaml") as error:
        create_audio_lm_from_config(path)
    assert "\n" not in str(error.value)


# -- JSON Schema ----------------------------------------------------------------------------------


def faults(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str = "") -> Iterator[str]:
    """Places where a value breaks a JSON Schema (the part of the standard that pydantic uses)."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    members = schema.get("anyOf") or schema.get("oneOf") or []
    if members and all(any(faults(value, member, root, at)) for member in members):
        yield f"{at} is none of its kinds"
    kinds = {
        "object": dict, "array": list, "string": str, "boolean": bool, "integer": int,
        "number": int | float, "null": type(None),
    }  # fmt: skip
    if "type" in schema and not isinstance(value, kinds[schema["type"]]):
        yield f"{at} is no {schema['type']}"
    elif value not in schema.get("enum", [value]) or value != schema.get("const", value):
        yield f"{at} is {value!r}"
    elif schema.get("type") == "object":
        known = schema.get("properties", {})
        extra = schema.get("additionalProperties", True)
        yield from (f"{at} lacks {key}" for key in set(schema.get("required", [])) - set(value))
        for key, item in value.items():
            if key not in known and extra is False:
                yield f"{at}.{key} is unknown"
            yield from faults(item, known.get(key, {}), root, f"{at}.{key}")
    elif schema.get("type") == "array":
        for index, item in enumerate(value):
            yield from faults(item, schema.get("items", {}), root, f"{at}[{index}]")


@pytest.mark.parametrize("name", [path.stem for path in sorted(FILES.glob("*.json"))])
def test_the_json_schema_takes_every_example(name: str) -> None:
    schema = audio_lm_json_schema()
    config = json.loads((FILES / f"{name}.json").read_text())
    assert list(faults(config, schema, schema)) == []
    for path, value in (
        (["model", "lm", "codebook_pattern"], "zz"),
        (["model", "lm", "confg"], {}),
        (["model", "pretransform", "type"], "wavelet"),
        (["model", "conditioning"], {"configs": [{"type": "t5"}]}),
        (["sample_rate"], None),
    ):
        before = set_at(config, path, value)
        assert any(faults(config, schema, schema)), path
        set_at(config, path, before)


@pytest.mark.parametrize("name", ["audio_lm", "music_prefix", "music_fusion"])
def test_the_schema_of_the_command_takes_every_yaml(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--cfg", "schema", "model.target=CodecLMModel"])
    schema = json.loads(capsys.readouterr().out)
    cfg = compose(name, overrides=["job_type=train"])
    section = OmegaConf.to_container(cfg.model, resolve=False)
    assert list(faults(section, schema["properties"]["model"], schema)) == []
    section["lm"]["config"]["depht"] = 3
    assert any(faults(section, schema["properties"]["model"], schema))
