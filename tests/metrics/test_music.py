"""Tempo and register, measured from the sound of the corpus whose values are known."""

import numpy as np
import pytest

from whalesong.corpora.music_captions import register_class, tempo_class
from whalesong.corpora.music_loops import synthesize_loops
from whalesong.metrics.music import measure_register, measure_tempo

RATE = 16000


@pytest.fixture(scope="module")
def loops():
    cuts = synthesize_loops(split="train", count=140, seed=11)
    return [(cut.load_audio()[0], cut.custom) for cut in cuts]


def clicks(bpm, seconds=6.0):
    audio = np.random.default_rng(0).normal(0, 1e-4, int(seconds * RATE))
    for beat in np.arange(0, seconds - 0.1, 60 / bpm):
        start = int(beat * RATE)
        audio[start : start + 400] += np.hanning(400) * np.sin(np.arange(400))
    return audio


@pytest.mark.parametrize("bpm", [55, 80, 120, 170])
def test_the_tempo_of_clicks(bpm):
    assert measure_tempo(clicks(bpm), RATE) == pytest.approx(bpm, rel=0.03)


@pytest.mark.parametrize("hz", [65, 220, 440, 1200])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_the_pitch_of_a_tone_with_overtones(hz, rate):
    times = np.arange(rate) / rate
    audio = sum(np.sin(2 * np.pi * hz * n * times) / n for n in range(1, 5))
    assert measure_register(audio, rate) == pytest.approx(hz, rel=0.06)


def test_95_of_100_loops_have_the_tempo_and_the_register_of_their_captions(loops):
    tempos = [tempo_class(measure_tempo(audio, RATE)) == has["tempo"] for audio, has in loops]
    registers = [
        register_class(measure_register(audio, RATE)) == has["register"]
        for audio, has in loops
        if "register" in has
    ]
    assert np.mean(tempos) >= 0.95
    assert np.mean(registers) >= 0.95


def test_loudness_and_silence_around_it_do_not_matter(loops):
    audio = loops[0][0]
    assert measure_tempo(0.01 * audio, RATE) == pytest.approx(measure_tempo(audio, RATE))
    assert measure_register(0.01 * audio, RATE) == pytest.approx(measure_register(audio, RATE))


@pytest.mark.parametrize(
    ("measure", "audio", "message"),
    [
        (measure_tempo, np.ones(RATE), "at least 2 s, but lasts 1.00 s"),
        (measure_tempo, np.zeros(3 * RATE), "must have onsets"),
        (measure_register, np.ones(100), "at least 0.2 s"),
        (measure_register, np.zeros(RATE), "is silent"),
    ],
)
def test_what_cannot_be_measured_is_refused(measure, audio, message):
    with pytest.raises(ValueError, match=message):
        measure(audio, RATE)


def test_onsets_that_never_repeat_have_no_tempo() -> None:
    audio = np.zeros(3 * 16000, dtype=np.float32)
    audio[8000:8160] = 1.0
    with pytest.raises(ValueError, match="onsets that repeat"):
        measure_tempo(audio, 16000)
