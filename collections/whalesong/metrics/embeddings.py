"""Embeddings of audio for distances between sets, and one embedder that needs no download."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import soxr
from transformers.audio_utils import mel_filter_bank

Embedder = Callable[[Any, int], Any]
"""`(waveform (N,), sample_rate) -> (n, D)`: one row for each window of the audio, n >= 1."""


class LogMelStatistics:
    """Mean and deviation of each band of a log-mel spectrogram, window by window.

    It tells timbre, loudness and brightness apart, offline and in milliseconds. It has learned
    nothing: its distances follow no listener, and are not to be compared with those that are
    published for VGGish, CLAP or EnCodec embeddings.

    Args:
        sample_rate: other audio is resampled to it.
        num_mels: bands; an embedding has twice as many dimensions.
        window_seconds: length of a window; windows overlap by half. Shorter audio is one window.
    """

    def __init__(
        self, *, sample_rate: int = 16000, num_mels: int = 16, window_seconds: float = 1.0
    ) -> None:
        self.sample_rate = sample_rate
        self.window_seconds = window_seconds
        self.hop = sample_rate // 100
        self.fft_size = 4 * self.hop
        self.filters = mel_filter_bank(
            num_frequency_bins=self.fft_size // 2 + 1,
            num_mel_filters=num_mels,
            min_frequency=40.0,
            max_frequency=sample_rate / 2,
            sampling_rate=sample_rate,
        )  # (frequencies, mels)

    def __call__(self, audio: Any, sample_rate: int) -> np.ndarray:
        """Embed a waveform (N,); the rows are (n, 2 * num_mels)."""
        mel = self._log_mel(resampled(waveform(audio), sample_rate, self.sample_rate))
        size = max(1, round(self.window_seconds * self.sample_rate / self.hop))
        begins = range(0, max(len(mel) - size, 0) + 1, max(size // 2, 1))
        windows = [mel[begin : begin + size] for begin in begins]
        return np.stack([np.concatenate([w.mean(axis=0), w.std(axis=0)]) for w in windows])

    def _log_mel(self, audio: np.ndarray) -> np.ndarray:
        """Natural logarithm of the mel power, (frames, mels), at 100 frames a second."""
        padded = np.pad(audio, (0, self.fft_size - min(self.hop, len(audio))))
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.fft_size)[:: self.hop]
        power = np.abs(np.fft.rfft(frames * np.hanning(self.fft_size))) ** 2
        return np.log(power @ self.filters + 1e-6)


def embed_all(audios: Iterable[Any], sample_rate: int, embedder: Embedder) -> np.ndarray:
    """The rows of all waveforms under one another, (sum of n, D), float64.

    Args:
        audios: waveforms (N,).
        sample_rate: the rate of all of them.
        embedder: see `Embedder`.

    Raises:
        ValueError: there is no audio, or not every embedding has two dimensions.
    """
    rows = [embedding_rows(embedder(a, sample_rate), name="embedder", least=1) for a in audios]
    if not rows:
        raise ValueError("`audios` must hold at least one waveform, but is empty.")
    return np.concatenate(rows)


def embedding_rows(values: Any, *, name: str, least: int = 2) -> np.ndarray:
    """Array or tensor as float64 (N, D).

    Raises:
        ValueError: it has another shape, fewer than `least` rows, or holds NaN or infinity.
    """
    rows = _array(values)
    if rows.ndim != 2 or len(rows) < least or rows.shape[1] == 0:
        raise ValueError(
            f"`{name}` must be embeddings (N, D) with N >= {least}, but has the shape {rows.shape}."
        )
    if not np.isfinite(rows).all():
        row = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise ValueError(f"`{name}` must be finite, but row {row} holds NaN or infinity.")
    return rows


def waveform(audio: Any) -> np.ndarray:
    """Array or tensor as a mono waveform (N,), float64; channels (C, N) are averaged.

    Raises:
        ValueError: it has another shape, no samples, or holds NaN or infinity.
    """
    samples = _array(audio)
    samples = samples.mean(axis=0) if samples.ndim == 2 else samples
    if samples.ndim != 1 or len(samples) == 0:
        raise ValueError(f"audio must be (N,) or (C, N), but has the shape {samples.shape}.")
    if not np.isfinite(samples).all():
        raise ValueError("audio must be finite, but holds NaN or infinity.")
    return samples


def resampled(audio: np.ndarray, sample_rate: int, target: int) -> np.ndarray:
    """A waveform (N,) at another rate."""
    return audio if sample_rate == target else soxr.resample(audio, sample_rate, target)


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a tensor, also in bfloat16, which numpy does not know
        values = values.detach().cpu().double()
    return np.asarray(values, dtype=np.float64)
