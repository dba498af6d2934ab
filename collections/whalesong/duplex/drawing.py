"""Drawing the text token and the codes of one frame."""

import torch
from torch import Tensor

from whalesong.duplex.config import DuplexGeneration
from whalesong.modules.generation.sampling import SamplingSettings, sample


class FrameDraws:
    """Draws for the rows of a conversation; each row has noise of its own, frame after frame.

    Args:
        generation: temperatures, filters and seed.
        batch_size: B.
    """

    def __init__(self, generation: DuplexGeneration, batch_size: int) -> None:
        self.generation = generation
        self.text = SamplingSettings(temperature=generation.text_temperature, top_k=0)
        self.codes = SamplingSettings(
            temperature=generation.temperature, top_k=generation.top_k, top_p=generation.top_p
        )
        seeds = range(generation.seed, generation.seed + batch_size)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    @property
    def is_guided(self) -> bool:
        """Codes are drawn from conditioned and unconditioned logits."""
        return self.generation.guidance_scale != 1

    def draw(self, text_logits: Tensor, speech_logits: Tensor) -> tuple[Tensor, Tensor]:
        """From logits (B, Vt) and (B, K, V + 3) to a token (B,) and codes (B, K)."""
        noise = self._noise(1 + speech_logits.shape[1]).to(text_logits.device)
        text = sample(text_logits[:, None], self.text, noise[:, :1])[:, 0]
        return text, sample(speech_logits, self.codes, noise[:, 1:])

    def select(self, rows: Tensor) -> None:
        """Keep some rows."""
        self._generators = [self._generators[row] for row in rows.tolist()]

    def variants(self, rows: Tensor, batch_size: int) -> Tensor:
        """Rows of a cache that holds all rows twice where codes are guided."""
        return torch.cat([rows, rows + batch_size]) if self.is_guided else rows

    def _noise(self, count: int) -> Tensor:
        """Uniform in [0, 1), (B, count)."""
        rows = [torch.rand(count, generator=g, dtype=torch.float32) for g in self._generators]
        return torch.stack(rows)
