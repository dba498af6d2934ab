"""`DuplexS2SSpeechDecoderModel`: the ModelPT that names its four parts."""

from typing import Any

from whalesong.duplex.duplex_model import DuplexModelPT
from whalesong.models.duplex_s2s_speech_decoder.config import DuplexS2SSpeechDecoderConfig
from whalesong.models.duplex_s2s_speech_decoder.model import DuplexS2SSpeechDecoder


class DuplexS2SSpeechDecoderModel(DuplexModelPT):
    """Duplex speech to speech whose codes come from an autoregressive decoder behind the LLM."""

    config_schema = DuplexS2SSpeechDecoderConfig

    def build_model(
        self, config: DuplexS2SSpeechDecoderConfig, **parts: Any
    ) -> DuplexS2SSpeechDecoder:
        """Add the speech decoder."""
        settings = config.speech_decoder.model_dump(exclude={"target"})
        return DuplexS2SSpeechDecoder(speech_decoder=settings, **parts)
