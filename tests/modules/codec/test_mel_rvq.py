"""The mel codec is deterministic, local and near enough to what it tokenizes."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from whalesong.corpora.espeak import Synthesizer
from whalesong.corpora.grammar import sample_sentences
from whalesong.modules.codec.mel_rvq import MelRVQCodec, MelRVQSizes, fit_mel_rvq

SIZES = MelRVQSizes(num_codebooks=4, codebook_size=128, num_iterations=8)


def _speech(count: int, *, split: str) -> list[Tensor]:
    synthesizer = Synthesizer(sample_rate=16000)
    return [
        torch.from_numpy(
            synthesizer.speak(
                text,
                voice="en-us",
                variant=("f2", "m3", "f4")[index % 3],
                rate_wpm=180,
                pitch=40 + 5 * (index % 5),
            )
        )
        for index, text in enumerate(sample_sentences(0, count, split=split))
    ]


def _chords(count: int, *, seed: int) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    times = np.arange(16000) / 16000
    fading = np.exp(-3 * times)
    return [
        torch.from_numpy(
            sum(0.1 * fading * np.sin(2 * np.pi * f * times) for f in rng.uniform(110, 2000, 3))
        ).float()
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def training_audio() -> list[Tensor]:
    """About a minute, (N,) each."""
    return _speech(25, split="train") + _chords(10, seed=0)


@pytest.fixture(scope="module")
def held_out_audio() -> list[Tensor]:
    """Five recordings that no codec was made from, (N,) each."""
    return _speech(3, split="test") + _chords(2, seed=1)


@pytest.fixture(scope="module")
def codec(training_audio: list[Tensor]) -> MelRVQCodec:
    return fit_mel_rvq(training_audio, SIZES)


@pytest.fixture(scope="module")
def codes(codec: MelRVQCodec, held_out_audio: list[Tensor]) -> Tensor:
    """(1, K, F)"""
    return codec.encode(torch.cat(held_out_audio)[None, None])[0]


def mel_distance(codec: MelRVQCodec, audio: list[Tensor]) -> float:
    """Mean difference of log-mels between audio and what comes back."""
    whole = torch.cat(audio)
    whole = whole[: len(whole) // 320 * 320][None]
    back = codec.decode(codec.encode(whole[None])[0])[:, 0]
    return float((codec.log_mel(back) - codec.log_mel(whole)).abs().mean())


def test_a_fit_depends_on_its_seed_only(training_audio: list[Tensor]) -> None:
    few = training_audio[:6]
    sizes = MelRVQSizes(num_codebooks=2, codebook_size=32)
    first, again, other = (fit_mel_rvq(few, sizes, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.quantizer.codebooks, again.quantizer.codebooks)
    assert not torch.equal(first.quantizer.codebooks, other.quantizer.codebooks)


def test_threads_do_not_change_a_fit(training_audio: list[Tensor]) -> None:
    sizes = MelRVQSizes(num_codebooks=2, codebook_size=32)
    before, books = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            books.append(fit_mel_rvq(training_audio[:6], sizes).quantizer.codebooks)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*books)


def test_a_fit_needs_as_many_frames_as_centroids() -> None:
    with pytest.raises(ValueError, match="512 centroids need at least as many .* are 50"):
        fit_mel_rvq([torch.randn(16000)], MelRVQSizes())


@pytest.mark.parametrize("num_samples", [1, 319, 320, 321, 6400, 7001])
def test_every_started_frame_counts(codec: MelRVQCodec, num_samples: int) -> None:
    codes, lens = codec.encode(torch.randn(1, 1, num_samples))
    num_frames = -(-num_samples // 320)
    assert codes.shape == (1, 4, num_frames) and lens.tolist() == [num_frames]
    assert codec.decode(codes).shape == (1, 1, num_frames * 320)


def test_a_row_gives_the_codes_that_it_gives_alone(
    codec: MelRVQCodec, held_out_audio: list[Tensor]
) -> None:
    batch = pad_sequence(held_out_audio, batch_first=True)[:, None]
    together, frames = codec.encode(batch, torch.tensor([len(a) for a in held_out_audio]))
    for row, count, audio in zip(together, frames.tolist(), held_out_audio, strict=True):
        alone, _ = codec.encode(audio[None, None])
        assert torch.equal(row[:, :count], alone[0])
        assert not row[:, count:].any()


def test_rows_decode_alike_alone_and_together(codec: MelRVQCodec, codes: Tensor) -> None:
    rows = torch.cat([codes[:, :, :90], codes[:, :, 90:180]])
    alone = torch.cat([codec.decode(row[None]) for row in rows])
    torch.testing.assert_close(codec.decode(rows), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sizes", [[1] * 75, [50, 25], [0, 7, 33, 0, 1, 34], [75], [31, 40, 4]])
def test_pieces_equal_the_whole(codec: MelRVQCodec, codes: Tensor, sizes: list[int]) -> None:
    rows = torch.cat([codes[:, :, :75], codes[:, :, 75:150]])
    decoder = codec.streaming_decoder()
    pieces = [decoder.push(piece) for piece in rows.split(sizes, dim=2)]
    pieces.append(decoder.flush())
    torch.testing.assert_close(torch.cat(pieces, dim=2), codec.decode(rows), atol=1e-5, rtol=0)


def test_blocks_leave_no_seam() -> None:
    codec = MelRVQCodec(MelRVQSizes())
    tone = 0.3 * torch.sin(2 * torch.pi * 443 * torch.arange(200 * 320) / 16000)[None]
    back = codec.vocoder(codec.log_mel.transform(tone).abs())
    loudness = back.view(200, 320).square().mean(1).sqrt()[5:-5]
    torch.testing.assert_close(loudness, torch.full((190,), 0.3 / 2**0.5), atol=0, rtol=0.15)


def test_a_frame_reaches_as_far_as_the_receptive_field(codec: MelRVQCodec, codes: Tensor) -> None:
    changed = codes.clone()
    frame = 100
    changed[:, :, frame] = (changed[:, :, frame] + 1) % codec.codebook_size
    differs = (codec.decode(changed) != codec.decode(codes))[0, 0].nonzero().squeeze(1) // 320
    left, right = codec.receptive_field
    assert frame - right <= int(differs.min()) <= frame <= int(differs.max()) <= frame + left


def test_more_codebooks_come_nearer(codec: MelRVQCodec, held_out_audio: list[Tensor]) -> None:
    distances = [mel_distance(codec.truncated(count), held_out_audio) for count in (1, 2, 3, 4)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.42


def test_codebooks_are_used(codes: Tensor) -> None:
    assert all(len(row.unique()) > 60 for row in codes[0])


def test_fewer_codebooks_are_the_first_ones(
    codec: MelRVQCodec, held_out_audio: list[Tensor]
) -> None:
    audio = held_out_audio[0][None, None]
    assert torch.equal(codec.truncated(2).encode(audio)[0], codec.encode(audio)[0][:, :2])
    with pytest.raises(ValueError, match="from 1 to 4, .* but is 5"):
        codec.truncated(5)


def test_it_stays_in_fp32_and_in_evaluation(codec: MelRVQCodec, codes: Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = codec.decode(codes[:, :, :40])
    assert torch.equal(under_autocast, codec.decode(codes[:, :, :40]))
    assert not codec.train().training and codec.half().log_mel.filters.dtype == torch.float32


def test_fade_lies_within_the_context() -> None:
    with pytest.raises(ValueError, match="at most 2 frames, but `fade_frames` is 3"):
        MelRVQSizes(context_frames=2, fade_frames=3)


WINDOWED = {
    "hop_length": 1280,
    "windows_per_frame": 4,
    "num_codebooks": 2,
    "codebook_size": 64,
    "num_iterations": 4,
    "block_frames": 8,
    "context_frames": 4,
}


def test_a_frame_of_several_windows_streams_and_reaches_no_farther(
    training_audio: list[Tensor], held_out_audio: list[Tensor]
) -> None:
    windowed = fit_mel_rvq(training_audio[:6], MelRVQSizes(**WINDOWED))
    codes, lens = windowed.encode(torch.cat(held_out_audio)[None, None, : 30 * 1280 - 7])
    assert codes.shape == (1, 2, 30) and lens.tolist() == [30]
    whole = windowed.decode(codes)
    assert whole.shape == (1, 1, 30 * 1280)
    decoder = windowed.streaming_decoder()
    pieces = [decoder.push(piece) for piece in codes.split([1] * 9 + [0, 7, 14], dim=2)]
    torch.testing.assert_close(torch.cat([*pieces, decoder.flush()], dim=2), whole)
    changed = codes.clone()
    changed[:, :, 15] = (changed[:, :, 15] + 1) % 64
    differs = (windowed.decode(changed) != whole)[0, 0].nonzero().squeeze(1) // 1280
    left, right = windowed.receptive_field
    assert 15 - right <= int(differs.min()) <= 15 <= int(differs.max()) <= 15 + left


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows_per_frame": 7}, r"`windows_per_frame` must divide `hop_length` \(1280\)"),
        ({"block_frames": 10}, "`block_frames` must be a multiple of `windows_per_frame`"),
        ({"context_frames": 6}, "`context_frames` must be a multiple of `windows_per_frame`"),
    ],
)
def test_blocks_are_whole_frames(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MelRVQSizes(**WINDOWED | changes)
