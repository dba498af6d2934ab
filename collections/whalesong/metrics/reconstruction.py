"""How near reconstructed audio is to the original: SI-SDR and short-time intelligibility."""

import math

import numpy as np
import soxr

_RATE = 10000
_WINDOW = 256
_FFT_SIZE = 512
_NUM_BANDS = 15
_LOWEST_BAND = 150.0
_SEGMENT = 30
_SILENCE_DB = 40.0
_LOWEST_LEVEL = -200.0
_CLIP_DB = 15.0
_TINY = 1e-12


def si_sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio of two signals (N,) in dB; higher is nearer."""
    target = reference * (reference @ estimate) / (reference @ reference + _TINY)
    error = estimate - target
    return 10 * math.log10((target @ target + _TINY) / (error @ error + _TINY))


def stoi(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float | None:
    """Short-time objective intelligibility of two signals (N,), at most 1.

    After Taal et al., "An Algorithm for Intelligibility Prediction of Time-Frequency Weighted
    Noisy Speech", 2011. None where less than 0.4 s is loud enough.
    """
    clean, noisy = (soxr.resample(x, sample_rate, _RATE) for x in (reference, estimate))
    clean, noisy = _without_silence(clean, noisy)
    clean_bands, noisy_bands = _bands(clean), _bands(noisy)  # (frames, bands)
    if len(clean_bands) < _SEGMENT:
        return None
    segments = np.lib.stride_tricks.sliding_window_view
    x = segments(clean_bands, _SEGMENT, axis=0)  # (segments, bands, _SEGMENT)
    y = segments(noisy_bands, _SEGMENT, axis=0)
    y = y * _norm(x) / (_norm(y) + _TINY)
    y = np.minimum(y, x * (1 + 10 ** (_CLIP_DB / 20)))
    x, y = (z - z.mean(-1, keepdims=True) for z in (x, y))
    return float(((x * y).sum(-1, keepdims=True) / (_norm(x) * _norm(y) + _TINY)).mean())


def _without_silence(clean: np.ndarray, noisy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both signals without the frames in which the clean one is silent."""
    clean_frames, noisy_frames = _frames(clean), _frames(noisy)
    levels = 20 * np.log10(_norm(clean_frames)[:, 0] + _TINY)
    loud = levels > max(levels.max() - _SILENCE_DB, _LOWEST_LEVEL)
    return _overlap_add(clean_frames[loud]), _overlap_add(noisy_frames[loud])


def _frames(signal: np.ndarray) -> np.ndarray:
    """Windowed pieces (frames, _WINDOW) that overlap by half."""
    window = np.hanning(_WINDOW + 2)[1:-1]
    signal = np.pad(signal, (0, max(_WINDOW - len(signal), 0)))
    pieces = np.lib.stride_tricks.sliding_window_view(signal, _WINDOW)[:: _WINDOW // 2]
    return pieces * window


def _overlap_add(frames: np.ndarray) -> np.ndarray:
    half = _WINDOW // 2
    signal = np.zeros((len(frames) + 1) * half)
    signal[:-half] += frames[:, :half].ravel()
    signal[half:] += frames[:, half:].ravel()
    return signal


def _bands(signal: np.ndarray) -> np.ndarray:
    """Magnitudes (frames, _NUM_BANDS) in thirds of octaves."""
    power = np.abs(np.fft.rfft(_frames(signal), _FFT_SIZE)) ** 2
    bins = np.arange(_FFT_SIZE // 2 + 1) * _RATE / _FFT_SIZE
    centres = _LOWEST_BAND * 2 ** (np.arange(_NUM_BANDS) / 3)
    weights = (bins >= centres[:, None] * 2 ** (-1 / 6)) & (bins < centres[:, None] * 2 ** (1 / 6))
    return np.sqrt(power @ weights.T)


def _norm(values: np.ndarray) -> np.ndarray:
    return np.linalg.norm(values, axis=-1, keepdims=True)
