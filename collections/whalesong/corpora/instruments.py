"""Instruments in a few lines of arithmetic each: one note at a time, as float waveforms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Wave = np.ndarray
"""Samples of one note, float64, (N,)."""

Note = Callable[[float, float, int, np.random.Generator], Wave]
"""(frequency in Hz, seconds that it is held, sample rate, random numbers) -> samples."""


@dataclass(frozen=True)
class Instrument:
    """How notes of an instrument sound and where it plays."""

    note: Note
    registers: tuple[str, ...]
    """Names in `music_captions.REGISTERS`; none for percussion."""


def partials(
    frequency: float,
    seconds: float,
    sample_rate: int,
    *,
    levels: np.ndarray,
    ratios: np.ndarray,
    half_lives: np.ndarray,
) -> Wave:
    """Sum sines that die away, each at its own pace; none is above the Nyquist frequency.

    Args:
        levels: amplitude of each partial, (H,).
        ratios: its frequency as a multiple of `frequency`, (H,).
        half_lives: seconds after which it is half as loud, (H,).
    """
    # Single precision is several times as fast, and errs by a thousandth of a radian in a second.
    times = np.arange(int(seconds * sample_rate), dtype=np.float32) / np.float32(sample_rate)
    audible = ratios * frequency < 0.45 * sample_rate
    omegas = (2 * np.pi * frequency * ratios[audible]).astype(np.float32)
    decays = (-1 / half_lives[audible]).astype(np.float32)
    waves = np.sin(np.outer(omegas, times)) * np.exp2(np.outer(decays, times))
    return levels[audible] @ waves


def shaped(wave: Wave, sample_rate: int, *, attack: float, release: float) -> Wave:
    """Fade a note in and out without clicks; both times are in seconds."""
    count = len(wave)
    rise = np.clip(np.arange(count) / (attack * sample_rate), 0, 1)
    fall = np.clip(np.arange(count)[::-1] / (release * sample_rate), 0, 1)
    return wave * np.sin(np.pi / 2 * rise) * np.sin(np.pi / 2 * fall)


def piano(frequency: float, seconds: float, sample_rate: int, rng: np.random.Generator) -> Wave:
    """Stiff strings, struck: stretched partials of which the high ones die first."""
    order = np.arange(1, 13)
    wave = partials(
        frequency,
        seconds + 0.3,
        sample_rate,
        levels=order**-1.3,
        ratios=order * np.sqrt(1 + 4e-4 * order**2),
        half_lives=0.5 / (1 + 0.25 * (order - 1)),
    )
    return shaped(wave, sample_rate, attack=0.004, release=0.25)


def guitar(frequency: float, seconds: float, sample_rate: int, rng: np.random.Generator) -> Wave:
    """A string plucked at a fifth of its length, so every fifth partial is missing."""
    order = np.arange(1, 19)
    wave = partials(
        frequency,
        seconds + 0.25,
        sample_rate,
        levels=np.abs(np.sin(np.pi * order / 5)) * order**-0.8,
        ratios=order.astype(float),
        half_lives=0.3 / (1 + 0.5 * (order - 1)),
    )
    return shaped(wave, sample_rate, attack=0.002, release=0.15)


def bass(frequency: float, seconds: float, sample_rate: int, rng: np.random.Generator) -> Wave:
    """A round synthesizer bass: few partials that close quickly over a lasting fundamental."""
    order = np.arange(1, 7)
    half_lives = np.where(order == 1, 0.6, 0.12)
    wave = partials(
        frequency,
        seconds + 0.1,
        sample_rate,
        levels=1.0 / order,
        ratios=order.astype(float),
        half_lives=half_lives,
    )
    return shaped(wave, sample_rate, attack=0.006, release=0.08)


def flute(frequency: float, seconds: float, sample_rate: int, rng: np.random.Generator) -> Wave:
    """Nearly a sine, with vibrato, a soft start and some breath."""
    times = np.arange(int((seconds + 0.08) * sample_rate)) / sample_rate
    vibrato = 0.004 * np.sin(2 * np.pi * 5 * times) * np.clip(times / 0.3, 0, 1)
    phase = 2 * np.pi * np.cumsum(frequency * (1 + vibrato)) / sample_rate
    tone = np.sin(phase) + 0.25 * np.sin(2 * phase) + 0.06 * np.sin(3 * phase)
    breath = np.convolve(rng.standard_normal(len(times)), np.ones(4) / 4, mode="same")
    puff = np.exp2(-times / 0.06)
    return shaped(tone * (1 + 0.5 * puff) + 0.015 * breath, sample_rate, attack=0.03, release=0.08)


def marimba(frequency: float, seconds: float, sample_rate: int, rng: np.random.Generator) -> Wave:
    """A wooden bar: partials at 1, 3.9 and 9.2 times the pitch, all short."""
    wave = partials(
        frequency,
        0.7,
        sample_rate,
        levels=np.array([1.0, 0.3, 0.1]),
        ratios=np.array([1.0, 3.9, 9.2]),
        half_lives=np.array([0.12, 0.035, 0.012]),
    )
    return shaped(wave, sample_rate, attack=0.002, release=0.2)


def organ(frequency: float, seconds: float, sample_rate: int, rng: np.random.Generator) -> Wave:
    """Pipes at octaves and fifths that sound as long as the key is held."""
    ratios = np.array([1.0, 2.0, 3.0, 4.0, 6.0, 8.0])
    wave = partials(
        frequency,
        0.92 * seconds,
        sample_rate,
        levels=np.array([1.0, 0.7, 0.5, 0.4, 0.2, 0.15]),
        ratios=ratios,
        half_lives=np.full(len(ratios), 1.5),
    )
    times = np.arange(len(wave)) / sample_rate
    key = 1 + 0.8 * np.exp2(-times / 0.05)
    return shaped(wave * key, sample_rate, attack=0.008, release=0.04)


def kick(sample_rate: int, rng: np.random.Generator) -> Wave:
    """A drum whose pitch falls from 160 to 50 Hz."""
    times = np.arange(int(0.3 * sample_rate)) / sample_rate
    phase = 2 * np.pi * np.cumsum(50 + 110 * np.exp2(-times / 0.02)) / sample_rate
    return shaped(
        1.6 * np.sin(phase) * np.exp2(-times / 0.06), sample_rate, attack=0.002, release=0.05
    )


def snare(sample_rate: int, rng: np.random.Generator) -> Wave:
    """Noise over a short tone of 190 Hz."""
    times = np.arange(int(0.22 * sample_rate)) / sample_rate
    noise = rng.standard_normal(len(times)) * np.exp2(-times / 0.035)
    tone = np.sin(2 * np.pi * 190 * times) * np.exp2(-times / 0.03)
    return shaped(0.45 * noise + 0.7 * tone, sample_rate, attack=0.001, release=0.05)


def hat(sample_rate: int, rng: np.random.Generator) -> Wave:
    """Short noise without its low part."""
    times = np.arange(int(0.08 * sample_rate)) / sample_rate
    noise = np.diff(rng.standard_normal(len(times) + 1))
    return shaped(0.25 * noise * np.exp2(-times / 0.015), sample_rate, attack=0.001, release=0.02)


DRUMS: Mapping[str, Callable[[int, np.random.Generator], Wave]] = {
    "kick": kick,
    "snare": snare,
    "hat": hat,
}
"""Parts of the drum kit: (sample rate, random numbers) -> samples."""

INSTRUMENTS: Mapping[str, Instrument] = {
    "bass": Instrument(bass, ("low",)),
    "flute": Instrument(flute, ("middle", "high")),
    "guitar": Instrument(guitar, ("low", "middle", "high")),
    "marimba": Instrument(marimba, ("middle", "high")),
    "organ": Instrument(organ, ("low", "middle", "high")),
    "piano": Instrument(piano, ("low", "middle", "high")),
}
"""Instruments that play melodies; "drums" are made of `DRUMS`."""
