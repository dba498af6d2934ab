"""Autoencoders in stable-audio-tools' terms: where weights are found, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from whalesong.modules.codec.autoencoder_config import DitheredFSQFields, FSQFields, RVQFields
from whalesong.modules.codec.bottleneck import FSQ, RVQ, DitheredFSQ
from whalesong.modules.codec.build import build_codec
from whalesong.modules.codec.codec import Codec

NAME = "autoencoder oobleck fsq"


@pytest.fixture
def exported(codec_section: Callable[[str], dict[str, Any]]) -> tuple[dict[str, Any], Any]:
    """`model_config.json` and the content of the checkpoint of a tiny autoencoder."""
    folder = Path(codec_section(NAME)["config"]["autoencoder_ckpt"])
    return json.loads((folder / "model_config.json").read_text()), torch.load(folder / "model.ckpt")


def build(path: Path | None = None, **config: Any) -> Codec:
    if path is not None:
        config["autoencoder_ckpt"] = str(path)
    return build_codec({"type": "autoencoder", "config": config}, sample_rate=1600)


def assert_same(codec: Codec, other: Codec) -> None:
    audio = torch.randn(1, 2, 160)
    codes, _ = codec.encode(audio)
    assert torch.equal(codes, other.encode(audio)[0])
    assert torch.equal(codec.decode(codes), other.decode(codes))


def test_weights_are_found(
    exported: tuple[dict[str, Any], Any], build_tiny: Callable[..., Codec], tmp_path: Path
) -> None:
    config, content = exported
    expected, state = build_tiny(NAME), content["state_dict"]
    torch.save({"state_dict": state, "model_config": config}, tmp_path / "inside.ckpt")
    assert_same(build(tmp_path / "inside.ckpt"), expected)
    torch.save(content, tmp_path / "plain.ckpt")
    assert_same(build(tmp_path / "plain.ckpt", **config["model"]), expected)
    with pytest.raises(ValueError, match="`model_config.json` beside the weights"):
        build(tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match="one file of weights, but holds 2"):
        build(tmp_path, **config["model"])
    (tmp_path / "model_config.json").write_text(json.dumps(config))
    assert_same(build(tmp_path / "plain.ckpt"), expected)


@pytest.mark.parametrize("prefix", ["autoencoder.", "pretransform.model."])
def test_checkpoints_of_training(
    prefix: str,
    exported: tuple[dict[str, Any], Any],
    build_tiny: Callable[..., Codec],
    tmp_path: Path,
) -> None:
    config, content = exported
    state = {prefix + name: tensor for name, tensor in content["state_dict"].items()}
    state |= {"discriminator.decoder.weight": torch.ones(1)}
    torch.save({"state_dict": state, "model_config": config}, tmp_path / "a.ckpt")
    assert_same(build(tmp_path / "a.ckpt"), build_tiny(NAME))
    averaged = {
        "autoencoder_ema.ema_model." + name: tensor
        for name, tensor in content["state_dict"].items()
    }
    wrong = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save({"state_dict": wrong | averaged, "model_config": config}, tmp_path / "b.ckpt")
    assert_same(build(tmp_path / "b.ckpt"), build_tiny(NAME))


def test_weights_that_do_not_fit(exported: tuple[dict[str, Any], Any], tmp_path: Path) -> None:
    config, content = exported
    content["state_dict"].pop("decoder.layers.0.bias")
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match='do not fit its layers: Missing.*"decoder.layers.0.bias"'):
        build(tmp_path / "a.ckpt", **config["model"])
    (tmp_path / "b.ckpt").write_text("no weights")
    with pytest.raises(ValueError, match="holds no weights that can be read"):
        build(tmp_path / "b.ckpt", **config["model"])
    with pytest.raises(ValueError, match="must be a file or a folder"):
        build(Path("nothing"), **config["model"])


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"latent_dim": None}, AssertionError, "latent_dim must be specified in model config"),
        ({"downsampling_ratio": None}, AssertionError, "downsampling_ratio must be specified"),
        ({"io_channels": None}, AssertionError, "io_channels must be specified in model config"),
        ({"bottleneck": {}}, AssertionError, "type must be specified in bottleneck config"),
        ({"bottleneck": {"type": "zz"}}, NotImplementedError, "Unknown bottleneck type: zz"),
        ({"bottleneck": {"type": "vae"}}, AssertionError, "Pretransform must be discrete"),
        ({"bottleneck": None}, AssertionError, "Pretransform must be discrete"),
        ({"encoder": {"config": {}}}, AssertionError, "Encoder type must be specified"),
        ({"encoder": {"type": "taae"}}, NotImplementedError, "'taae' are not implemented"),
        ({"decoder": {"type": "zz"}}, ValueError, "Unknown decoder type zz"),
        ({"decoder": None}, ValueError, "must have a section `decoder`"),
        ({"pretransform": {"type": "pqmf"}}, NotImplementedError, "another `pretransform`"),
        ({"out_channels": 2}, ValueError, r"`out_channels` must be `io_channels` \(1\), but is 2"),
        ({"downsampling_ratio": 4}, ValueError, "strides of `encoder` must multiply"),
        ({"latent_dim": 5}, ValueError, r"as wide as `latent_dim` \(5\), but is 4"),
        ({"encoder": {"type": "oobleck", "config": {"chanels": 1}}}, ValueError, "`channels`"),
        ({"encoder": {"type": "oobleck", "config": {"strides": [8]}}}, ValueError, "1 values"),
        ({"encoder": {"type": "oobleck", "confg": {}}}, ValueError, "`confg`.*`config`"),
        ({"bottleneck": {"type": "fsq", "confg": {}}}, ValueError, "`confg`.*`config`"),
        ({"bottleneck": {"type": "fsq"}}, ValueError, "must give `levels`"),
    ],
)
def test_what_is_wrong_is_named(
    changes: dict[str, Any], error: type, text: str, fsq_section: dict[str, Any]
) -> None:
    with pytest.raises(error, match=text):
        build(**fsq_section | changes)


def test_sample_rate_is_needed(fsq_section: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="sample_rate must be specified in model config"):
        build_codec({"type": "autoencoder", "config": fsq_section})
    assert build(**fsq_section, sample_rate=800).sample_rate == 800


def grid(bottleneck: FSQ | DitheredFSQ) -> Tensor:
    return torch.arange(bottleneck.codebook_size).expand(1, bottleneck.num_codebooks, -1)


@pytest.mark.parametrize("levels", [[8, 5], [3, 2, 4], [7]])
def test_fsq_codes_are_a_grid(levels: list[int]) -> None:
    bottleneck = FSQ(FSQFields(levels=levels))
    values = bottleneck.decode(grid(bottleneck))[0]
    for row, count in zip(values, levels, strict=True):
        steps = (torch.arange(count) - count // 2) / (count // 2)
        torch.testing.assert_close(row.unique(), steps)
    assert len(values.unique(dim=1).t()) == bottleneck.codebook_size


@pytest.mark.parametrize("levels", [3, [5, 4]])
def test_dithered_fsq_finds_the_nearest_cell(levels: int | list[int]) -> None:
    bottleneck = DitheredFSQ(DitheredFSQFields(dim=2, levels=levels, num_codebooks=2))
    codes = grid(bottleneck)
    values = bottleneck.decode(codes)
    assert float(values.min()) == -1 and float(values.max()) == 1
    near = (values * 0.99).atanh()
    assert torch.equal(bottleneck.encode(near), codes)


def test_rvq_takes_the_nearest_of_the_rest() -> None:
    bottleneck = RVQ(RVQFields(dim=4, codebook_size=16, num_quantizers=3))
    latents = torch.randn(2, 4, 30)
    codes, residual = bottleneck.encode(latents), latents.transpose(1, 2)
    for index, codebook in enumerate(bottleneck.codebooks):
        assert torch.equal(codes[:, index], torch.cdist(residual, codebook[None]).argmin(-1))
        residual = residual - codebook[codes[:, index]]
    torch.testing.assert_close(bottleneck.decode(codes), latents - residual.transpose(1, 2))
