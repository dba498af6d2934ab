"""Batches of clips: codes or audio, crops, conditions, prompts, and what is refused."""

import io
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from lhotse import Recording, SupervisionSegment
from lhotse.array import Array, TemporalArray

from whalesong.core.errors import DataError
from whalesong.core.seeding import seeded
from whalesong.data.codes import CodecInfo
from whalesong.data.conversation import as_conversation
from whalesong.models.codec_lm.collator import CodecLMCollator

CODEC = CodecInfo("Tiny", "0123456789abcdef", 8000, 1, 2, 100, 80)


def recording(seconds, *, channels=1, rate=8000, id="clip", broken=False):
    samples = np.tile(np.linspace(0, 0.5, round(seconds * rate))[:, None], (1, channels))
    samples[-1] = np.nan if broken else samples[-1]
    data = io.BytesIO()
    soundfile.write(data, samples, rate, format="WAV", subtype="FLOAT")
    return Recording.from_bytes(data.getvalue(), recording_id=id)


def frames(seconds):
    """Codes whose frame f is f % 100 in both codebooks."""
    return np.tile(np.arange(round(seconds * 100)) % 100, (2, 1)).astype(np.uint8)


def clip(seconds, *, id="clip", text="a slow tune", with_codes=True, codes=None, **attributes):
    cut = recording(seconds, id=id, **attributes.pop("audio", {})).to_cut()
    cut.id = id
    if text is not None:
        cut.supervisions = [SupervisionSegment(id, id, 0, cut.duration, text=text)]
    for name, value in attributes.items():
        setattr(cut, name, value)
    if with_codes:
        values = frames(seconds) if codes is None else codes
        data = io.BytesIO()
        np.save(data, values)
        array = Array("memory_npy", "", data.getvalue(), list(values.shape))
        cut.codes = TemporalArray(array, temporal_dim=1, frame_shift=0.01, start=0)
    return cut


def collator(codec=CODEC, **settings):
    return CodecLMCollator(codec, **{"training": False, **settings})


def batch_of(collate, *cuts):
    return collate([collate.load(cut) for cut in cuts])


def test_codes_are_padded_with_their_lengths():
    batch = batch_of(collator(), clip(0.5, id="a"), clip(0.3, id="b"))
    assert batch["codes"].shape == (2, 2, 50) and batch["codes"].dtype == torch.long
    assert batch["codes_lens"].tolist() == [50, 30]
    assert batch["codes"][1, :, :30].equal(torch.arange(30).expand(2, 30))
    assert not batch["codes"][1, :, 30:].any()
    assert batch["ids"] == ["a", "b"] and batch["metadata"] == [{}, {}]
    assert "audio" not in batch and "prompt" not in batch


def test_without_codes_there_is_audio():
    batch = batch_of(collator(), clip(0.5, with_codes=False), clip(0.3, with_codes=False))
    assert batch["audio"].shape == (2, 1, 4000) and batch["audio"].dtype == torch.float32
    assert batch["audio_lens"].tolist() == [4000, 2400]
    assert not batch["audio"][1, :, 2400:].any()
    assert "codes" not in batch


def test_a_batch_of_both_kinds_is_refused():
    with pytest.raises(DataError, match="cut b has no codes, but cut a of the same batch has"):
        batch_of(collator(), clip(0.5, id="a"), clip(0.5, id="b", with_codes=False))


def test_no_clips_give_no_targets_and_null_conditions():
    collate = collator(condition_keys={"caption": "text"}, audio_prompt_ids=["sound"])
    batch = collate([])
    assert batch["codes"].shape == (1, 2, 0) and batch["codes_lens"].tolist() == [0]
    assert batch["metadata"] == [{"caption": None, "sound": None}] and batch["ids"] == []


def test_the_window_is_at_the_begin_in_validation_and_anywhere_in_training():
    cut = clip(2.0)
    validation, training = collator(max_frames=50), collator(max_frames=50, training=True)
    assert validation.load(cut).codes.equal(torch.arange(50).expand(2, 50))
    begins = set()
    for seed in range(40):
        with seeded(seed):
            codes = training.load(cut).codes
        with seeded(seed):
            assert training.load(cut).codes.equal(codes)
        assert codes.shape == (2, 50)
        assert ((codes[:, 1:] - codes[:, :-1]) % 100 == 1).all()
        begins.add(codes[0, 0].item())
    assert len(begins) > 10


def test_audio_is_cropped_to_the_same_window_as_codes():
    with_codes, without = clip(0.9), clip(0.9, with_codes=False)
    collate = collator(max_frames=50, training=True)
    whole = torch.from_numpy(without.load_audio())
    for seed in range(5):
        with seeded(seed):
            first = int(collate.load(with_codes).codes[0, 0])
        with seeded(seed):
            audio = collate.load(without).audio
        torch.testing.assert_close(audio, whole[:, first * 80 : first * 80 + 4000])


def test_tokens_are_frames_within_the_window():
    assert collator().measure_tokens(clip(2.0)) == 200
    assert collator(max_frames=50).measure_tokens(clip(2.0)) == 50
    assert collator(max_frames=50).measure_tokens(clip(0.305)) == 31


def test_conditions_are_texts_and_attributes():
    keys = {"caption": "text", "bpm": "tempo_bpm", "from": "seconds_start", "of": "seconds_total"}
    collate = collator(condition_keys=keys, max_frames=50, with_prompts=True)
    batch = batch_of(collate, clip(2.0, tempo_bpm=97.5))
    assert batch["metadata"] == [{"caption": "a slow tune", "bpm": 97.5, "from": 0.0, "of": 2.0}]
    assert batch["prompt"] is True


def test_an_attribute_may_stand_in_the_supervision():
    cut = clip(0.5)
    cut.supervisions[0].custom = {"mood": "sad"}
    assert collator(condition_keys={"m": "mood"}).load(cut).values == {"m": "sad"}


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (clip(0.5, bpm=90), "cut clip: must have the attribute 'tempo_bpm', but has bpm."),
        (
            clip(0.5, with_codes=False),
            "cut clip: must have the attribute 'tempo_bpm', but has none",
        ),
    ],
)
def test_a_missing_attribute_is_named(cut, message):
    with pytest.raises(DataError, match=message):
        collator(condition_keys={"bpm": "tempo_bpm"}).load(cut)


def test_a_missing_caption_is_named():
    with pytest.raises(DataError, match="cut clip: has no text"):
        collator(condition_keys={"caption": "text"}).load(clip(0.5, text=None))


def test_an_audio_prompt_is_the_begin_of_the_clip():
    collate = collator(audio_prompt_ids=["sound"], prompt_seconds=0.2)
    prompt = collate.load(clip(0.5)).values["sound"]
    assert prompt.equal(torch.arange(20).expand(2, 20)) and prompt.dtype == torch.long
    audio = collate.load(clip(0.5, with_codes=False)).values["sound"]
    assert audio.shape == (1, 1600) and audio.dtype == torch.float32
    assert collate.load(clip(0.1)).values["sound"].shape == (2, 10)


def test_a_recording_of_the_cut_is_its_audio_prompt():
    collate = collator(audio_prompt_ids=["sound"], prompt_seconds=0.2)
    prompt = collate.load(clip(0.5, prompt=recording(0.4, channels=2))).values["sound"]
    assert prompt.shape == (1, 1600) and prompt.dtype == torch.float32
    assert collate.load(clip(0.5, prompt=recording(0.1))).values["sound"].shape == (1, 800)


def test_other_rates_and_channels_are_converted_or_refused_when_strict():
    cut = clip(0.5, with_codes=False, audio={"channels": 2, "rate": 16000})
    assert collator().load(cut).audio.shape == (1, 4000)
    stereo = replace(CODEC, num_channels=2)
    assert collator(stereo).load(clip(0.5, with_codes=False)).audio.shape == (2, 4000)
    with pytest.raises(DataError, match="must have 1 channels, but has 2"):
        collator(strict=True).load(cut)
    with pytest.raises(DataError, match="sample rate of 8000 Hz, but has 16000 Hz"):
        collator(stereo, strict=True).load(cut)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (clip(0.5, with_codes=False, audio={"broken": True}), "cut clip: .* not finite"),
        (clip(0.5, codes=frames(0.5) + 60), "cut clip: codes must be from 0 to 99, but one is 109"),
        (clip(0.5, codes=frames(0.3)), "cut clip: codes must have 50 frames for 0.50 s"),
        (as_conversation(clip(0.5)), "'clip' must be a single clip"),
    ],
)
def test_clips_that_cannot_be_trained_on_are_named(cut, message):
    with pytest.raises(DataError, match=message):
        collator().load(cut)
