"""A corpus of short musical loops with captions, synthesized on the spot, as lhotse shar."""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from lhotse import MonoCut

from whalesong.core.errors import ConfigError
from whalesong.corpora.grammar import Split
from whalesong.corpora.instruments import DRUMS, INSTRUMENTS
from whalesong.corpora.music_captions import (
    REGISTERS,
    RHYTHMS,
    SCALES,
    TEMPOS,
    Style,
    midi_to_hz,
    styles,
)
from whalesong.corpora.music_shar import SplitSummary, write_splits
from whalesong.corpora.recordings import as_cut
from whalesong.corpora.splits import split_counts

CHORDS: tuple[tuple[int, ...], ...] = ((0, 3, 4, 0), (0, 5, 3, 4), (0, 4, 5, 3), (0, 1, 4, 0))
"""Progressions, as degrees of a scale; a chord lasts two beats."""

RMS = 0.1
"""Loudness of every loop, about -20 dB of full scale."""


@dataclass(frozen=True)
class Sound:
    """One note or stroke of a loop."""

    beat: float
    length: float
    """In beats."""
    strength: float
    pitch: int | str
    """A MIDI note, or a part of the drum kit."""


def write_music_loops(
    folder: str | Path,
    *,
    num_train: int,
    num_validation: int,
    num_test: int,
    seed: int = 0,
    seconds: float = 4.0,
    shard_size: int = 200,
    sample_rate: int = 16000,
) -> dict[Split, SplitSummary]:
    """Write `folder/{train,validation,test}` as lhotse shar with `cuts` and flac `recording`.

    Each cut has a caption as the text of its supervision. Its custom attributes are tempo,
    instrument, register, scale and rhythm, `tempo_bpm`, and `register_hz`, the median pitch; drums
    have no register, scale and pitch. No test or validation combination of tempo, instrument,
    register, scale and rhythm occurs in training, and no test caption is worded as in training.
    The end of a loop leads back to its begin. Equal arguments write equal cuts.

    Args:
        folder: a new or empty folder; it appears only when all of it is written.
        num_train: how many training loops.
        num_validation: how many validation loops.
        num_test: how many test loops.
        seed: what loops and words are drawn from.
        seconds: about how long a loop is; it has an even number of beats.
        shard_size: loops per shard.
        sample_rate: of the recordings, in Hz.

    Raises:
        ConfigError: a count is below 1, or loops are too short for two slow beats.
        DataError: if `folder` is not empty.
    """
    counts = split_counts(
        num_train=num_train,
        num_validation=num_validation,
        num_test=num_test,
        shard_size=shard_size,
    )
    if seconds < 2:
        raise ConfigError(f"`seconds` must be at least 2, but is {seconds} instead.")
    cuts_of = partial(synthesize_loops, seed=seed, seconds=seconds, sample_rate=sample_rate)
    return write_splits(folder, cuts_of, counts=counts, shard_size=shard_size)


def synthesize_loops(
    *, split: Split, count: int, seed: int, seconds: float = 4.0, sample_rate: int = 16000
) -> Iterator[MonoCut]:
    """Synthesize the loops of one split as cuts with their audio in memory."""
    rng = random.Random(f"{split} {seed}")
    deck = _deal_styles(split, rng)
    for index in range(count):
        style = next(deck)
        bpm = round(rng.uniform(*TEMPOS[style.tempo]), 1)
        caption = style.caption(rng, split=split)
        sounds = compose(style, rng, num_beats=max(2, 2 * round(seconds * bpm / 120)))
        noise = np.random.default_rng(rng.getrandbits(32))
        audio = render(sounds, style.instrument, bpm=bpm, sample_rate=sample_rate, rng=noise)
        attributes = {key: value for key, value in asdict(style).items() if value is not None}
        attributes["tempo_bpm"] = bpm
        if style.register is not None:
            pitches = np.median([sound.pitch for sound in sounds])
            attributes["register_hz"] = round(midi_to_hz(float(pitches)), 1)
        yield as_cut(
            f"{split}-{index:06d}", audio, sample_rate, text=caption, attributes=attributes
        )


def _deal_styles(split: Split, rng: random.Random) -> Iterator[Style]:
    """All instruments equally often, and all styles of each before one comes again."""
    decks: dict[str, list[Style]] = {}
    by_instrument = {name: found for name, found in styles(split).items() if found}
    while True:
        for name in rng.sample(sorted(by_instrument), len(by_instrument)):
            if not decks.get(name):
                decks[name] = rng.sample(by_instrument[name], len(by_instrument[name]))
            yield decks[name].pop()


def compose(style: Style, rng: random.Random, *, num_beats: int) -> list[Sound]:
    """Write the notes of a loop."""
    if style.instrument == "drums":
        return _compose_drums(style, num_beats)
    scale = SCALES[style.scale]
    # The root leaves room for an octave of notes above it, within the 12 semitones of a register.
    root = REGISTERS[style.register] + rng.choice((0, 2, 3, 5))
    top = REGISTERS[style.register] + 12
    chords, degree = rng.choice(CHORDS), 0
    steps = RHYTHMS[style.rhythm]
    # Every bar of two beats moves in the same way over its own chord: a motif.
    moves = [rng.choice((-2, -1, 1, 2)) for _ in range(2 * len(steps))]
    opening = [rng.choice((0, 2, 4)) for _ in range(2)]
    sounds = []
    for beat in range(num_beats):
        chord = chords[beat // 2 % len(chords)]
        for index, (place, strength) in enumerate(steps):
            move = moves[(beat % 2) * len(steps) + index]
            degree = chord + opening[beat % 2] if index == 0 else degree + move
            following = steps[index + 1][0] if index + 1 < len(steps) else 1.0
            accent = 1.0 if beat % 4 == 0 else 0.9
            note = _note(root, scale, degree, top=top)
            sounds.append(Sound(beat + place, following - place, accent * strength, note))
    return sounds


def _compose_drums(style: Style, num_beats: int) -> list[Sound]:
    sounds = []
    for beat in range(num_beats):
        sounds.append(Sound(beat, 1, 1.0, "kick"))
        if beat % 2:
            sounds.append(Sound(beat, 1, 0.6, "snare"))
        sounds += [
            Sound(beat + place, 0.5, strength, "hat") for place, strength in RHYTHMS[style.rhythm]
        ]
    return sounds


def _note(root: int, scale: tuple[int, ...], degree: int, *, top: int) -> int:
    """A degree of a scale as a MIDI note, moved by octaves to stand between `root` and `top`."""
    note = root + scale[degree % len(scale)]
    return note if note <= top else note - 12


def render(
    sounds: list[Sound], instrument: str, *, bpm: float, sample_rate: int, rng: np.random.Generator
) -> np.ndarray:
    """Play a loop: float32, (N,), with N a whole number of beats.

    Notes that ring past the end are heard at the begin, so that the loop has no seam.
    """
    beat = 60.0 / bpm
    num_beats = 1 + int(max(sound.beat for sound in sounds))
    audio = np.zeros(round(num_beats * beat * sample_rate))
    played: dict[tuple[int | str, float], np.ndarray] = {}
    for sound in sounds:
        key = sound.pitch, sound.length
        if key not in played:
            played[key] = _play(sound, instrument, beat, sample_rate, rng)
        _add_around(audio, sound.strength * played[key], round(sound.beat * beat * sample_rate))
    audio = _in_a_room(audio, sample_rate, rng)
    audio *= RMS / np.sqrt(np.mean(audio**2))
    return np.tanh(audio).astype(np.float32)


def _play(
    sound: Sound, instrument: str, beat: float, sample_rate: int, rng: np.random.Generator
) -> np.ndarray:
    if isinstance(sound.pitch, str):
        return DRUMS[sound.pitch](sample_rate, rng)
    note = INSTRUMENTS[instrument].note
    return note(midi_to_hz(sound.pitch), sound.length * beat, sample_rate, rng)


def _add_around(audio: np.ndarray, wave: np.ndarray, start: int) -> None:
    """Add `wave` from `start` on; what passes the end comes in at the begin."""
    start %= len(audio)
    for begin in range(-start, len(wave), len(audio)):
        piece = wave[max(begin, 0) : begin + len(audio)]
        place = start if begin < 0 else 0
        audio[place : place + len(piece)] += piece


def _in_a_room(audio: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Add a little reverberation, around the seam of the loop."""
    times = np.arange(int(0.25 * sample_rate)) / sample_rate
    room = 0.02 * rng.standard_normal(len(times)) * np.exp2(-times / 0.05)
    room[0] = 1.0
    # A power of two: a length with large prime factors takes ten times as long.
    size = 1 << (len(audio) + len(room)).bit_length()
    reverberant = np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(room, size), size)
    wet = reverberant[: len(audio)]
    _add_around(wet, reverberant[len(audio) : len(audio) + len(room)], 0)
    return wet
