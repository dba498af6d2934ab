"""Reading audio: rates, channels, parts of files, fields beside the recording."""

import pickle

import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment
from lhotse.shar import SharWriter

from whalesong.core.errors import DataError
from whalesong.data.audio import load_audio, read_audio
from whalesong.data.shar_source import materialize


def tone(hertz, seconds, sample_rate):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * sample_rate)) / sample_rate)


@pytest.fixture
def stereo(tmp_path):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([np.full(4000, 0.2), np.full(4000, 0.4)], axis=1), 8000)
    return Recording.from_file(path).to_cut()


def test_resampling_keeps_the_signal(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(440, 0.5, 22050), 22050)
    audio = load_audio(Recording.from_file(tmp_path / "a.wav").to_cut(), sample_rate=16000)
    assert audio.dtype == np.float32 and audio.shape == (8000,)
    assert np.abs(audio - tone(440, 0.5, 16000))[200:-200].max() < 1e-2
    assert read_audio(Recording.from_file(tmp_path / "a.wav").to_cut())[1] == 22050


@pytest.mark.parametrize(("selector", "value"), [(0, 0.2), (1, 0.4), ("average", 0.3)])
def test_a_channel_is_selected(stereo, selector, value):
    audio = load_audio(stereo, sample_rate=8000, channel_selector=selector)
    assert audio.shape == (4000,) and np.allclose(audio, value, atol=1e-3)


def test_several_channels_need_a_choice(stereo):
    with pytest.raises(DataError, match=r"stereo.wav, cut .*: has 2 channels; set"):
        load_audio(stereo, sample_rate=8000)
    with pytest.raises(DataError, match=r"has 2 channels, but channel_selector is 5"):
        load_audio(stereo, sample_rate=8000, channel_selector=5)


def test_parts_and_mixtures(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.repeat([0.1, 0.3], 4000), 8000, subtype="FLOAT")
    cut = Recording.from_file(tmp_path / "a.wav").to_cut()
    late = load_audio(cut.truncate(offset=0.5, duration=0.25), sample_rate=8000)
    assert late.shape == (2000,) and np.allclose(late, 0.3)
    padded = load_audio(cut.pad(duration=1.5), sample_rate=8000)
    assert padded.shape == (12000,) and np.allclose(padded[4000:8000], 0.3)
    assert load_audio(cut.perturb_speed(2.0), sample_rate=8000).shape == (4000,)


@pytest.mark.parametrize(
    ("data", "message"),
    [(None, "cannot be read"), (b"", "is an empty file"), (b"nothing", "cannot be decoded")],
)
def test_files_that_are_no_audio(tmp_path, data, message):
    path = tmp_path / "x.wav"
    if data is not None:
        path.write_bytes(data)
    source = AudioSource("file", channels=[0], source=str(path))
    cut = Recording("x", [source], 8000, num_samples=8000, duration=1.0).to_cut()
    with pytest.raises(DataError, match=rf"x.wav, cut {cut.id}: {message}") as caught:
        load_audio(cut, sample_rate=8000)
    assert "\n" not in str(caught.value)


def test_a_file_whose_name_looks_like_a_reference(tmp_path):
    for name in ("take#1.wav", "a#b+c.wav"):
        soundfile.write(tmp_path / name, np.full(800, 0.2), 8000)
        cut = Recording.from_file(tmp_path / name).to_cut()
        assert np.allclose(load_audio(cut, sample_rate=8000), 0.2, atol=1e-3)


def test_a_cut_without_a_recording():
    with pytest.raises(DataError, match=r"no file, cut c: has no recording"):
        load_audio(MonoCut("c", 0, 1.0, 0), sample_rate=8000)


def test_all_fields_of_shar_are_light_until_they_are_read(tmp_path, plan_of, encode_wav):
    """Recording, second recording, array and a value; one cut lacks the second recording."""
    cuts = []
    for i in range(6):
        cut = Recording.from_bytes(encode_wav(np.full(800, i / 10)), recording_id=f"c{i}").to_cut()
        cut.id = f"c{i}"
        cut.supervisions = [SupervisionSegment(f"c{i}", f"c{i}", 0, 0.1, text="x")]
        if i != 2:
            target = encode_wav(np.full(1600, -i / 10), 16000)
            cut.target_audio = Recording.from_bytes(target, recording_id=f"t{i}")
        cut = cut.attach_tensor("codes", np.full((5, 3), i), frame_shift=0.02, temporal_dim=0)
        cut.emotion = "happy"
        cuts.append(cut)
    fields = {"recording": "flac", "target_audio": "wav", "codes": "numpy", "emotion": "jsonl"}
    (tmp_path / "shar").mkdir()
    with SharWriter(str(tmp_path / "shar"), fields=fields, shard_size=4) as writer:
        for cut in cuts:
            writer.write(cut)
    plan = plan_of(shar_path=str(tmp_path / "shar"), batch_size=6)
    [batch] = plan.batches(0)
    for light in batch:
        assert len(pickle.dumps(light)) < 3000
        cut, i = materialize(light), int(light.id[1:])
        assert np.allclose(cut.load_audio(), i / 10, atol=1e-3) and cut.emotion == "happy"
        assert (cut.load_codes() == i).all() and cut.load_codes().shape == (5, 3)
        if i == 2:
            assert not cut.has_custom("target_audio")
        else:
            assert np.allclose(cut.load_target_audio(), -i / 10, atol=1e-3)
