"""Cuts manifests as VALL-E's tokenizer writes them: codes (F, K) as features of the cuts."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, Features, NumpyFilesWriter, Recording
from lhotse.utils import fastcopy

from whalesong.core.errors import DataError
from whalesong.data.channels import load_channels
from whalesong.data.codes import (
    CodecInfo,
    has_codes,
    load_codes,
    reaches_end,
    without_codes,
)

CODEC = CodecInfo("Tiny", "0123456789abcdef", 24000, 1, 4, 1024, 320)
SECONDS = (1.0, 0.83, 2.004)


def codes_of(index: int) -> torch.Tensor:
    """Codes (4, F) of a cut."""
    frames = CODEC.num_frames(SECONDS[index])
    return (torch.arange(4 * frames).view(4, frames) * 7 + 100 * index) % CODEC.codebook_size


def features(index, values, key, **changes):
    """A manifest of codes in a file of the folder "tokens"."""
    fields = {
        "type": "encodec", "num_frames": len(values), "num_features": values.shape[1],
        "frame_shift": 320 / 24000, "sampling_rate": 24000, "start": 0, "channels": 0,
        "duration": SECONDS[index], "recording_id": f"r{index}",
        "storage_type": "numpy_files", "storage_path": "tokens", "storage_key": key,
    }  # fmt: skip
    return Features(**{**fields, **changes})


def write_manifest(folder: Path, make=lambda values: values, **changes) -> Path:
    """`cuts_train.jsonl.gz` with recordings beside it and codes in files, all paths relative."""
    folder.mkdir(exist_ok=True)
    cuts = []
    with NumpyFilesWriter(folder / "tokens") as writer:
        for index, seconds in enumerate(SECONDS):
            audio = 0.1 * np.ones(round(seconds * 24000))
            soundfile.write(folder / f"{index}.wav", audio, 24000)
            cut = Recording.from_file(folder / f"{index}.wav", recording_id=f"r{index}").to_cut()
            cut.recording.sources[0].source = f"{index}.wav"
            cut.id = f"utt{index}"
            values = make(codes_of(index).T.numpy().astype(np.float32))
            cut.features = features(index, values, writer.write(cut.id, values), **changes)
            cuts.append(cut)
    CutSet.from_cuts(cuts).to_file(folder / "cuts_train.jsonl.gz")
    return folder / "cuts_train.jsonl.gz"


@pytest.fixture
def read(plan_of):
    """The cuts of a manifest, as a loader's worker gets them."""

    def cuts(path):
        item = {"type": "lhotse", "cuts_path": str(path)}
        plan = plan_of(input_cfg=[item], batch_size=2, shuffle=False)
        return sorted(plan.examples(0), key=lambda cut: cut.id)

    return cuts


def test_features_are_codes(read, tmp_path):
    cuts = read(write_manifest(tmp_path / "tokenized"))
    for index, cut in enumerate(cuts):
        assert has_codes(cut)
        codes = load_codes(cut, CODEC)
        assert codes.dtype == torch.long and codes.equal(codes_of(index))
        assert reaches_end(cut, CODEC)
        audio = load_channels(without_codes(cut), sample_rate=24000, num_channels=1)
        assert audio.shape == (1, round(SECONDS[index] * 24000))
        assert not has_codes(without_codes(cut))


def test_whole_numbers_of_other_types_are_codes_too(read, tmp_path):
    for kind in (np.int16, np.int64, np.float64):
        path = write_manifest(tmp_path / kind.__name__, partial(np.ndarray.astype, dtype=kind))
        cut = read(path)[0]
        assert load_codes(cut, CODEC).equal(codes_of(0))


def test_a_part_of_a_cut_has_the_codes_of_that_part(read, tmp_path):
    cut = read(write_manifest(tmp_path))[2]
    part = cut.truncate(offset=0.4, duration=0.8)
    assert load_codes(part, CODEC).equal(codes_of(2)[:, 30:90])
    assert not reaches_end(part, CODEC) and reaches_end(cut.truncate(offset=0.4), CODEC)
    alone = fastcopy(part, recording=None)
    assert load_codes(alone, CODEC).equal(codes_of(2)[:, 30:90])
    assert not reaches_end(alone, CODEC)
    assert reaches_end(fastcopy(cut.truncate(offset=0.4), recording=None), CODEC)


def test_codes_of_a_cut_within_a_recording_begin_with_the_cut(read, tmp_path):
    cut = read(write_manifest(tmp_path))[2].truncate(offset=1.004, preserve_id=True)
    own = read(write_manifest(tmp_path / "own", start=1.004, duration=1.0))[0]
    cut.features = own.features
    assert load_codes(cut, CODEC).equal(codes_of(0)) and reaches_end(cut, CODEC)
    assert load_codes(cut.truncate(offset=0.4), CODEC).equal(codes_of(0)[:, 30:])


def test_sizes_of_each_codebook_are_checked(read, tmp_path):
    cut = read(write_manifest(tmp_path, lambda values: values // 7 % [9, 8, 7, 6]))[0]
    assert load_codes(cut, CODEC, codebook_sizes=[9, 8, 7, 6]).max() == 8
    with pytest.raises(DataError, match="utt0: codes of codebook 3 must be from 0 to 5, but one"):
        load_codes(cut, CODEC, codebook_sizes=[9, 8, 6, 6])


def test_spectra_are_no_codes(read, tmp_path):
    cut = read(write_manifest(tmp_path, type="kaldi-fbank"))[0]
    assert not has_codes(cut)
    with pytest.raises(DataError, match="cut utt0: has no codes"):
        load_codes(cut, CODEC)


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (lambda values: values[:, :3], {}, r"codes must be \(4, frames\), but are \(3, 75\)"),
        (lambda values: values[:0], {}, r"codes must be \(4, frames\), but are \(4, 0\)"),
        (lambda values: values + 0.25, {}, "codes must be whole numbers, but one is 0.25"),
        (lambda values: values * np.nan, {}, "codes must be whole numbers, but one is nan"),
        (lambda values: values + np.inf, {}, "codes must be from 0 to 1023, but one is inf"),
        (lambda values: values + 1000, {}, "codes must be from 0 to 1023, but one is 1518"),
        (lambda values: values - 5, {}, "codes must be from 0 to 1023, but one is -5"),
        (lambda values: values > 0, {}, "codes must be whole numbers, but are bool"),
        (np.copy, {"frame_shift": 0.02}, "codes must have 75 frames/s, but have 50"),
        (lambda values: values[:60], {}, "codes must have 75 frames for 1.00 s, but have 60"),
        (
            lambda values: values[:60],
            {"duration": 0.8},
            "codes must have 75 frames for the cut, but have 60",
        ),
    ],
)
def test_wrong_codes_are_named_with_file_and_cut(read, tmp_path, make, changes, message):
    cut = read(write_manifest(tmp_path, make, **changes))[0]
    with pytest.raises(DataError, match=rf"utt0\.npy, cut utt0: {message}"):
        load_codes(cut, CODEC)


def test_a_missing_file_is_named(read, tmp_path):
    cut = read(write_manifest(tmp_path))[1]
    next((tmp_path / "tokens").rglob("utt1.npy")).unlink()
    with pytest.raises(DataError, match=r"utt1\.npy, cut utt1: the codes cannot be decoded .*such"):
        load_codes(cut, CODEC)


def test_hdf5_says_what_it_needs(read, tmp_path, monkeypatch):
    cut = read(write_manifest(tmp_path, storage_type="numpy_hdf5", storage_path="tokens.h5"))[0]
    monkeypatch.setattr("whalesong.data.codes.find_spec", lambda name: None)
    with pytest.raises(
        DataError, match=r"tokens\.h5, cut utt0: .* needs h5py \(pip install h5py\)"
    ):
        load_codes(cut, CODEC)


def test_another_codec_has_another_rate(read, tmp_path):
    cut = read(write_manifest(tmp_path))[0]
    with pytest.raises(DataError, match="must have 50 frames/s, but have 75"):
        load_codes(cut, replace(CODEC, downsampling_ratio=480))
