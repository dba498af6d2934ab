"""The network of DuplexS2SModel: embeddings of codes go into the LLM, heads of codes come out."""

from typing import Any

from torch import Tensor, nn

from whalesong.duplex.config import DuplexGeneration
from whalesong.duplex.model import DecodingState, DuplexModel


class DuplexS2S(DuplexModel):
    """All codes of a frame are predicted at once from the LLM's hidden state.

    Raises:
        ValueError: as `DuplexModel`.
    """

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        width = self.llm.get_input_embeddings().embedding_dim
        hidden_size = self.llm.config.get_text_config().hidden_size
        self.embed_audio_tokens = nn.ModuleList(
            nn.Embedding(self.speech_vocab_size, width) for _ in range(self.num_codebooks)
        )
        self.audio_head = nn.Linear(hidden_size, self.num_codebooks * self.speech_vocab_size)

    def embed_inputs(self, source: Tensor, text: Tensor, codes: Tensor) -> Tensor:
        """The sum of both channels' embeddings."""
        embeds = self.llm.get_input_embeddings()(text)
        for table, ids in zip(self.embed_audio_tokens, codes.unbind(1), strict=True):
            embeds = embeds + table(ids)
        return embeds + source.to(embeds.dtype)

    def speech_logits(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """One head for each codebook."""
        return self.audio_head(hidden).unflatten(-1, (self.num_codebooks, self.speech_vocab_size))

    def init_speech_cache(
        self, batch_size: int, generation: DuplexGeneration, num_frames: int | None
    ) -> None:
        """There is none.

        Raises:
            ValueError: guidance is asked for.
        """
        if generation.guidance_scale != 1:
            raise ValueError(
                "`guidance_scale` must be 1 for a model without a speech decoder, but is "
                f"{generation.guidance_scale}."
            )

    def next_speech_logits(self, hidden: Tensor, state: DecodingState) -> Tensor:
        """As `speech_logits`."""
        return self.speech_logits(hidden, state.codes[:, :, None])[:, 0]
