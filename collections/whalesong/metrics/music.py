"""Tempo and register of music, measured from its waveform alone."""

import numpy as np

SLOWEST_BPM, FASTEST_BPM = 50.0, 190.0
LOWEST_HZ, HIGHEST_HZ = 55.0, 1600.0


def measure_tempo(audio: np.ndarray, sample_rate: int) -> float:
    """Beats per minute: the period at which the onsets of a recording best repeat themselves.

    Of periods that repeat nearly as well as the best one the shortest is taken, since every
    multiple of a beat is a period, too.

    Args:
        audio: mono, (N,), at least 2 seconds.
        sample_rate: its rate in Hz.

    Returns:
        From `SLOWEST_BPM` to `FASTEST_BPM`.

    Raises:
        ValueError: the audio is shorter, or silent.
    """
    if len(audio) < 2 * sample_rate:
        seconds = len(audio) / sample_rate
        raise ValueError(f"`audio` must last at least 2 s, but lasts {seconds:.2f} s.")
    onsets, rate = onset_strength(audio, sample_rate)
    return _best_tempo(onsets, rate)


def onset_strength(audio: np.ndarray, sample_rate: int) -> tuple[np.ndarray, float]:
    """How much louder the bands of a recording become in each frame, (F,), and frames a second."""
    hop = round(0.01 * sample_rate)
    power = _spectrogram(audio, size=4 * hop, hop=hop)
    loudness = np.sqrt(_bands(power, 24))
    rises = np.maximum(np.diff(loudness, axis=0), 0).sum(axis=1)
    # Two frames more or less between two onsets are no other tempo.
    window = np.hanning(7)
    return np.convolve(rises, window / window.sum(), mode="same"), sample_rate / hop


def measure_register(audio: np.ndarray, sample_rate: int) -> float:
    """Median pitch in Hz of the louder half of a recording.

    Args:
        audio: mono, (N,), at least 0.2 seconds.
        sample_rate: its rate in Hz.

    Raises:
        ValueError: the audio is shorter, or silent.
    """
    size, hop = round(0.128 * sample_rate), round(0.032 * sample_rate)
    if len(audio) < round(0.2 * sample_rate):
        seconds = len(audio) / sample_rate
        raise ValueError(f"`audio` must last at least 0.2 s, but lasts {seconds:.2f} s.")
    power = _spectrogram(audio, size=size, hop=hop)
    energy = power.sum(axis=1)
    if not energy.max() > 0:
        raise ValueError("`audio` must be audible, but is silent.")
    loud = power[energy >= np.median(energy)]
    return float(np.median([_pitch(frame, sample_rate, size) for frame in loud]))


def _best_tempo(onsets: np.ndarray, rate: float) -> float:
    similarity = _autocorrelation(onsets)
    first, last = int(rate * 60 / FASTEST_BPM), min(int(rate * 60 / SLOWEST_BPM), len(onsets) - 2)
    lags = np.arange(first, last + 1)
    peaks = lags[
        (similarity[lags] >= similarity[lags - 1]) & (similarity[lags] >= similarity[lags + 1])
    ]
    peaks = peaks[similarity[peaks] > 0]
    if not len(peaks):
        raise ValueError("`audio` must have onsets that repeat, but has none.")
    good = peaks[similarity[peaks] >= 0.78 * similarity[peaks].max()]
    return float(60 * rate / good[0])


def _autocorrelation(values: np.ndarray) -> np.ndarray:
    """Similarity of a series with itself at every lag, each over its own number of pairs, (F,)."""
    count = len(values)
    centered = values - values.mean()
    spectrum = np.fft.rfft(centered, 2 * count)
    return np.fft.irfft(np.abs(spectrum) ** 2)[:count] / np.arange(count, 0, -1)


def _pitch(power: np.ndarray, sample_rate: int, size: int) -> float:
    """The period of one frame as a frequency."""
    # The autocorrelation of a compressed spectrum has sharper peaks than that of the waveform.
    similarity = np.fft.irfft(power**0.33)
    first, last = int(sample_rate / HIGHEST_HZ), int(sample_rate / LOWEST_HZ)
    lags = np.arange(first, last + 1)
    peaks = lags[
        (similarity[lags] >= similarity[lags - 1]) & (similarity[lags] >= similarity[lags + 1])
    ]
    peaks = peaks[similarity[peaks] > 0]
    if not len(peaks):
        return HIGHEST_HZ
    return sample_rate / float(peaks[similarity[peaks] >= 0.85 * similarity[peaks].max()][0])


def _spectrogram(audio: np.ndarray, *, size: int, hop: int) -> np.ndarray:
    """Power of each frame and frequency, (F, size // 2 + 1)."""
    padded = np.pad(np.asarray(audio, dtype=np.float64), (size // 2, size // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    return np.abs(np.fft.rfft(frames * np.hanning(size))) ** 2


def _bands(power: np.ndarray, count: int) -> np.ndarray:
    """Sum frequencies into bands of growing width, (F, count)."""
    edges = np.unique(np.geomspace(1, power.shape[1], count + 1).astype(int))
    return np.add.reduceat(power, edges[:-1], axis=1)
