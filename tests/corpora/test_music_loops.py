"""Captioned loops: what is written, that splits share nothing, and that captions are true."""

import random

import numpy as np
import pytest
from lhotse import CutSet

from whalesong.core.errors import ConfigError, DataError
from whalesong.corpora.instruments import INSTRUMENTS
from whalesong.corpora.music_captions import (
    REGISTERS,
    TEMPOS,
    WORDS,
    Style,
    register_class,
    split_of,
    styles,
    tempo_class,
)
from whalesong.corpora.music_loops import synthesize_loops, write_music_loops

COUNTS = {"num_train": 42, "num_validation": 7, "num_test": 14}
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("music") / "loops"
    write_music_loops(folder, **COUNTS, seed=3, seconds=2.5, shard_size=20)
    return folder


def cuts_of(folder, split):
    return list(CutSet.from_shar(in_dir=str(folder / split)))


def style_of(cut):
    fields = ("tempo", "instrument", "register", "scale", "rhythm")
    return Style(*(cut.custom.get(field) for field in fields))


@pytest.mark.parametrize("split", SPLITS)
def test_loops_come_with_caption_attributes_and_whole_beats(folder, split):
    cuts = cuts_of(folder, split)
    assert len({cut.id for cut in cuts}) == len(cuts) == COUNTS[f"num_{split}"]
    for cut in cuts:
        audio, custom = cut.load_audio(), cut.custom
        assert audio.shape == (1, cut.num_samples) and cut.sampling_rate == 16000
        assert np.sqrt(np.mean(audio**2)) == pytest.approx(0.1, rel=0.1)
        assert np.abs(audio).max() < 1
        low, high = TEMPOS[custom["tempo"]]
        assert low <= custom["tempo_bpm"] <= high
        beats = cut.duration * custom["tempo_bpm"] / 60
        assert beats == pytest.approx(2 * round(beats / 2), abs=0.01)
        assert cut.duration == pytest.approx(2.5, abs=1.0)
        assert split_of(style_of(cut)) == split


def test_captions_name_every_attribute(folder):
    for cut in cuts_of(folder, "train"):
        for kind, words in WORDS.items():
            if kind in cut.custom:
                text = cut.supervisions[0].text
                assert any(word in text for word in words[cut.custom[kind]])


def test_pitches_lie_in_their_register(folder):
    melodies = [cut for cut in cuts_of(folder, "train") if "register" in cut.custom]
    assert len(melodies) == 36
    for cut in melodies:
        assert register_class(cut.custom["register_hz"]) == cut.custom["register"]
        assert cut.custom["register"] in INSTRUMENTS[cut.custom["instrument"]].registers


def test_no_style_or_sentence_of_the_test_split_is_trained_on():
    everything = {split: {s for found in styles(split).values() for s in found} for split in SPLITS}
    assert not everything["test"] & everything["train"]
    assert not everything["validation"] & everything["train"]
    for split in SPLITS:
        assert {style.tempo for style in everything[split]} == set(TEMPOS)
        assert {style.register for style in everything[split]} >= set(REGISTERS)
    rng, style = random.Random(0), Style("slow", "piano", "low", "major", "steady")
    trained = {style.caption(rng, split="train") for _ in range(3000)}
    tested = {style.caption(rng, split="test") for _ in range(1000)}
    assert not trained & tested


def test_equal_seeds_give_equal_loops_and_other_seeds_others(folder):
    written = cuts_of(folder, "test")
    again = synthesize_loops(split="test", count=14, seed=3, seconds=2.5)
    for one, two in zip(written, again, strict=True):
        assert one.supervisions[0].text == two.supervisions[0].text
        np.testing.assert_array_equal(one.load_audio(), two.load_audio())
    others = synthesize_loops(split="test", count=14, seed=4, seconds=2.5)
    texts = [cut.supervisions[0].text for cut in written]
    assert texts != [cut.supervisions[0].text for cut in others]


def test_classes_are_nearest_in_octaves():
    assert [tempo_class(bpm) for bpm in (40, 76, 80, 124, 130)] == (
        ["slow", "slow", "medium", "medium", "fast"]
    )
    assert [register_class(hz) for hz in (50, 165, 175, 520, 1000)] == (
        ["low", "low", "middle", "middle", "high"]
    )
    with pytest.raises(ConfigError, match="above 0, but is nan"):
        tempo_class(float("nan"))


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="must be new or empty"):
        write_music_loops(tmp_path, num_train=1, num_validation=1, num_test=1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_test": 0}, "`num_test` must be at least 1, but is 0"),
        ({"seconds": 1.0}, "`seconds` must be at least 2, but is 1.0"),
    ],
)
def test_an_empty_split_or_too_short_loops_are_refused(tmp_path, wrong, message):
    with pytest.raises(ConfigError, match=message):
        write_music_loops(tmp_path / "x", **{**COUNTS, **wrong})
