"""The Descript audio codec: the same codes and samples as `transformers` and the original."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DacConfig, DacModel

from whalesong.modules.codec.build import build_codec
from whalesong.modules.codec.codec import Codec

KWARGS = {
    "encoder_dim": 4, "encoder_rates": [2, 4], "latent_dim": None, "decoder_dim": 16,
    "decoder_rates": [4, 2], "n_codebooks": 3, "codebook_size": 16, "codebook_dim": 4,
    "quantizer_dropout": 0.5, "sample_rate": 1600,
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> DacModel:
    torch.manual_seed(0)
    config = DacConfig(
        encoder_hidden_size=4,
        downsampling_ratios=[2, 4],
        decoder_hidden_size=16,
        n_codebooks=3,
        codebook_size=16,
        codebook_dim=4,
        sampling_rate=1600,
    )
    return DacModel(config).eval()


@pytest.fixture
def original(model: DacModel, original_dac_name: Callable[..., str], tmp_path: Path) -> Path:
    """The same model as descript-audio-codec saves it."""
    state = {}
    for name, tensor in model.state_dict().items():
        name = original_dac_name(name, num_blocks=2)
        if tensor.dim() == 3 and name.endswith("weight"):
            norm = tensor.norm(dim=(1, 2), keepdim=True)
            state[f"{name}_g"], state[f"{name}_v"] = norm, 2 * tensor
        else:
            state[name] = tensor
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": state, "metadata": {"kwargs": KWARGS}}, path)
    return path


def build(path: Path, **fields: Any) -> Codec:
    return build_codec({"type": "dac_pretrained", "config": {"model_path": str(path), **fields}})


@torch.no_grad()
@pytest.mark.parametrize("source", ["folder", "original"])
def test_equals_transformers(source: str, model: DacModel, original: Path, tmp_path: Path) -> None:
    if source == "folder":
        model.save_pretrained(tmp_path / "folder")
    codec = build(tmp_path / "folder" if source == "folder" else original)
    audio = torch.randn(2, 1, 400)
    codes, _ = codec.encode(audio)
    assert torch.equal(codes, model.encode(audio).audio_codes)
    expected = model.decode(audio_codes=codes).audio_values
    torch.testing.assert_close(codec.decode(codes)[:, 0], expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_missing_samples_are_silent(build_tiny: Callable[..., Codec]) -> None:
    codec = build_tiny("dac odd")
    audio = codec.decode(torch.randint(16, (1, 3, 10)))
    assert audio.shape == (1, 1, 150)
    silent = int((audio[0, 0].flip(0) != 0).long().argmax())
    assert 0 < silent < codec.downsampling_ratio


def test_fewer_codebooks(original: Path) -> None:
    whole, cut = build(original), build(original, num_quantizers=2)
    audio = torch.randn(1, 1, 200)
    codes = cut.encode(audio)[0]
    assert torch.equal(codes, whole.encode(audio)[0][:, :2])
    assert cut.decode(codes).shape == (1, 1, 200)
    with pytest.raises(ValueError, match="must be at most 3.*but is 4"):
        build(original, num_quantizers=4)


def test_other_files_are_refused(original: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="must be a `.pth` file of DAC"):
        build(tmp_path / "text.pth")
    content = torch.load(original)
    content["metadata"]["kwargs"]["n_codebooks"] = 4
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="do not fit its metadata"):
        build(tmp_path / "other.pth")


def test_files_run_no_code(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "metadata": Path("x")}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="must be a `.pth` file of DAC"):
        build(tmp_path / "weights.pth")


def test_bitrate_that_the_hub_lacks() -> None:
    with pytest.raises(ValueError, match="`model_bitrate: 16kbps` is not on the hub"):
        build_codec({"type": "dac_pretrained", "config": {"model_bitrate": "16kbps"}})
