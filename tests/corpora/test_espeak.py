import numpy as np
import pytest

from whalesong.core.errors import DataError
from whalesong.corpora.espeak import Synthesizer

PLAIN = {"voice": "en-us", "variant": "f2", "rate_wpm": 160, "pitch": 50}


@pytest.fixture(scope="module")
def synthesizer() -> Synthesizer:
    return Synthesizer()


def test_speech_has_the_length_and_energy_of_speech(synthesizer):
    waveform = synthesizer.speak("turn on the kitchen light", **PLAIN)
    assert waveform.dtype == np.float32
    assert 1.0 < waveform.size / 16000 < 2.0
    assert 0.02 < np.sqrt(np.mean(waveform**2)) < 0.5
    assert np.abs(waveform).max() <= 1.0


def test_speech_lies_in_the_band_of_speech(synthesizer):
    waveform = synthesizer.speak("turn on the kitchen light", **PLAIN)
    power = np.abs(np.fft.rfft(waveform)) ** 2
    frequencies = np.fft.rfftfreq(waveform.size, 1 / 16000)
    assert power[(frequencies > 100) & (frequencies < 4000)].sum() > 0.8 * power.sum()


def test_sample_rate_changes_samples_but_not_duration(synthesizer):
    slow = Synthesizer(sample_rate=8000).speak("open the gate", **PLAIN)
    fast = synthesizer.speak("open the gate", **PLAIN)
    assert abs(2 * slow.size - fast.size) <= 2


@pytest.mark.parametrize("variant", ["f2", "m3", "Andy", "klatt2", "whisper"])
def test_audio_does_not_depend_on_what_was_spoken_before(synthesizer, variant):
    # Whispering and klatt draw noise; the others flutter and keep filter states.
    arguments = PLAIN | {"variant": variant}
    first = synthesizer.speak("turn on the kitchen light", **arguments)
    synthesizer.speak("something else", voice="en-029", variant="m1", rate_wpm=300, pitch=90)
    np.testing.assert_array_equal(
        first, synthesizer.speak("turn on the kitchen light", **arguments)
    )
    np.testing.assert_array_equal(
        first, Synthesizer().speak("turn on the kitchen light", **arguments)
    )


@pytest.mark.parametrize(
    "change", [{"variant": "m3"}, {"voice": "en-gb-scotland"}, {"rate_wpm": 200}, {"pitch": 80}]
)
def test_every_argument_changes_the_audio(synthesizer, change):
    plain = synthesizer.speak("open the gate", **PLAIN)
    changed = synthesizer.speak("open the gate", **PLAIN | change)
    assert plain.size != changed.size or not np.allclose(plain, changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"voice": "en-uss"}, "`voice` must be .* such as 'en-us', but is 'en-uss'"),
        ({"variant": "belind"}, "`variant` must be .* such as 'belinda', but is 'belind'"),
        ({"rate_wpm": 5}, "`rate_wpm` must be a whole number from 80 to 450, but is 5"),
        ({"pitch": 100}, "`pitch` must be a whole number from 0 to 99, but is 100"),
    ],
)
def test_bad_arguments_are_named(synthesizer, change, message):
    with pytest.raises(DataError, match=message):
        synthesizer.speak("open the gate", **PLAIN | change)


def test_text_without_words_is_refused(synthesizer):
    with pytest.raises(DataError, match="`text` must hold words"):
        synthesizer.speak("", **PLAIN)


def test_a_library_that_cannot_be_loaded_is_one_clear_line(monkeypatch, tmp_path):
    import espeakng_loader

    broken = tmp_path / "libespeak-ng.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(espeakng_loader, "get_library_path", lambda: str(broken))
    with pytest.raises(DataError, match="espeak-ng must load from .*libespeak-ng.so"):
        Synthesizer()
