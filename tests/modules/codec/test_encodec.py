"""EnCodec: the same codes and samples as `transformers` gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EncodecConfig, EncodecModel

from whalesong.modules.codec.build import build_codec
from whalesong.modules.codec.codec import Codec


@torch.no_grad()
@pytest.mark.parametrize("name", ["encodec", "encodec stereo"])
def test_equals_transformers(
    name: str, build_tiny: Callable[..., Codec], codec_section: Callable[[str], dict[str, Any]]
) -> None:
    codec = build_tiny(name)
    model = EncodecModel.from_pretrained(codec_section(name)["config"]["model_path"]).eval()
    audio = torch.randn(2, codec.num_channels, 400)
    codes, _ = codec.encode(audio)
    theirs = model.encode(audio, bandwidth=3.2)
    assert torch.equal(codes, theirs.audio_codes[0])
    expected = model.decode(theirs.audio_codes, theirs.audio_scales).audio_values
    torch.testing.assert_close(codec.decode(codes), expected)


def test_attributes(build_tiny: Callable[..., Codec]) -> None:
    codec = build_tiny("encodec")
    assert (codec.sample_rate, codec.num_codebooks, codec.codebook_size) == (1600, 4, 16)
    assert (codec.downsampling_ratio, codec.frame_rate) == (8, 200.0)


def test_fewer_codebooks(build_tiny: Callable[..., Codec]) -> None:
    whole, cut = build_tiny("encodec"), build_tiny("encodec", num_quantizers=2)
    audio = torch.randn(1, 1, 200)
    codes = cut.encode(audio)[0]
    assert torch.equal(codes, whole.encode(audio)[0][:, :2])
    assert cut.decode(codes).shape == (1, 1, 200)
    assert len(cut.state_dict()) < len(whole.state_dict())
    with pytest.raises(ValueError, match="must be at most 4.*but is 5"):
        build_tiny("encodec", num_quantizers=5)


def test_what_codes_cannot_describe_is_refused(tmp_path: Path) -> None:
    config = EncodecConfig(normalize=True, num_filters=2, hidden_size=4, upsampling_ratios=[2])
    EncodecModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`normalize: False`"):
        build_codec({"type": "encodec", "config": {"model_path": str(tmp_path)}})


@pytest.mark.parametrize("name", ["encodec", "autoencoder seanet rvq"])
def test_streaming_decodes_nothing_twice(name: str, build_tiny: Callable[..., Codec]) -> None:
    codec, frames = build_tiny(name), 0

    def count(_: Any, inputs: tuple[torch.Tensor, ...], __: Any) -> None:
        nonlocal frames
        frames += len(inputs[0])

    hook = codec.decoder.layers[1].lstm.register_forward_hook(count)
    assert codec.streaming_decoder().flush().shape[2] == 0
    decoder = codec.streaming_decoder()
    for piece in torch.randint(16, (2, codec.num_codebooks, 50)).split(5, dim=2):
        decoder.push(piece)
    decoder.flush()
    hook.remove()
    assert frames == 50
