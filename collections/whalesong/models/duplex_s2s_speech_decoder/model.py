"""The network of DuplexS2SSpeechDecoderModel: the LLM hears and writes, a decoder speaks."""

from typing import Any

import torch
from torch import Tensor

from whalesong.duplex.config import DuplexGeneration
from whalesong.duplex.model import DecodingState, DuplexModel
from whalesong.modules.speech_decoder import TransformerARSpeechDecoder


class DuplexS2SSpeechDecoder(DuplexModel):
    """The LLM's input holds no codes; the speech decoder sees its hidden states and codes.

    Args:
        speech_decoder: arguments of `TransformerARSpeechDecoder` that configs name.
        **parts: see `DuplexModel`.

    Raises:
        ValueError: as `DuplexModel`.
    """

    def __init__(self, *, speech_decoder: dict[str, Any], **parts: Any) -> None:
        super().__init__(**parts)
        self.speech_generation = TransformerARSpeechDecoder(
            input_dim=self.llm.config.get_text_config().hidden_size,
            num_codebooks=self.num_codebooks,
            vocab_size=self.speech_vocab_size,
            **speech_decoder,
        )

    def embed_inputs(self, source: Tensor, text: Tensor, codes: Tensor) -> Tensor:
        """The user's frames and the agent's text."""
        embeds = self.llm.get_input_embeddings()(text)
        return embeds + source.to(embeds.dtype)

    def speech_logits(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Run the speech decoder."""
        return self.speech_generation(hidden, codes)

    def init_speech_cache(
        self, batch_size: int, generation: DuplexGeneration, num_frames: int | None
    ) -> Any:
        """The speech decoder's cache; with guidance every row is there twice.

        Raises:
            ValueError: guidance is asked of a decoder that was not trained for it.
        """
        if generation.guidance_scale == 1:
            return self.speech_generation.init_cache(batch_size, num_frames)
        if not self.speech_generation.unconditional_prob:
            raise ValueError(
                "`guidance_scale` must be 1 for a speech decoder that was trained without "
                f"`unconditional_prob`, but is {generation.guidance_scale}."
            )
        return self.speech_generation.init_cache(2 * batch_size, num_frames)

    def next_speech_logits(self, hidden: Tensor, state: DecodingState) -> Tensor:
        """Run the speech decoder for one frame."""
        codes = state.codes[:, :, None]
        if not state.draws.is_guided:
            return self.speech_generation(hidden, codes, cache=state.speech_cache)[:, 0]
        logits = self.speech_generation(
            hidden.repeat(2, 1, 1),
            codes.repeat(2, 1, 1),
            cache=state.speech_cache,
            is_conditioned=torch.arange(2 * len(hidden), device=hidden.device) < len(hidden),
        )
        conditioned, unconditioned = logits[:, 0].chunk(2)
        scale = state.draws.generation.guidance_scale
        return unconditioned + scale * (conditioned - unconditioned)
