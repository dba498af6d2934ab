"""Frechet audio distance (arXiv 1812.08466) and its companions, over embeddings of any model."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whalesong.metrics.embeddings import Embedder, embed_all, embedding_rows


@dataclass(frozen=True)
class FrechetDistance:
    """The distance between two normal distributions, and what it consists of."""

    value: float
    """`mean_term + covariance_term`, at least 0, and 0 for equal sets."""
    mean_term: float
    """Squared distance of the means."""
    covariance_term: float
    """`tr(C1 + C2 - 2 (C1 C2)^(1/2))`."""
    num_reference: int
    """Rows of the reference set."""
    num_evaluated: int
    """Rows of the evaluated set."""


@dataclass(frozen=True)
class FrechetInfinity:
    """A distance extrapolated to a set without end, by a line over 1 / rows."""

    value: float
    """Where the line meets 1 / rows = 0, at least 0."""
    r2: float
    """Share of the variance that the line explains; far below 1 the value means little."""
    sizes: tuple[int, ...]
    """Rows of each subset."""
    values: tuple[float, ...]
    """The distance of each subset."""


@dataclass(frozen=True)
class _Normal:
    mean: np.ndarray  # (D,)
    root: np.ndarray  # (D, D), root @ root.T is the unbiased covariance
    count: int

    @classmethod
    def of(cls, rows: np.ndarray) -> "_Normal":
        """Fit rows (N, D)."""
        covariance = np.atleast_2d(np.cov(rows, rowvar=False, ddof=1))
        values, vectors = np.linalg.eigh(covariance)
        return cls(rows.mean(axis=0), vectors * np.sqrt(values.clip(min=0)), len(rows))


def frechet_distance(reference: Any, evaluated: Any) -> FrechetDistance:
    """The distance `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))` of two sets of embeddings.

    The covariances are unbiased. In float64, and with the trace of the root as the singular values
    of `R1^T R2`, where `C = R R^T` by eigenvalues: unlike a matrix square root it is real and exact
    for covariances without full rank, too.

    Args:
        reference: embeddings (N, D), array or tensor.
        evaluated: embeddings (M, D).

    Raises:
        ValueError: fewer than 2 rows, different widths, NaN or infinity.

    Warns:
        UserWarning: a set has no more rows than dimensions: the distance is biased upwards.
    """
    x, y = _pair(reference, evaluated)
    for name, rows in (("reference", x), ("evaluated", y)):
        if len(rows) <= rows.shape[1]:
            warnings.warn(
                f"`{name}` has {len(rows)} rows for {rows.shape[1]} dimensions, so its covariance "
                "is singular and the Frechet distance too large; give more audio, or see "
                "`frechet_distance_infinity` and `kernel_distance`.",
                stacklevel=2,
            )
    return _distance(_Normal.of(x), _Normal.of(y))


def frechet_distance_infinity(
    reference: Any,
    evaluated: Any,
    *,
    num_sizes: int = 15,
    smallest: int | None = None,
    seed: int = 0,
) -> FrechetInfinity:
    """The distance to an endless evaluated set (arXiv 1911.07023, for audio arXiv 2311.01616).

    The distance of N rows is too large by about c / N; distances of random subsets show the line.

    Args:
        reference: embeddings (N, D); large, since its own bias stays.
        evaluated: embeddings (M, D).
        num_sizes: subsets, of sizes from `smallest` to M.
        smallest: rows of the smallest subset; by default twice D, but at most half of M.
        seed: of the subsets.

    Raises:
        ValueError: as in `frechet_distance`, or there is no room between `smallest` and M.
    """
    x, y = _pair(reference, evaluated)
    if smallest is None:
        smallest = max(2, min(2 * y.shape[1], len(y) // 2))
    if not 2 <= smallest < len(y):
        raise ValueError(
            f"`smallest` must be from 2 to below the {len(y)} evaluated rows, but is {smallest}."
        )
    if num_sizes < 2:
        raise ValueError(f"`num_sizes` must be at least 2, but is {num_sizes}.")
    rng, normal = np.random.default_rng(seed), _Normal.of(x)
    sizes = np.unique(np.linspace(smallest, len(y), num_sizes).round().astype(int))
    subsets = [y[rng.choice(len(y), size, replace=False)] for size in sizes]
    values = np.array([_distance(normal, _Normal.of(subset)).value for subset in subsets])
    slope, intercept = np.polyfit(1 / sizes, values, 1)
    residual, spread = values - (slope / sizes + intercept), values - values.mean()
    r2 = 1 - (residual**2).sum() / max((spread**2).sum(), np.finfo(float).tiny)
    return FrechetInfinity(
        max(float(intercept), 0.0), float(r2), tuple(sizes.tolist()), tuple(values.tolist())
    )


def frechet_distance_per_song(reference: Any, songs: Iterable[Any]) -> list[float]:
    """The distance of each song's windows to the reference: to find outliers, not to compare sets.

    Args:
        reference: embeddings (N, D).
        songs: embeddings (n, D) of the windows of each song, n >= 2.

    Raises:
        ValueError: as in `frechet_distance`.
    """
    x = embedding_rows(reference, name="reference")
    normal = _Normal.of(x)
    return [_distance(normal, _Normal.of(_pair(x, song)[1])).value for song in songs]


def frechet_audio_distance(
    reference: Sequence[Any], evaluated: Sequence[Any], sample_rate: int, embedder: Embedder
) -> FrechetDistance:
    """The distance of two sets of waveforms.

    Args:
        reference: waveforms (N,) each.
        evaluated: waveforms (N,) each.
        sample_rate: the rate of all of them.
        embedder: turns a waveform into rows (n, D), such as `LogMelStatistics()` or
            `ClapScorer.embed_windows`.
    """
    return frechet_distance(
        embed_all(reference, sample_rate, embedder), embed_all(evaluated, sample_rate, embedder)
    )


def kernel_distance(reference: Any, evaluated: Any, *, bandwidth: float | None = None) -> float:
    """Kernel audio distance (arXiv 2502.15602): unbiased squared MMD with a Gaussian kernel.

    Unlike the Frechet distance it has no bias for small sets and assumes no normal distribution.

    Args:
        reference: embeddings (N, D).
        evaluated: embeddings (M, D).
        bandwidth: of the kernel; by default the median distance within the reference.

    Returns:
        About 0 for sets of the same distribution, and by chance also a little below.

    Raises:
        ValueError: as in `frechet_distance`, or all reference rows are equal.
    """
    x, y = _pair(reference, evaluated)
    within = _squared_distances(x, x)
    if bandwidth is None:
        bandwidth = float(np.sqrt(np.median(within[np.triu_indices(len(x), k=1)])))
    if bandwidth <= 0:
        raise ValueError(f"`bandwidth` must be above 0, but is {bandwidth}.")
    scale = -0.5 / bandwidth**2
    between = np.exp(scale * _squared_distances(x, y)).mean()
    inside = _mean_off_diagonal(np.exp(scale * within))
    inside += _mean_off_diagonal(np.exp(scale * _squared_distances(y, y)))
    return float(inside - 2 * between)


def _distance(x: _Normal, y: _Normal) -> FrechetDistance:
    mean_term = float(((x.mean - y.mean) ** 2).sum())
    spread = float((x.root**2).sum() + (y.root**2).sum())
    overlap = float(np.linalg.svd(x.root.T @ y.root, compute_uv=False).sum())
    # What is left of `spread` after rounding is no distance.
    rounding = 4 * len(x.mean) * np.finfo(float).eps * spread
    covariance_term = spread - 2 * overlap
    covariance_term = covariance_term if covariance_term > rounding else 0.0
    return FrechetDistance(
        mean_term + covariance_term, mean_term, covariance_term, x.count, y.count
    )


def _pair(reference: Any, evaluated: Any) -> tuple[np.ndarray, np.ndarray]:
    x = embedding_rows(reference, name="reference")
    y = embedding_rows(evaluated, name="evaluated")
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"`evaluated` must have the width of `reference` ({x.shape[1]}), but has {y.shape[1]}."
        )
    return x, y


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squared = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * x @ y.T
    return squared.clip(min=0)


def _mean_off_diagonal(kernel: np.ndarray) -> float:
    return float((kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)))
