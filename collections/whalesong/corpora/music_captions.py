"""What a loop can be, and how English says it; no combination is in two splits."""

import itertools
import math
import random
import zlib
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass

from whalesong.core.errors import ConfigError
from whalesong.corpora.grammar import Split
from whalesong.corpora.instruments import INSTRUMENTS

TEMPOS: Mapping[str, tuple[float, float]] = {
    "slow": (56.0, 66.0),
    "medium": (92.0, 106.0),
    "fast": (148.0, 170.0),
}
"""Beats per minute of each tempo."""

REGISTERS: Mapping[str, int] = {"low": 36, "middle": 57, "high": 76}
"""Lowest note of each register as a MIDI number; a melody stays within 12 semitones above it."""

SCALES: Mapping[str, tuple[int, ...]] = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "pentatonic": (0, 2, 4, 7, 9),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
}
"""Semitones above the root."""

RHYTHMS: Mapping[str, tuple[tuple[float, float], ...]] = {
    "steady": ((0, 1.0),),
    "flowing": ((0, 1.0), (1 / 2, 0.4)),
    "swinging": ((0, 1.0), (2 / 3, 0.4)),
    "triplets": ((0, 1.0), (1 / 3, 0.35), (2 / 3, 0.35)),
}
"""Notes of one beat: (where in the beat, how strong). The first is loudest: one hears the beat."""

WORDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "tempo": {
        "slow": ("slow", "leisurely"),
        "medium": ("moderate", "medium-tempo"),
        "fast": ("fast", "quick"),
    },
    "register": {
        "low": ("low", "deep"),
        "middle": ("mid-range", "middle-register"),
        "high": ("high", "high-pitched"),
    },
    "instrument": {
        "bass": ("bass", "synth bass"),
        "drums": ("drum", "drum kit"),
        "flute": ("flute", "wooden flute"),
        "guitar": ("guitar", "plucked guitar"),
        "marimba": ("marimba", "wooden marimba"),
        "organ": ("pipe organ", "church organ"),
        "piano": ("piano", "grand piano"),
    },
    "scale": {
        "major": ("major", "happy major"),
        "minor": ("minor", "sad minor"),
        "pentatonic": ("pentatonic", "five-note pentatonic"),
        "dorian": ("dorian", "jazzy dorian"),
    },
    "rhythm": {
        "steady": ("a steady beat", "steady quarter notes"),
        "flowing": ("flowing eighth notes", "an even flow of eighth notes"),
        "swinging": ("a swinging rhythm", "swinging eighth notes"),
        "triplets": ("rolling triplets", "a rhythm of triplets"),
    },
}
"""How each value may be called."""

TEMPLATES: tuple[str, ...] = (
    "a {tempo} {register} {instrument} melody in a {scale} scale with {rhythm}",
    "{register} {instrument}, {tempo}, {scale} scale, {rhythm}",
    "a {instrument} plays a {register} {scale} tune at a {tempo} pace with {rhythm}",
    "{tempo} music: {register} {instrument} in {scale} with {rhythm}",
    "a {tempo} loop of {rhythm} for a {register} {instrument} in a {scale} scale",
)
TEST_TEMPLATES: tuple[str, ...] = (
    "a {register} {instrument} loop with {rhythm}, {tempo}, in {scale}",
    "a {scale} tune with {rhythm} for {register} {instrument} at a {tempo} pace",
)
DRUM_TEMPLATES: tuple[str, ...] = (
    "a {tempo} {instrument} loop with {rhythm}",
    "{instrument} groove, {tempo}, {rhythm}",
    "a {instrument} plays {rhythm} at a {tempo} pace",
)
TEST_DRUM_TEMPLATES: tuple[str, ...] = ("{tempo} {instrument} music with {rhythm}",)


@dataclass(frozen=True)
class Style:
    """What the caption of a loop tells; drums have neither register nor scale."""

    tempo: str
    instrument: str
    register: str | None
    scale: str | None
    rhythm: str

    def caption(self, rng: random.Random, *, split: Split) -> str:
        """Say it in English; the test split has sentences of its own."""
        words = {
            kind: rng.choice(WORDS[kind][value])
            for kind, value in asdict(self).items()
            if value is not None
        }
        seen, unseen = (
            (TEMPLATES, TEST_TEMPLATES) if self.register else (DRUM_TEMPLATES, TEST_DRUM_TEMPLATES)
        )
        return rng.choice(unseen if split == "test" else seen).format(**words)


def styles(split: Split) -> dict[str, list[Style]]:
    """All styles of a split by instrument: "train" has 8 of 10, the others one each."""
    found: dict[str, list[Style]] = {name: [] for name in (*INSTRUMENTS, "drums")}
    for style in _all_styles():
        if split_of(style) == split:
            found[style.instrument].append(style)
    return found


def split_of(style: Style) -> Split:
    """Tell which split a combination of tempo, instrument, register, scale and rhythm is in."""
    # crc32 is the same on every machine and in every process, unlike hash().
    bucket = zlib.crc32(" ".join(map(str, astuple(style))).encode()) % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def _all_styles() -> list[Style]:
    melodies = [
        Style(tempo, name, register, scale, rhythm)
        for name, instrument in INSTRUMENTS.items()
        for register in instrument.registers
        for tempo, scale, rhythm in itertools.product(TEMPOS, SCALES, RHYTHMS)
    ]
    beats = [
        Style(tempo, "drums", None, None, rhythm)
        for tempo, rhythm in itertools.product(TEMPOS, RHYTHMS)
    ]
    return melodies + beats


def tempo_class(bpm: float) -> str:
    """The tempo whose range is nearest to a measured one, in octaves."""
    return _nearest(bpm, {name: math.sqrt(low * high) for name, (low, high) in TEMPOS.items()})


def register_class(hz: float) -> str:
    """The register whose middle is nearest to a measured pitch, in octaves."""
    return _nearest(hz, {name: midi_to_hz(low + 6) for name, low in REGISTERS.items()})


def midi_to_hz(note: float) -> float:
    """Frequency of a MIDI note number; 69 is 440 Hz."""
    return 440.0 * 2 ** ((note - 69) / 12)


def _nearest(value: float, middles: Mapping[str, float]) -> str:
    if not value > 0:
        raise ConfigError(f"a measured value must be above 0, but is {value}.")
    return min(middles, key=lambda name: abs(math.log(value / middles[name])))
