"""Residual vector quantization: codebooks at work, and learning while a codec trains."""

import torch
from torch import Tensor, nn

from whalesong.modules.codec.kmeans import fit_residual_kmeans, nearest


class ResidualVectorQuantizer(nn.Module):
    """K codebooks of V vectors; each holds approximations of what the ones before leave over.

    Args:
        num_codebooks: K.
        codebook_size: V.
        dim: D, width of a vector.
    """

    codebooks: Tensor

    def __init__(self, *, num_codebooks: int, codebook_size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("codebooks", torch.zeros(num_codebooks, codebook_size, dim))

    def encode(self, vectors: Tensor) -> Tensor:
        """Vectors (B, F, D) -> codes (B, K, F): codebook by codebook the nearest."""
        residual = vectors.flatten(0, 1)
        codes = []
        for codebook in self.codebooks:
            codes.append(nearest(residual, codebook))
            residual = residual - codebook[codes[-1]]
        return torch.stack(codes).unflatten(1, vectors.shape[:2]).transpose(0, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, K, F) -> vectors (B, F, D), the sum over the codebooks."""
        books = torch.arange(len(self.codebooks), device=codes.device)[:, None]
        return self.codebooks[books, codes].sum(1)


class CodebookLearner:
    """Moves the codebooks of a quantizer after the vectors of an encoder that trains.

    A centroid is a moving average of the vectors that chose it; one that hardly any chooses is
    replaced by a vector of the current batch.

    Args:
        quantizer: its codebooks are changed in place.
        decay: of the moving averages.
        dead_below: a centroid with fewer vectors a batch, on average, is replaced.
        seed: of all draws.
    """

    def __init__(
        self,
        quantizer: ResidualVectorQuantizer,
        *,
        decay: float = 0.98,
        dead_below: float = 0.02,
        seed: int = 0,
    ) -> None:
        self.quantizer = quantizer
        self.decay, self.dead_below, self.seed = decay, dead_below, seed
        self.num_replaced = 0
        books = quantizer.codebooks
        self._counts = torch.ones(books.shape[:2], device=books.device)
        self._sums = books.clone()
        self._generator = torch.Generator().manual_seed(seed)

    def start(self, vectors: Tensor) -> None:
        """Fit the codebooks to vectors (N, D) by residual k-means.

        Raises:
            ValueError: there are fewer vectors than centroids in a codebook.
        """
        num_codebooks, codebook_size, _ = self.quantizer.codebooks.shape
        books = fit_residual_kmeans(
            vectors.detach(),
            num_codebooks=num_codebooks,
            codebook_size=codebook_size,
            seed=self.seed,
        )
        self.quantizer.codebooks.copy_(books)
        self._counts.fill_(1)
        self._sums.copy_(books)

    def __call__(
        self, vectors: Tensor, *, num_codebooks: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Quantize a batch and learn from it.

        Args:
            vectors: of the encoder, (B, F, D).
            num_codebooks: use and teach the first ones only; None takes all.

        Returns:
            quantized vectors (B, F, D), whose gradient goes to `vectors` as if nothing had
            happened, and the commitment loss, which draws `vectors` to them.
        """
        residual = vectors.detach().flatten(0, 1)
        quantized = torch.zeros_like(residual)
        for index, book in enumerate(self.quantizer.codebooks[:num_codebooks]):
            codes = nearest(residual, book)
            chosen = book[codes]
            self._learn(index, residual, codes)
            residual, quantized = residual - chosen, quantized + chosen
        quantized = quantized.view_as(vectors)
        commitment = (vectors - quantized).square().mean()
        return vectors + (quantized - vectors).detach(), commitment

    def _learn(self, index: int, vectors: Tensor, codes: Tensor) -> None:
        """Update one codebook from the vectors (N, D) that it was offered."""
        counts, sums, book = self._counts[index], self._sums[index], self.quantizer.codebooks[index]
        new_counts = codes.bincount(minlength=len(counts)).to(counts.dtype)
        counts.lerp_(new_counts, 1 - self.decay)
        sums.lerp_(torch.zeros_like(sums).index_add_(0, codes, vectors), 1 - self.decay)
        self._replace_dead(counts, sums, vectors)
        book.copy_(sums / counts[:, None])

    def _replace_dead(self, counts: Tensor, sums: Tensor, vectors: Tensor) -> None:
        dead = (counts < self.dead_below).nonzero().squeeze(1)
        if not len(dead):
            return
        drawn = torch.randint(len(vectors), (len(dead),), generator=self._generator)
        # They stand for a few batches before they can die again.
        counts[dead] = 5 * self.dead_below
        sums[dead] = vectors[drawn.to(vectors.device)] * counts[dead, None]
        self.num_replaced += len(dead)
