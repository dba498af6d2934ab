"""Looped melodies: what is written, and that no motif of a split is heard in another."""

import random
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet, MonoCut

from whalesong.core.errors import ConfigError
from whalesong.corpora.melodies import (
    MOTIF_LENGTHS,
    NOTE_FRAMES,
    PITCHES,
    VOICES,
    draw_motif,
    motif_class,
    split_of,
    synthesize_melodies,
    write_melodies,
)

COUNTS = {"num_train": 24, "num_validation": 8, "num_test": 8}
SPLITS = ("train", "validation", "test")
FRAME = 320
"""Samples of 20 ms at 16 kHz."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("melodies") / "corpus"
    write_melodies(folder, **COUNTS, seed=3, seconds=2.5, shard_size=10)
    return folder


def cuts_of(folder: Path, split: str) -> list[MonoCut]:
    return list(CutSet.from_shar(in_dir=str(folder / split)))


def heard(motif: tuple[int, ...]) -> set[tuple[int, ...]]:
    """What a listener can hear of a loop from any note on: the pitches as heard and in every key.

    Sixty notes are a whole number of loops of every length.
    """
    rounds = 60 // len(motif)
    loops = [motif[start:] + motif[:start] for start in range(len(motif))]
    places = [[PITCHES.index(note) for note in loop * rounds] for loop in loops]
    return {tuple(place - row[0] for place in row) for row in places}


@pytest.mark.parametrize("split", SPLITS)
def test_melodies_come_with_what_is_played(folder: Path, split: str) -> None:
    cuts = cuts_of(folder, split)
    assert len({cut.id for cut in cuts}) == len(cuts) == COUNTS[f"num_{split}"]
    assert {cut.custom["instrument"] for cut in cuts} == set(VOICES)
    assert len({cut.custom["tempo"] for cut in cuts}) > 1
    for cut in cuts:
        motif = tuple(cut.custom["motif"])
        assert split_of(motif) == split
        assert len(motif) in MOTIF_LENGTHS and set(motif) <= set(PITCHES)
        assert cut.custom["note_frames"] == NOTE_FRAMES[cut.custom["tempo"]]
        assert len(cut.supervisions[0].text.split()) == len(motif)
        assert (cut.duration, cut.sampling_rate) == (2.5, 16000)
        assert np.abs(cut.load_audio()).max() < 1


def test_the_sound_repeats_with_the_loop_and_with_no_shorter_lag(folder: Path) -> None:
    for cut in cuts_of(folder, "test"):
        audio, note = cut.load_audio()[0], cut.custom["note_frames"] * FRAME
        motif = tuple(cut.custom["motif"])
        # Two units of the 16 bits: noise, and rounding.
        assert np.abs(audio[len(motif) * note :] - audio[: -len(motif) * note]).max() < 1.5e-4
        if len(motif_class(motif)) == len(motif):
            for lag in range(1, len(motif)):
                assert np.abs(audio[lag * note :] - audio[: -lag * note]).max() > 0.01


def test_no_motif_of_test_and_validation_is_heard_in_training_from_any_note_in_any_key() -> None:
    rng = random.Random(0)
    drawn = {split: {draw_motif(rng, split=split) for _ in range(800)} for split in SPLITS}
    trained = set().union(*map(heard, drawn["train"]))
    assert len(trained) > 500
    for split in ("validation", "test"):
        assert len(drawn[split]) > 100
        assert not trained & set().union(*map(heard, drawn[split]))


@pytest.mark.parametrize(
    ("motif", "other", "same"),
    [
        ((48, 52, 50), (52, 50, 48), True),  # from its second note on
        ((48, 52, 50), (60, 64, 62), True),  # an octave higher
        ((48, 52, 50), (50, 55, 52), True),  # from another place of the scale
        ((48, 52, 50), (48, 52, 50, 48, 52, 50), True),  # twice
        ((48, 52, 50), (48, 50, 52), False),
        ((48, 52, 50), (48, 52, 50, 50), False),
        ((48, 50, 48), (48, 50), False),
    ],
)
def test_motifs_are_one_where_their_loops_sound_alike(
    motif: tuple[int, ...], other: tuple[int, ...], same: bool
) -> None:
    assert (motif_class(motif) == motif_class(other)) is same
    assert bool(heard(motif) & heard(other)) is same


def test_equal_seeds_give_equal_melodies_and_other_seeds_others(folder: Path) -> None:
    written = cuts_of(folder, "test")
    again = synthesize_melodies(split="test", count=8, seed=3, seconds=2.5)
    for one, two in zip(written, again, strict=True):
        assert one.custom["motif"] == two.custom["motif"]
        np.testing.assert_array_equal(one.load_audio(), two.load_audio())
    others = synthesize_melodies(split="test", count=8, seed=4, seconds=2.5)
    assert [c.custom["motif"] for c in written] != [c.custom["motif"] for c in others]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_test": 0}, "`num_test` must be at least 1, but is 0"),
        ({"seconds": 0.7}, "`seconds` must be at least 0.72, the longest loop, but is 0.7"),
        ({"sample_rate": 22030}, "`sample_rate` must be a multiple of 50 Hz, but is 22030"),
    ],
)
def test_an_empty_split_or_notes_beside_the_frames_are_refused(
    tmp_path: Path, wrong: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        write_melodies(tmp_path / "x", **{**COUNTS, **wrong})
