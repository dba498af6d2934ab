"""`build_codec`: what is refused, with which words, and how the codec comes out."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from whalesong.modules.codec.build import build_codec


@pytest.mark.parametrize(
    ("section", "error", "text"),
    [
        ({}, AssertionError, "^type must be specified in pretransform config$"),
        ({"type": "zz"}, NotImplementedError, "^Unknown pretransform type: zz$"),
        ({"type": "wavelet"}, AssertionError, "^Pretransform must be discrete$"),
        ({"type": "pqmf", "config": {}}, AssertionError, "^Pretransform must be discrete$"),
        ({"type": "mimi", "conifg": {}}, ValueError, "`conifg`.*did you mean `config`"),
        ({"type": "mimi", "enable_grad": True}, ValueError, "`enable_grad` must be false"),
        ({"type": "mimi", "config": {"path": "x"}}, ValueError, "did you mean `model_path`"),
        ({"type": "dac_pretrained", "config": {"num_quantizers": 0}}, ValueError, "but is 0"),
        ({"type": "nemo_codec"}, ValueError, "must give `model_path`"),
        ({"type": "autoencoder"}, ValueError, "`autoencoder_ckpt`, but does neither"),
    ],
)
def test_what_is_wrong_is_named(section: dict[str, Any], error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        build_codec(section)


@pytest.mark.parametrize("kind", ["encodec", "dac_pretrained", "mimi"])
def test_missing_parts_are_named(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'no/where' is neither a local folder nor a model"):
        build_codec({"type": kind, "config": {"model_path": "no/where"}})
    with pytest.raises(ValueError, match="holds no complete pretrained model"):
        build_codec({"type": kind, "config": {"model_path": str(tmp_path)}})


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("mimi", {"model_path": "/no/folder"}),
        ("dac_pretrained", {"model_path": "no/weights.pth"}),
        ("nemo_codec", {"model_path": "no/codec.nemo"}),
        ("mel_rvq", {"model_path": "no/codec.safetensors"}),
        ("autoencoder", {"autoencoder_ckpt": "no/model.ckpt"}),
    ],
)
def test_paths_to_nothing_are_named(kind: str, config: dict[str, str]) -> None:
    ((name, path),) = config.items()
    with pytest.raises(FileNotFoundError, match=f"`{name}` .* is '{path}': no such file"):
        build_codec({"type": kind, "config": config})


def test_another_kind_of_model_is_refused(codec_section: Callable[[str], dict[str, Any]]) -> None:
    config = codec_section("dac")["config"]
    with pytest.raises(ValueError, match="must hold a model of type 'mimi', but holds 'dac'"):
        build_codec({"type": "mimi", "config": config})


def test_incomplete_weights_are_refused(
    codec_section: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(codec_section("encodec")["config"]["model_path"])
    state = load_file(folder / "model.safetensors")
    state.pop("decoder.layers.0.conv.bias")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match="lacks 1 weights, first 'decoder.layers.0.conv.bias'"):
        build_codec({"type": "encodec", "config": {"model_path": str(tmp_path)}})


def test_options_without_effect_are_warned_of(
    codec_section: Callable[[str], dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        build_codec({**codec_section("encodec"), "chunked": True, "scale": 1.0})
    assert "without effect on codes: ['chunked']" in caplog.text


def test_weights_are_fp32_under_another_default(
    codec_section: Callable[[str], dict[str, Any]],
) -> None:
    section = codec_section("encodec")
    expected = build_codec(section)
    torch.set_default_dtype(torch.bfloat16)
    try:
        loaded, empty = build_codec(section), build_codec(section, assets=expected.assets)
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
        assert empty.state_dict()[name].dtype == tensor.dtype


def test_audiocraft_is_another_name(codec_section: Callable[[str], dict[str, Any]]) -> None:
    section = {**codec_section("encodec"), "type": "audiocraft_pretrained"}
    assert build_codec(section).num_codebooks == 4
