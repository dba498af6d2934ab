"""K-means and residual k-means, equal for equal seeds."""

import torch
from torch import Tensor

_CHUNK = 8192


def nearest(vectors: Tensor, centroids: Tensor) -> Tensor:
    """Index (N,) of the centroid (V, D) nearest to each vector (N, D).

    In float64, so that neither the batch nor the number of threads decides a close race.
    """
    centroids = centroids.double()
    half_norms = centroids.square().sum(1) / 2
    return torch.cat(
        [(chunk.double() @ centroids.T - half_norms).argmax(1) for chunk in vectors.split(_CHUNK)]
    )


def fit_kmeans(
    vectors: Tensor, num_centroids: int, *, generator: torch.Generator, num_iterations: int = 10
) -> Tensor:
    """Centroids (num_centroids, D) of vectors (N, D), in float64.

    Starts with k-means++; a centroid that loses all its vectors moves to the vector that is worst
    represented.

    Raises:
        ValueError: there are fewer vectors than centroids.
    """
    if len(vectors) < num_centroids:
        raise ValueError(
            f"{num_centroids} centroids need at least as many vectors, but there are "
            f"{len(vectors)}."
        )
    vectors = vectors.double()
    centroids = _spread(vectors, num_centroids, generator)
    for _ in range(num_iterations):
        centroids = _improve(vectors, centroids)
    return centroids


def fit_residual_kmeans(
    vectors: Tensor,
    *,
    num_codebooks: int,
    codebook_size: int,
    seed: int = 0,
    num_iterations: int = 10,
) -> Tensor:
    """Codebooks (K, V, D): each is fitted to what the ones before leave of the vectors (N, D).

    Raises:
        ValueError: there are fewer vectors than centroids in a codebook.
    """
    generator = torch.Generator().manual_seed(seed)
    residual = vectors.double()
    codebooks = []
    for _ in range(num_codebooks):
        centroids = fit_kmeans(
            residual, codebook_size, generator=generator, num_iterations=num_iterations
        )
        residual = residual - centroids[nearest(residual, centroids)]
        codebooks.append(centroids)
    return torch.stack(codebooks)


def _spread(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Vectors drawn one by one, those far from all drawn before more likely (k-means++)."""
    norms = vectors.square().sum(1)
    chosen = [int(torch.randint(len(vectors), (), generator=generator))]
    distances = torch.full_like(norms, torch.inf)
    for draw in torch.rand(count - 1, generator=generator, dtype=torch.double).tolist():
        last = vectors[chosen[-1]]
        to_last = (norms - 2 * (vectors @ last) + last.square().sum()).clamp_min(0)
        distances = torch.minimum(distances, to_last)
        total = distances.cumsum(0)
        position = int(torch.searchsorted(total, draw * total[-1]))
        chosen.append(min(position, len(vectors) - 1))
    return vectors[chosen].clone()


def _improve(vectors: Tensor, centroids: Tensor) -> Tensor:
    """One round of Lloyd's algorithm."""
    labels = nearest(vectors, centroids)
    counts = labels.bincount(minlength=len(centroids))
    sums = torch.zeros_like(centroids).index_add_(0, labels, vectors)
    means = sums / counts.clamp_min(1)[:, None]
    if num_empty := int((counts == 0).sum()):
        errors = (vectors - centroids[labels]).square().sum(1)
        means[counts == 0] = vectors[errors.topk(num_empty).indices]
    return means
