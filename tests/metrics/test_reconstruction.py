"""Measures of reconstructed audio."""

import numpy as np
import pytest

from whalesong.metrics.reconstruction import si_sdr, stoi

RNG = np.random.default_rng(0)
TIMES = np.arange(32000) / 16000
SPEECHLIKE = (1 + np.sin(2 * np.pi * 4 * TIMES)) * RNG.standard_normal(32000)


def test_si_sdr_is_the_ratio_of_target_and_error() -> None:
    noise = RNG.standard_normal(32000)
    noise -= SPEECHLIKE * (noise @ SPEECHLIKE) / (SPEECHLIKE @ SPEECHLIKE)
    ratio = 10 * np.log10((SPEECHLIKE @ SPEECHLIKE) / (noise @ noise))
    assert si_sdr(SPEECHLIKE, 3 * (SPEECHLIKE + noise)) == pytest.approx(ratio)
    assert si_sdr(SPEECHLIKE, 0.1 * SPEECHLIKE) > 60


def test_stoi_is_one_for_the_same_and_falls_with_noise() -> None:
    assert stoi(SPEECHLIKE, 0.5 * SPEECHLIKE, 16000) == pytest.approx(1)
    noise = RNG.standard_normal(32000)
    values = [stoi(SPEECHLIKE, SPEECHLIKE + level * noise, 16000) for level in (0.3, 1, 3)]
    assert 1 > values[0] > values[1] > values[2]


def test_stoi_needs_enough_that_is_loud() -> None:
    assert stoi(SPEECHLIKE[:3000], SPEECHLIKE[:3000], 16000) is None
    assert stoi(np.zeros(16000), np.zeros(16000), 16000) is None
