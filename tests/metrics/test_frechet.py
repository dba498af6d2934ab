"""Distances of sets of embeddings, against a matrix square root and known distributions."""

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from whalesong.metrics.embeddings import LogMelStatistics, embed_all
from whalesong.metrics.frechet import (
    frechet_audio_distance,
    frechet_distance,
    frechet_distance_infinity,
    frechet_distance_per_song,
    kernel_distance,
)

RATE = 16000


def rows(count: int, width: int = 6, *, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99 + seed).standard_normal((width, width))
    return rng.standard_normal((count, width)) @ mixing + shift


def by_matrix_root(x: np.ndarray, y: np.ndarray) -> float:
    """The textbook form."""
    c1, c2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(c1 @ c2).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * root))


@pytest.mark.parametrize("width", [1, 6, 40])
def test_distance_is_that_of_the_matrix_square_root(width: int) -> None:
    x, y = rows(300, width, seed=1), rows(200, width, seed=2, shift=0.5)
    if width == 1:
        c1, c2 = x.var(ddof=1), y.var(ddof=1)
        expected = (x.mean() - y.mean()) ** 2 + c1 + c2 - 2 * np.sqrt(c1 * c2)
    else:
        expected = by_matrix_root(x, y)
    distance = frechet_distance(x, y)
    assert distance.value == pytest.approx(expected, rel=1e-8)
    assert distance.value == distance.mean_term + distance.covariance_term
    assert (distance.num_reference, distance.num_evaluated) == (300, 200)


def test_distance_is_symmetric_and_takes_tensors() -> None:
    x, y = rows(50, seed=1), rows(60, seed=2)
    tensors = frechet_distance(torch.from_numpy(y), torch.from_numpy(x))
    assert tensors.value == pytest.approx(frechet_distance(x, y).value, rel=1e-10)


@pytest.mark.parametrize("count", [2, 5, 300])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_equal_sets_have_no_distance(count: int, scale: float) -> None:
    x = scale * rows(count, 30)
    assert frechet_distance(x, x).value == 0.0
    assert frechet_distance(x, x[::-1]).value == pytest.approx(0.0, abs=1e-12 * scale**2)


def test_a_moved_set_has_the_square_of_the_way_as_distance() -> None:
    x = rows(100)
    assert frechet_distance(x, x + 2.0).value == pytest.approx(6 * 4.0, rel=1e-10)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_without_full_rank_it_is_never_negative_and_still_exact() -> None:
    x = rows(4, 20, seed=1)
    y = np.vstack([x, x]) * np.sqrt(7 / 6)  # the same covariance from twice the rows
    assert frechet_distance(x - x.mean(0), y - y.mean(0)).value == pytest.approx(0.0, abs=1e-10)
    assert all(frechet_distance(x, rows(4, 20, seed=s)).value >= 0 for s in range(20))


def test_few_rows_are_told() -> None:
    with pytest.warns(UserWarning, match="`evaluated` has 6 rows for 6 dimensions"):
        frechet_distance(rows(50), rows(6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(rows(50), rows(7))


@pytest.mark.parametrize(
    "x, y, message",
    [
        (rows(1), rows(9), r"`reference` must be embeddings \(N, D\) with N >= 2, .*\(1, 6\)"),
        (rows(9), rows(9, 5), r"the width of `reference` \(6\), but has 5"),
        (rows(9), np.full((3, 6), np.nan), "`evaluated` must be finite, but row 0"),
        (rows(9)[0], rows(9), r"shape \(6,\)"),
    ],
)
def test_bad_embeddings_are_refused(x: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(x, y)


def test_extrapolation_takes_most_of_the_bias_of_few_rows_away() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20000, 16)), rng.standard_normal((300, 16))
    result = frechet_distance_infinity(x, y)
    biased = frechet_distance(x, y).value
    assert result.sizes[0] == 32 and result.sizes[-1] == 300
    assert result.values[-1] == pytest.approx(biased)
    assert result.value < 0.25 * biased
    assert result.r2 > 0.9
    assert frechet_distance_infinity(x, y) == result


def test_extrapolation_needs_room() -> None:
    with pytest.raises(ValueError, match="`smallest` must be from 2 to below the 9 evaluated"):
        frechet_distance_infinity(rows(9), rows(9), smallest=9)


def test_an_outlier_stands_out_among_songs() -> None:
    songs = [rows(30, seed=0)[begin : begin + 10] for begin in (0, 10, 20)]
    distances = frechet_distance_per_song(rows(200), [*songs, songs[0] + 20])
    assert max(distances) == distances[3] and distances[3] > 10 * max(distances[:3])


def test_kernel_distance_of_one_distribution_is_nothing_and_of_two_is_not() -> None:
    everything = rows(500)
    x, same = everything[:300], everything[300:]
    assert abs(kernel_distance(x, same)) < 0.01
    assert kernel_distance(x, same + 3.0) > 0.1


def test_kernel_distance_is_that_of_a_loop_over_pairs() -> None:
    x, y = rows(5, seed=1), rows(4, seed=2)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / (2 * 1.5**2)))

    within = [kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    others = [kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    between = [kernel(a, b) for a in x for b in y]
    expected = np.mean(within) + np.mean(others) - 2 * np.mean(between)
    assert kernel_distance(x, y, bandwidth=1.5) == pytest.approx(expected, rel=1e-10)


def tones(frequency: float, *, seed: int, seconds: float = 3.0, rate: int = RATE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    noise = 0.01 * rng.standard_normal(len(time))
    return 0.3 * np.sin(2 * np.pi * frequency * rng.uniform(0.9, 1.1) * time) + noise


def test_low_and_high_tones_are_further_apart_than_low_ones() -> None:
    embedder = LogMelStatistics()
    low, more = ([tones(200, seed=s) for s in range(b, b + 12)] for b in (0, 100))
    high = [tones(3000, seed=s) for s in range(12)]
    near = frechet_audio_distance(low, more, RATE, embedder).value
    assert frechet_audio_distance(low, high, RATE, embedder).value > 10 * near


def test_log_mel_embeddings_have_a_row_for_each_window_at_any_rate() -> None:
    embedder = LogMelStatistics(num_mels=8)
    audio = tones(400, seed=0)
    embedded = embedder(audio, RATE)
    assert embedded.shape == (5, 16)  # 300 frames, windows of 100 every 50
    assert embedder(audio[:2000], RATE).shape == (1, 16)
    assert embedder(torch.from_numpy(audio).bfloat16()[None], RATE).shape == (5, 16)
    assert embedder(tones(400, seed=0, rate=44100), 44100).shape == (5, 16)
    assert embed_all([audio, audio[:2000]], RATE, embedder).shape == (6, 16)


@pytest.mark.parametrize(
    "audio, message",
    [
        (np.zeros(0), r"shape \(0,\)"),
        (np.full(100, np.nan), "audio must be finite"),
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\)"),
    ],
)
def test_bad_audio_is_refused(audio: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogMelStatistics()(audio, RATE)


def test_no_audio_is_refused() -> None:
    with pytest.raises(ValueError, match="`audios` must hold at least one"):
        embed_all([], RATE, LogMelStatistics())
