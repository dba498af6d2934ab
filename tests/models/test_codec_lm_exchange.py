"""Foreign weights come in whole or not at all, and travel on in a `.nemo`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from whalesong.core.errors import ArchiveError, ConfigError
from whalesong.models.codec_lm.exchange import (
    import_from_musicgen,
    load_audiocraft,
    load_musicgen,
)

TEXTS = ["a slow and sad piano", "techno"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from whalesong.tiny.musicgen import build_tiny_musicgen

    return build_tiny_musicgen(tmp_path_factory.mktemp("musicgen") / "tiny", texts=TEXTS)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The folder, to be damaged."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def audiocraft_state(folder: Path) -> dict[str, torch.Tensor]:
    """The decoder's weights under audiocraft's names, as its users know them."""
    prefix = "decoder.model.decoder."
    state = load_file(folder / "model.safetensors")
    layers = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    given = {f"emb.{k}.weight": layers[f"embed_tokens.{k}.weight"] for k in range(4)}
    given |= {f"linears.{k}.weight": state[f"decoder.lm_heads.{k}.weight"] for k in range(4)}
    for kind in ("weight", "bias"):
        given[f"out_norm.{kind}"] = layers[f"layer_norm.{kind}"]
    for number in range(2):
        own, theirs = f"transformer.layers.{number}.", f"layers.{number}."
        for block, name in (("self_attn", "self_attn"), ("cross_attention", "encoder_attn")):
            parts = [layers[f"{theirs}{name}.{letter}_proj.weight"] for letter in "qkv"]
            given[f"{own}{block}.in_proj_weight"] = torch.cat(parts)
            given[f"{own}{block}.out_proj.weight"] = layers[f"{theirs}{name}.out_proj.weight"]
        for index in (1, 2):
            given[f"{own}linear{index}.weight"] = layers[f"{theirs}fc{index}.weight"]
        norms = {"norm1": "self_attn", "norm_cross": "encoder_attn", "norm2": "final"}
        for norm, name in norms.items():
            for kind in ("weight", "bias"):
                full = f"{name}_layer_norm.{kind}"
                given[f"{own}{norm}.{kind}"] = layers[theirs + full]
    return given


def zeroed(folder: Path) -> Any:
    """A model of the folder's shape that has forgotten its language model."""
    model = load_musicgen(folder)
    with torch.no_grad():
        for parameter in model.lm.parameters():
            parameter.zero_()
    return model


@torch.no_grad()
def test_audiocrafts_state_gives_the_same_model(folder: Path) -> None:
    state = audiocraft_state(folder)
    conditioner = {"condition_provider.conditioners.description.output_proj.bias": torch.ones(1)}
    model = zeroed(folder)
    load_audiocraft(model.lm, state | conditioner)
    expected = load_musicgen(folder).lm.state_dict()
    assert all(
        torch.equal(tensor, expected[name]) for name, tensor in model.lm.state_dict().items()
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"transformer.layers.1.linear1.weight": None}, "layers.1.fc1.weight"),
        ({"emb.3.weight": None}, "embed_tokens.3.weight"),
        ({"transformer.layers.0.norm3.weight": torch.ones(64)}, "layers.0.norm3.weight"),
        ({"out_norm.weight": torch.ones(3)}, "another shape in .*norm.weight"),
    ],
)
def test_a_wrong_state_of_audiocraft_is_named(folder: Path, change: Any, text: str) -> None:
    state = audiocraft_state(folder) | change
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    with pytest.raises(ArchiveError, match=text):
        load_audiocraft(load_musicgen(folder).lm, state)


def test_an_incomplete_folder_is_named(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["decoder.model.decoder.layers.1.fc2.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="layers.1.fc2.weight"):
        load_musicgen(copy)


@pytest.mark.parametrize(
    ("field", "value"), [("audio_channels", 2), ("activation_function", "gelu_new")]
)
def test_what_has_no_place_here_is_named(copy: Path, field: str, value: Any) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["decoder"][field] = value
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=f"`decoder.{field}` must be .* but is {value!r}"):
        load_musicgen(copy)


def test_a_folder_without_musicgen_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load_musicgen(tmp_path)


def test_an_imported_model_travels_in_an_archive(folder: Path, tmp_path: Path) -> None:
    from whalesong.models.codec_lm.codec_lm import CodecLMModel

    model = import_from_musicgen(CodecLMModel, folder)
    model.save_to(tmp_path / "musicgen.nemo")
    restored = CodecLMModel.restore_from(tmp_path / "musicgen.nemo").eval()
    request = {"seconds": 0.2, "temperature": 0.0}
    given, expected = (
        m.model.generate_audio([{"text": text} for text in TEXTS], **request)
        for m in (restored, model)
    )
    assert all(torch.equal(*pair) for pair in zip(given.audio, expected.audio, strict=True))
    assert restored.parts.predictor.settings.guidance_scale == 3.0
