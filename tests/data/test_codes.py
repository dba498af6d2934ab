"""Codes as a field of shar: every reader finds them, and wrong ones are named."""

import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, Recording

from whalesong.core.errors import DataError
from whalesong.data.audio import load_audio
from whalesong.data.channels import load_channels
from whalesong.data.codes import CodecInfo, has_codes, load_codes, read_codec_info
from whalesong.data.codes_writer import write_codes

CODEC = CodecInfo("Tiny", "0123456789abcdef", 8000, 1, 3, 300, 80)


def codes_of(index, frames):
    return torch.arange(3 * frames).view(3, frames).add(7 * index) % CODEC.codebook_size


@pytest.fixture
def shar(corpus, tmp_path):
    """A copy of the corpus of 24 cuts in 4 shards, with codes."""
    folder = tmp_path / "shar"
    folder.mkdir()
    for file in corpus.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    rewrite_codes(folder, codes_of)
    return folder


def rewrite_codes(folder, make, codec=CODEC):
    for number in range(4):
        files = {
            field: [str(folder / f"{field}.{number:06d}.{end}")]
            for field, end in (("cuts", "jsonl.gz"), ("recording", "tar"))
        }
        cuts = list(CutSet.from_shar(fields=files))
        items = [(cut, make(int(cut.id[3:]), CODEC.num_frames(cut.duration))) for cut in cuts]
        write_codes(folder / f"codes.{number:06d}.tar", items, codec)


def examples(plan_of, folder, **keys):
    plan = plan_of(shar_path=str(folder), batch_size=4, shuffle=False, **keys)
    return list(plan.examples(0))


def test_codes_come_back_and_audio_and_text_are_as_before(shar, corpus, plan_of):
    cuts, before = examples(plan_of, shar), examples(plan_of, corpus)
    assert len(cuts) == 24
    for index, (cut, other) in enumerate(zip(cuts, before, strict=True)):
        assert cut.supervisions == other.supervisions
        np.testing.assert_array_equal(
            load_audio(cut, sample_rate=8000), load_audio(other, sample_rate=8000)
        )
        assert has_codes(cut) and not has_codes(other)
        codes = load_codes(cut, CODEC)
        assert codes.dtype == torch.long
        assert torch.equal(codes, codes_of(index, CODEC.num_frames(cut.duration)))


def test_lhotse_reads_the_folder_too(shar):
    for index, cut in enumerate(CutSet.from_shar(in_dir=str(shar))):
        expected = codes_of(index, CODEC.num_frames(cut.duration))
        np.testing.assert_array_equal(cut.load_codes(), expected)
        assert torch.equal(load_codes(cut, CODEC), expected)
        assert cut.load_audio().shape == (1, cut.num_samples)


@pytest.mark.parametrize(("size", "dtype"), [(256, "uint8"), (2048, "int16"), (10**5, "int32")])
def test_codes_take_the_bytes_they_need(shar, size, dtype):
    rewrite_codes(shar, codes_of, replace(CODEC, codebook_size=size))
    with tarfile.open(shar / "codes.000000.tar") as tar:
        member = next(member for member in tar if member.name.endswith(".npy"))
        assert np.load(io.BytesIO(tar.extractfile(member).read())).dtype == dtype


def test_a_part_of_a_cut_has_the_codes_of_that_part(shar, plan_of):
    cut = max(examples(plan_of, shar), key=lambda cut: cut.duration)
    whole = load_codes(cut, CODEC)
    part = cut.truncate(offset=0.1, duration=0.2)
    assert torch.equal(load_codes(part, CODEC), whole[:, 10:30])


def test_the_file_tells_which_codec_has_made_it(shar):
    assert read_codec_info(shar / "codes.000002.tar") == CODEC
    assert read_codec_info(shar / "recording.000002.tar") is None
    with pytest.raises(DataError, match="no readable tar file"):
        read_codec_info(shar / "missing.tar")


def test_codes_of_another_codec_are_refused_with_both_names(shar, plan_of):
    cut = examples(plan_of, shar)[0]
    other = replace(CODEC, name="Other", fingerprint="fedcba9876543210")
    message = r"cut utt0: holds codes of Tiny 01234567 \(3 x 300.*the model has Other fedcba98 \(3"
    with pytest.raises(DataError, match=message):
        load_codes(cut, other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda i, n: torch.zeros(2, n).long(), r"must be \(3, frames\), but are \(2, "),
        (lambda i, n: torch.full((3, n), 300), "must be from 0 to 299, but one is 300"),
        (lambda i, n: torch.full((3, n), -1), "must be from 0 to 299, but one is -1"),
        (lambda i, n: torch.zeros(3, n + 5).long(), r"must have \d+ frames for .* s, but have"),
        (lambda i, n: torch.zeros(3, n // 2).long(), r"must have \d+ frames for .* s, but have"),
    ],
)
def test_wrong_codes_are_named_with_file_and_cut(shar, plan_of, make, message):
    rewrite_codes(shar, make)
    with pytest.raises(DataError, match=rf"codes\.000000\.tar, cut utt0: codes {message}"):
        load_codes(examples(plan_of, shar)[0], CODEC)


def test_codes_at_another_frame_rate_are_refused(shar, plan_of):
    rewrite_codes(shar, codes_of, replace(CODEC, downsampling_ratio=160))
    with pytest.raises(DataError, match="must have 100 frames/s, but have 50"):
        load_codes(examples(plan_of, shar)[0], CODEC)


def test_damaged_codes_are_named(shar, plan_of):
    path = shar / "codes.000000.tar"
    path.write_bytes(path.read_bytes().replace(b"\x93NUMPY", b"\x00NUMPY"))
    with pytest.raises(DataError, match="cut utt0: the codes cannot be decoded"):
        load_codes(examples(plan_of, shar)[0], CODEC)


def test_a_shard_without_codes_is_named_before_anything_is_read(shar, plan_of):
    (shar / "codes.000003.tar").unlink()
    with pytest.raises(DataError, match=r"has no file codes\.000003\.\* of shard 000003"):
        examples(plan_of, shar)


def test_a_broken_header_is_named(tmp_path):
    path = tmp_path / "codes.000000.tar"
    header = {"WHALESONG.codec": json.dumps({"name": "x"})}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=header) as tar:
        tar.addfile(tarfile.TarInfo("a"), io.BytesIO())
    with pytest.raises(DataError, match=r"its header WHALESONG\.codec is broken"):
        read_codec_info(path)


def test_a_cut_without_codes_is_named(corpus, plan_of):
    with pytest.raises(DataError, match="cut utt0: has no codes"):
        load_codes(examples(plan_of, corpus)[0], CODEC)


def recording(channels, rate=8000):
    data = io.BytesIO()
    samples = np.stack([np.full(rate // 2, 0.1 * (k + 1)) for k in range(channels)], axis=1)
    soundfile.write(data, samples, rate, format="WAV", subtype="FLOAT")
    return Recording.from_bytes(data.getvalue(), recording_id="clip").to_cut()


@pytest.mark.parametrize(
    ("found", "wanted", "levels"),
    [(1, 1, [0.1]), (2, 2, [0.1, 0.2]), (2, 1, [0.15]), (1, 2, [0.1, 0.1]), (3, 1, [0.2])],
)
def test_channels_are_mixed_or_repeated(found, wanted, levels):
    audio = load_channels(recording(found), sample_rate=8000, num_channels=wanted)
    assert audio.shape == (wanted, 4000)
    torch.testing.assert_close(audio.mean(dim=1), torch.tensor(levels))


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (recording(2), "must have 1 channels, but has 2"),
        (recording(1, 16000), "must have a sample rate of 8000 Hz, but has 16000 Hz"),
    ],
)
def test_strict_refuses_with_both_values(cut, message):
    with pytest.raises(DataError, match=f"cut {cut.id}: {message}"):
        load_channels(cut, sample_rate=8000, num_channels=1, strict=True)
    assert load_channels(cut, sample_rate=8000, num_channels=1).shape == (1, 4000)


def test_channels_that_nobody_knows_how_to_mix_are_refused():
    with pytest.raises(DataError, match="must have 2 channels, but has 3"):
        load_channels(recording(3), sample_rate=8000, num_channels=2)


def test_channels_of_a_nemo_manifest_are_those_of_the_file(tmp_path, plan_of):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.tile([0.1, 0.3], (8000, 1)), 8000)
    manifest = tmp_path / "manifest.json"
    row = {"audio_filepath": str(path), "duration": 1.0, "text": "two channels"}
    manifest.write_text(json.dumps(row) + "\n")
    plan = plan_of(manifest_filepath=str(manifest), batch_size=1, shuffle=False)
    (cut,) = plan.examples(0)
    audio = load_channels(cut, sample_rate=8000, num_channels=2)
    torch.testing.assert_close(audio.mean(dim=1), torch.tensor([0.1, 0.3]), atol=1e-4, rtol=0)
    with pytest.raises(DataError, match="must have 1 channels, but has 2"):
        load_channels(cut, sample_rate=8000, num_channels=1, strict=True)
