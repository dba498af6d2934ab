"""What every codec promises, whatever is inside."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from whalesong.modules.codec.build import build_codec
from whalesong.modules.codec.codec import Codec


@pytest.fixture(scope="module")
def codec(codec_name: str, build_tiny: Callable[..., Codec]) -> Codec:
    return build_tiny(codec_name)


def noise(codec: Codec, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 0.3 * torch.randn(*shape, generator=generator)


def random_codes(codec: Codec, num_rows: int, num_frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    shape = (num_rows, codec.num_codebooks, num_frames)
    return torch.randint(codec.codebook_size, shape, generator=generator)


def test_frames_are_counted(codec: Codec) -> None:
    ratio = codec.downsampling_ratio
    lens = torch.tensor([10 * ratio, 10 * ratio + 1, 12 * ratio - 1, 1])
    audio = noise(codec, 4, codec.num_channels, 12 * ratio)
    codes, frames = codec.encode(audio, lens)
    assert frames.tolist() == [10, 11, 12, 1]
    assert codes.shape == (4, codec.num_codebooks, 12) and codes.dtype == torch.long
    assert 0 <= int(codes.min()) and int(codes.max()) < codec.codebook_size
    assert len(codes[2].unique()) > 1


def test_rows_do_not_depend_on_their_batch(codec: Codec) -> None:
    lens = torch.tensor([150, 64, 97]) * codec.downsampling_ratio // 10
    audio = noise(codec, 3, codec.num_channels, int(lens.max()))
    codes, frames = codec.encode(audio, lens)
    for row in range(3):
        alone, _ = codec.encode(audio[row : row + 1, :, : lens[row]])
        assert torch.equal(alone[0], codes[row, :, : frames[row]])
        assert not codes[row, :, frames[row] :].any()


def test_decoding_gives_whole_frames(codec: Codec) -> None:
    for num_frames in (0, 1, 2, 30):
        audio = codec.decode(random_codes(codec, 2, num_frames))
        assert audio.shape == (2, codec.num_channels, num_frames * codec.downsampling_ratio)
        assert audio.isfinite().all()


@pytest.mark.parametrize("num_frames", [3, 60])
def test_pieces_equal_the_whole(codec: Codec, num_frames: int) -> None:
    codes = random_codes(codec, 2, num_frames)
    whole = codec.decode(codes)
    for sizes in ([1] * 20, [7, 0, 1, 20]):
        decoder = codec.streaming_decoder()
        parts = codes.split_with_sizes(_cut(sizes, num_frames), dim=2)
        pieces = [*map(decoder.push, parts), decoder.flush()]
        torch.testing.assert_close(torch.cat(pieces, dim=2), whole, atol=1e-4, rtol=0)


def _cut(sizes: list[int], total: int) -> list[int]:
    """The first sizes, and what they leave of the total."""
    kept: list[int] = []
    for size in sizes:
        kept.append(min(size, total - sum(kept)))
    return [*kept, total - sum(kept)]


def test_far_frames_do_not_matter(codec: Codec) -> None:
    codes = random_codes(codec, 1, 90)
    changed = codes.clone()
    changed[:, :, 45] = (changed[:, :, 45] + 1) % codec.codebook_size
    difference = (codec.decode(codes) - codec.decode(changed)).abs().amax(dim=1)[0]
    frames = difference.unflatten(0, (90, -1)).amax(dim=1).nonzero().squeeze(1)
    left, right = codec.receptive_field
    assert 45 - right <= int(frames.min()) <= 45
    assert left is None or int(frames.max()) <= 45 + left


def test_assets_and_state_make_the_same_codec(
    codec: Codec, codec_section: Callable[[str], dict[str, Any]], codec_name: str
) -> None:
    section = codec_section(codec_name)
    section["config"] = {key: "nowhere" for key in section["config"]}
    again = build_codec(section, assets=codec.assets)
    audio = noise(codec, 2, codec.num_channels, 20 * codec.downsampling_ratio)
    again.encode(audio)
    again.load_state_dict(codec.state_dict())
    codes, _ = again.encode(audio)
    assert torch.equal(codes, codec.encode(audio)[0])
    torch.testing.assert_close(again.decode(codes), codec.decode(codes), atol=0, rtol=0)
    assert again.assets == codec.assets
    assert again.receptive_field == codec.receptive_field


def test_goes_to_another_process(codec: Codec) -> None:
    again = pickle.loads(pickle.dumps(codec))
    codes = random_codes(codec, 1, 20)
    torch.testing.assert_close(again.decode(codes), codec.decode(codes), atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stays_frozen_and_in_fp32(codec: Codec, dtype: torch.dtype) -> None:
    before = {name: tensor.clone() for name, tensor in codec.state_dict().items()}
    outside = nn.ModuleDict({"codec": codec, "other": nn.Linear(2, 2)}).to(dtype).train()
    assert outside["other"].weight.dtype == dtype
    assert all(torch.equal(tensor, before[name]) for name, tensor in codec.state_dict().items())
    assert not any(module.training for module in codec.modules())
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    audio = noise(codec, 1, codec.num_channels, 20 * codec.downsampling_ratio)
    codes, _ = codec.encode(audio)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codec.encode(audio)[0], codes)
        assert codec.decode(codes).dtype == torch.float32


@pytest.mark.parametrize("value", [-1, 99999])
def test_codes_out_of_range_are_named(codec: Codec, value: int) -> None:
    codes = random_codes(codec, 1, 4)
    codes[0, -1, 2] = value
    with pytest.raises(ValueError, match=f"from 0 to {codec.codebook_size - 1}, but hold {value}"):
        codec.decode(codes)


def test_shapes_are_checked(codec: Codec) -> None:
    with pytest.raises(ValueError, match="must be \\(B, "):
        codec.decode(random_codes(codec, 1, 4)[:, :-1])
    with pytest.raises(ValueError, match="must be \\(B, "):
        codec.encode(torch.zeros(1, codec.num_channels + 1, 100))
