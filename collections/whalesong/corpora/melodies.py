"""A corpus of looped melodies, synthesized on the spot: what comes next is in what was heard.

No motif of the test and validation splits is trained on, wherever its loop begins, in whatever key,
at whatever tempo and on whatever instrument. Notes stand on frames of 20 ms, so that a codec of 50
frames a second hears every repetition alike.
"""

import math
import random
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from lhotse import MonoCut

from whalesong.core.errors import ConfigError
from whalesong.corpora.grammar import Split
from whalesong.corpora.instruments import partials, shaped
from whalesong.corpora.music_captions import midi_to_hz
from whalesong.corpora.music_shar import SplitSummary, write_splits
from whalesong.corpora.recordings import as_cut
from whalesong.corpora.splits import split_counts

FRAME_RATE = 50
"""Notes begin and end on frames of this rate, in Hz."""

PITCHES = (48, 50, 52, 55, 57, 60, 62, 64, 67, 69, 72)
"""Two octaves of a pentatonic scale as MIDI notes; motifs walk up and down on them."""

MOTIF_LENGTHS = range(3, 7)
"""Notes of a motif."""

LARGEST_STEP = 3
"""Places of the scale from one note to the next, at most."""

NOTE_FRAMES: Mapping[str, int] = {"fast": 4, "medium": 5, "slow": 6}
"""Frames of a note at each tempo: so few that two seconds hold every loop at least twice."""

GAIN = 0.15
NOISE = 1e-5
"""Amplitude of the noise; more of it would make the finest codes impossible to foretell."""

_NOTE_NAMES = {0: "C", 2: "D", 4: "E", 7: "G", 9: "A"}

Motif = tuple[int, ...]
"""MIDI notes of `PITCHES` that are played over and over."""


@dataclass(frozen=True)
class Voice:
    """How the notes of an instrument sound: harmonics that die away, the high ones first."""

    slope: float
    """Harmonic h has the amplitude `h ** -slope`."""
    decay: float
    """The first harmonic falls as `exp(-decay * seconds)`."""
    attack: float
    """In seconds."""
    hollow: float
    """What even harmonics lack, from 0 to 1."""


VOICES: Mapping[str, Voice] = {
    "bright": Voice(slope=0.6, decay=3.0, attack=0.005, hollow=0.0),
    "plucked": Voice(slope=1.3, decay=6.0, attack=0.002, hollow=0.0),
    "reed": Voice(slope=0.9, decay=2.0, attack=0.02, hollow=0.5),
    "soft": Voice(slope=1.6, decay=4.0, attack=0.01, hollow=0.25),
}
"""The instruments: the same four in every split."""


@dataclass(frozen=True)
class Melody:
    """What is played."""

    motif: Motif
    instrument: str
    """A key of `VOICES`."""
    tempo: str
    """A key of `NOTE_FRAMES`."""


def write_melodies(
    folder: str | Path,
    *,
    num_train: int,
    num_validation: int,
    num_test: int,
    seed: int = 0,
    seconds: float = 5.0,
    shard_size: int = 200,
    sample_rate: int = 16000,
) -> dict[Split, SplitSummary]:
    """Write `folder/{train,validation,test}` as lhotse shar with `cuts` and flac `recording`.

    The text of a cut's supervision are the notes of its motif, "C3 D3 G3". Its custom attributes
    are `motif` (MIDI notes), `instrument`, `tempo` and `note_frames`. Splits share no motif, see
    `motif_class`. Equal arguments write equal cuts.

    Args:
        folder: a new or empty folder; it appears only when all of it is written.
        num_train: how many training melodies.
        num_validation: how many validation melodies.
        num_test: how many test melodies.
        seed: what motifs, instruments and tempos are drawn from.
        seconds: length of each.
        shard_size: melodies per shard.
        sample_rate: of the recordings, a multiple of 50 Hz.

    Raises:
        ConfigError: a count is below 1, no loop fits into `seconds`, or frames of `sample_rate`
            have no whole number of samples.
        DataError: if `folder` is not empty.
    """
    counts = split_counts(
        num_train=num_train,
        num_validation=num_validation,
        num_test=num_test,
        shard_size=shard_size,
    )
    _check(seconds, sample_rate)
    cuts_of = partial(synthesize_melodies, seed=seed, seconds=seconds, sample_rate=sample_rate)
    return write_splits(folder, cuts_of, counts=counts, shard_size=shard_size)


def _check(seconds: float, sample_rate: int) -> None:
    longest = max(MOTIF_LENGTHS) * max(NOTE_FRAMES.values()) / FRAME_RATE
    if seconds < longest:
        raise ConfigError(
            f"`seconds` must be at least {longest:g}, the longest loop, but is {seconds} instead."
        )
    if sample_rate < 1 or sample_rate % FRAME_RATE:
        raise ConfigError(
            f"`sample_rate` must be a multiple of {FRAME_RATE} Hz, but is {sample_rate} instead."
        )


def synthesize_melodies(
    *, split: Split, count: int, seed: int, seconds: float = 5.0, sample_rate: int = 16000
) -> Iterator[MonoCut]:
    """Synthesize the melodies of one split as cuts with their audio in memory."""
    rng = random.Random(f"{split} {seed}")
    for index in range(count):
        melody = Melody(
            motif=draw_motif(rng, split=split),
            instrument=sorted(VOICES)[index % len(VOICES)],
            tempo=rng.choice(sorted(NOTE_FRAMES)),
        )
        noise = np.random.default_rng(rng.getrandbits(32))
        audio = play(melody, seconds=seconds, sample_rate=sample_rate, rng=noise)
        attributes = {
            "motif": list(melody.motif),
            "instrument": melody.instrument,
            "tempo": melody.tempo,
            "note_frames": NOTE_FRAMES[melody.tempo],
        }
        text = " ".join(map(_note_name, melody.motif))
        yield as_cut(f"{split}-{index:06d}", audio, sample_rate, text=text, attributes=attributes)


def draw_motif(rng: random.Random, *, split: Split) -> Motif:
    """A random walk over the pitches, of more than one pitch, whose motif is of this split."""
    while True:
        places = [rng.randrange(len(PITCHES))]
        for _ in range(rng.choice(MOTIF_LENGTHS) - 1):
            low = max(places[-1] - LARGEST_STEP, 0)
            high = min(places[-1] + LARGEST_STEP, len(PITCHES) - 1)
            places.append(rng.randint(low, high))
        motif = tuple(PITCHES[place] for place in places)
        if len(set(motif)) > 1 and split_of(motif) == split:
            return motif


def split_of(motif: Motif) -> Split:
    """Tell which split a motif is in: "train" has 8 of 10 classes, the others one each."""
    # crc32 is the same on every machine and in every process, unlike hash().
    bucket = zlib.crc32(repr(motif_class(motif)).encode()) % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def motif_class(motif: Motif) -> tuple[int, ...]:
    """The intervals of a loop: equal for motifs that sound alike from some note on, in some key.

    Intervals count places of the scale, that of the last note leads back to the first. They are
    rotated to the smallest order, and a motif that repeats itself within counts once.
    """
    places = [PITCHES.index(note) for note in motif]
    steps = [after - before for before, after in zip(places, places[1:] + places[:1], strict=True)]
    rotations = [tuple(steps[start:] + steps[:start]) for start in range(len(steps))]
    period = next(n for n in range(1, len(steps) + 1) if rotations[n % len(steps)] == rotations[0])
    return min(rotations)[:period]


def play(
    melody: Melody, *, seconds: float, sample_rate: int, rng: np.random.Generator
) -> np.ndarray:
    """Play a motif over and over: float32, (N,). Only the noise differs between repetitions."""
    held = NOTE_FRAMES[melody.tempo] / FRAME_RATE
    voice = VOICES[melody.instrument]
    loop = np.concatenate([_note(pitch, voice, held, sample_rate) for pitch in melody.motif])
    audio = np.resize(loop, round(seconds * sample_rate))
    return (GAIN * audio + NOISE * rng.standard_normal(len(audio))).astype(np.float32)


def _note(pitch: int, voice: Voice, seconds: float, sample_rate: int) -> np.ndarray:
    order = np.arange(1, 9)
    wave = partials(
        midi_to_hz(pitch),
        seconds,
        sample_rate,
        levels=order**-voice.slope * np.where(order % 2, 1.0, 1.0 - voice.hollow),
        ratios=order.astype(float),
        half_lives=math.log(2) / (voice.decay * (1 + 0.25 * (order - 1))),
    )
    return shaped(wave, sample_rate, attack=voice.attack, release=0.01)


def _note_name(pitch: int) -> str:
    return f"{_NOTE_NAMES[pitch % 12]}{pitch // 12 - 1}"
