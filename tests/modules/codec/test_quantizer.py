"""Codebooks: fitting, assigning, summing, and learning while a codec trains."""

import pytest
import torch
from torch import Tensor

from whalesong.modules.codec.kmeans import fit_kmeans, fit_residual_kmeans, nearest
from whalesong.modules.codec.quantizer import CodebookLearner, ResidualVectorQuantizer


def clouds(num_clouds: int, size: int, *, dim: int = 4) -> tuple[Tensor, Tensor]:
    """Points in tight clouds (num_clouds * size, dim) and the centres."""
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(num_clouds, dim, generator=generator)
    noise = 0.01 * torch.randn(size, num_clouds, dim, generator=generator)
    return (centres + noise).flatten(0, 1), centres


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_nearest_is_the_nearest() -> None:
    vectors, centroids = torch.randn(50, 3), torch.randn(7, 3)
    assert torch.equal(nearest(vectors, centroids), torch.cdist(vectors, centroids).argmin(1))


def test_kmeans_finds_clouds() -> None:
    points, centres = clouds(12, 20)
    found = fit_kmeans(points, 12, generator=generator()).float()
    assert sorted(nearest(centres, found).tolist()) == list(range(12))
    assert torch.cdist(centres, found).amin(1).max() < 0.02


def test_no_centroid_stays_without_vectors() -> None:
    """Many equal points: k-means++ draws some of them twice."""
    points = torch.cat([torch.zeros(500, 2), torch.randn(40, 2)])
    found = fit_kmeans(points, 30, generator=generator())
    assert len(nearest(points, found).unique()) == 30


def test_residual_codebooks_halve_the_error() -> None:
    points = torch.randn(2000, 4, generator=generator())
    codebooks = fit_residual_kmeans(points, num_codebooks=3, codebook_size=32)
    quantizer = ResidualVectorQuantizer(num_codebooks=3, codebook_size=32, dim=4)
    quantizer.codebooks.copy_(codebooks)
    codes = quantizer.encode(points[None])
    assert codes.shape == (1, 3, 2000)
    back = [
        quantizer.codebooks[:k, :][torch.arange(k)[:, None], codes[0, :k]].sum(0) for k in (1, 2, 3)
    ]
    errors = [float((points - vectors).square().mean()) for vectors in back]
    assert errors[1] < 0.5 * errors[0] and errors[2] < 0.5 * errors[1]
    torch.testing.assert_close(quantizer.decode(codes)[0], back[-1])


def test_fewer_vectors_than_centroids() -> None:
    with pytest.raises(ValueError, match="9 centroids need at least as many vectors, .* are 8"):
        fit_kmeans(torch.randn(8, 2), 9, generator=generator())


@pytest.fixture
def learner() -> CodebookLearner:
    quantizer = ResidualVectorQuantizer(num_codebooks=2, codebook_size=16, dim=4)
    learner = CodebookLearner(quantizer, decay=0.5)
    learner.start(clouds(16, 10)[0])
    return learner


def test_learning_starts_from_kmeans(learner: CodebookLearner) -> None:
    points, centres = clouds(16, 10)
    assert torch.cdist(centres, learner.quantizer.codebooks[0]).amin(1).max() < 0.02
    assert len(learner.quantizer.encode(points[None])[0, 0].unique()) == 16


def test_the_gradient_passes_as_if_nothing_had_happened(learner: CodebookLearner) -> None:
    vectors = torch.randn(2, 5, 4, requires_grad=True)
    expected = learner.quantizer.decode(learner.quantizer.encode(vectors.detach()))
    quantized, commitment = learner(vectors)
    torch.testing.assert_close(quantized, expected)
    torch.testing.assert_close(commitment, (vectors - expected).square().mean())
    quantized.sum().backward()
    assert torch.equal(vectors.grad, torch.ones_like(vectors))


def test_centroids_follow_their_vectors(learner: CodebookLearner) -> None:
    points = clouds(16, 10)[0] + 0.5
    for _ in range(20):
        learner(points[None], num_codebooks=1)
    assert torch.cdist(points, learner.quantizer.codebooks[0]).amin(1).max() < 0.1
    assert learner.num_replaced == 0


def test_dead_centroids_are_replaced(learner: CodebookLearner) -> None:
    """All vectors go to a new place, which one centroid alone is near to."""
    points = 100 + torch.randn(400, 4, generator=generator())
    for _ in range(60):
        learner(points[None])
    used = learner.quantizer.encode(points[None])[0, 0].unique()
    assert learner.num_replaced >= 15 and len(used) == 16


def test_the_first_codebooks_alone(learner: CodebookLearner) -> None:
    vectors = torch.randn(1, 6, 4, generator=generator())
    second = learner.quantizer.codebooks[1].clone()
    first = learner.quantizer.codebooks[0][learner.quantizer.encode(vectors)[0, 0]]
    quantized, _ = learner(vectors, num_codebooks=1)
    torch.testing.assert_close(quantized[0], first)
    assert torch.equal(learner.quantizer.codebooks[1], second)
