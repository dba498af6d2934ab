"""Mimi: the same codes and samples as `transformers` gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import MimiModel

from whalesong.modules.codec.build import build_codec
from whalesong.modules.codec.codec import Codec


@torch.no_grad()
def test_equals_transformers(
    build_tiny: Callable[..., Codec], codec_section: Callable[[str], dict[str, Any]]
) -> None:
    codec = build_tiny("mimi")
    model = MimiModel.from_pretrained(codec_section("mimi")["config"]["model_path"]).eval()
    audio = torch.randn(2, 1, 16 * 20)
    codes, _ = codec.encode(audio)
    assert torch.equal(codes, model.encode(audio).audio_codes)
    torch.testing.assert_close(codec.decode(codes), model.decode(codes).audio_values)


def test_the_receptive_field_is_bounded(build_tiny: Callable[..., Codec]) -> None:
    left, right = build_tiny("mimi").receptive_field
    assert left is not None and right == 0


def test_fewer_codebooks(build_tiny: Callable[..., Codec]) -> None:
    audio = torch.randn(1, 1, 16 * 20)
    codes = build_tiny("mimi").encode(audio)[0]
    for count in (2, 3):
        cut = build_tiny("mimi", num_quantizers=count)
        assert torch.equal(cut.encode(audio)[0], codes[:, :count])
        assert cut.decode(codes[:, :count]).shape == audio.shape


def test_codebooks_follow_new_weights(
    build_tiny: Callable[..., Codec], codec_section: Callable[[str], dict[str, Any]]
) -> None:
    codec = build_tiny("mimi", num_quantizers=4)
    codes = torch.randint(16, (1, 4, 10))
    before = codec.decode(codes)
    state = {k: 2 * v if k.endswith("embed_sum") else v for k, v in codec.state_dict().items()}
    codec.load_state_dict(state)
    after = codec.decode(codes)
    assert not torch.equal(before, after)
    fresh = build_codec(codec_section("mimi"), assets=codec.assets)
    fresh.load_state_dict(state)
    assert torch.equal(fresh.decode(codes), after)


def test_semantic_codebooks_are_needed(build_tiny: Callable[..., Codec]) -> None:
    with pytest.raises(ValueError, match="must be at least 2, the semantic codebooks.*but is 1"):
        build_tiny("mimi", num_quantizers=1)
    with pytest.raises(ValueError, match="must be at most 4.*but is 5"):
        build_tiny("mimi", num_quantizers=5)
