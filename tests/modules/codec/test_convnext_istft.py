"""The neural codec trains within seconds at a small size, and decodes piece by piece."""

import math

import pytest
import torch
from torch import Tensor

from whalesong.modules.codec.convnext_istft import ConvNextISTFTCodec, ConvNextISTFTSizes
from whalesong.modules.codec.training import CodecRecipe, train_convnext_codec

SIZES = ConvNextISTFTSizes(
    sample_rate=8000,
    hop_length=160,
    n_fft=320,
    num_codebooks=3,
    codebook_size=32,
    dim=48,
    latent_dim=16,
    num_blocks=2,
)
RECIPE = CodecRecipe(
    num_steps=100,
    learning_rate=4e-3,
    warmup_steps=25,
    start_crops=64,
    crop_frames=16,
    final_waveform_weight=40,
    magnitude_weight=4,
    log_weight=0.02,
)


def tones(count: int, *, seed: int) -> list[Tensor]:
    """Recordings of a second with eight harmonics that swell."""
    generator = torch.Generator().manual_seed(seed)
    times = torch.arange(8000) / 8000
    loudness = 0.06 + 0.04 * torch.sin(2 * math.pi * 3 * times)
    return [
        loudness * sum(torch.sin(2 * math.pi * pitch * h * times + h) / h**0.5 for h in range(1, 9))
        for pitch in 100 + 150 * torch.rand(count, generator=generator)
    ]


@pytest.fixture(scope="module")
def losses() -> list[float]:
    return []


@pytest.fixture(scope="module")
def codec(losses: list[float]) -> ConvNextISTFTCodec:
    audio = tones(20, seed=0)
    return train_convnext_codec(audio, SIZES, RECIPE, on_step=lambda _, loss: losses.append(loss))


@pytest.fixture(scope="module")
def codes(codec: ConvNextISTFTCodec) -> Tensor:
    """(2, K, 50)"""
    return codec.encode(torch.stack(tones(2, seed=1))[:, None])[0]


def test_training_lowers_the_loss(codec: ConvNextISTFTCodec, losses: list[float]) -> None:
    assert len(losses) == 100
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert not any(parameter.requires_grad for parameter in codec.parameters())


def test_held_out_audio_comes_back(codec: ConvNextISTFTCodec, codes: Tensor) -> None:
    audio = torch.stack(tones(2, seed=1))
    back = codec.decode(codes)[:, 0]
    assert (back - audio).abs().mean() < 0.8 * audio.abs().mean()


def test_codebooks_are_used(codec: ConvNextISTFTCodec) -> None:
    codes, _ = codec.encode(torch.cat(tones(10, seed=2))[None, None])
    assert all(len(row.unique()) > 10 for row in codes[0])


def test_equal_arguments_train_an_equal_codec() -> None:
    recipe = CodecRecipe(num_steps=4, warmup_steps=2, start_crops=8, crop_frames=16)
    first, again = (train_convnext_codec(tones(3, seed=0), SIZES, recipe) for _ in range(2))
    for ours, theirs in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_training_without_time_still_gives_codebooks() -> None:
    recipe = CodecRecipe(max_seconds=1e-9, start_crops=8, crop_frames=16)
    codec = train_convnext_codec(tones(3, seed=0), SIZES, recipe)
    assert codec.quantizer.codebooks.any(dim=2).all()


def test_training_needs_recordings() -> None:
    with pytest.raises(ValueError, match="needs recordings, but there are none"):
        train_convnext_codec([], SIZES)


@pytest.mark.parametrize("num_samples", [1, 159, 160, 161, 3000])
def test_every_started_frame_counts(codec: ConvNextISTFTCodec, num_samples: int) -> None:
    codes, lens = codec.encode(torch.randn(1, 1, num_samples))
    num_frames = -(-num_samples // 160)
    assert codes.shape == (1, 3, num_frames) and lens.tolist() == [num_frames]
    assert codec.decode(codes).shape == (1, 1, num_frames * 160)


def test_a_row_gives_the_codes_that_it_gives_alone(codec: ConvNextISTFTCodec) -> None:
    rows, lens = torch.stack(tones(3, seed=3))[:, None], torch.tensor([8000, 3211, 160])
    codes, frames = codec.encode(rows, lens)
    for row, length, together, count in zip(rows, lens, codes, frames, strict=True):
        alone, _ = codec.encode(row[None, :, :length])
        assert torch.equal(together[:, :count], alone[0])


@pytest.mark.parametrize("sizes", [[1] * 50, [20, 30], [0, 7, 33, 0, 10], [50]])
def test_pieces_equal_the_whole(codec: ConvNextISTFTCodec, codes: Tensor, sizes: list[int]) -> None:
    decoder = codec.streaming_decoder()
    pieces = [decoder.push(piece) for piece in codes.split(sizes, dim=2)]
    pieces.append(decoder.flush())
    torch.testing.assert_close(torch.cat(pieces, dim=2), codec.decode(codes), atol=1e-5, rtol=0)


def test_a_frame_reaches_as_far_as_the_receptive_field(
    codec: ConvNextISTFTCodec, codes: Tensor
) -> None:
    changed = codes.clone()
    changed[:, :, 25] = (changed[:, :, 25] + 1) % codec.codebook_size
    differs = (codec.decode(changed) != codec.decode(codes)).any(0)[0].nonzero().squeeze(1) // 160
    left, right = codec.receptive_field
    assert (left, right) == (7, 7)
    assert 25 - right <= int(differs.min()) < 25 < int(differs.max()) <= 25 + left


def test_fewer_codebooks_are_the_first_ones(codec: ConvNextISTFTCodec, codes: Tensor) -> None:
    audio = torch.stack(tones(2, seed=1))[:, None]
    assert torch.equal(codec.truncated(2).encode(audio)[0], codes[:, :2])


def test_a_kernel_is_odd() -> None:
    with pytest.raises(ValueError, match="must be odd"):
        ConvNextISTFTSizes(kernel_size=4)
