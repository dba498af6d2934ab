"""Whalesong: speech and audio language models, built the NeMo way.

Importing this package costs nothing heavy: every public name is loaded when it is first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> the module that defines it.
_PUBLIC = {
    "load": "whalesong.core.archived_model",
    "AudioLMModel": "whalesong.models.audiolm.audiolm",
    "CodecLMModel": "whalesong.models.codec_lm.codec_lm",
    "DuplexS2SModel": "whalesong.models.duplex_s2s.duplex_s2s",
    "DuplexS2SSpeechDecoderModel": (
        "whalesong.models.duplex_s2s_speech_decoder.duplex_s2s_speech_decoder"
    ),
    "SALM": "whalesong.models.salm.salm",
    "TextLMModel": "whalesong.textlm.textlm_model",
    "create_audio_lm_from_config": "whalesong.models.codec_lm.factory",
}

__all__ = [
    "AudioLMModel",
    "CodecLMModel",
    "DuplexS2SModel",
    "DuplexS2SSpeechDecoderModel",
    "SALM",
    "TextLMModel",
    "__version__",
    "create_audio_lm_from_config",
    "load",
    "testing",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name == "testing":
        return import_module("whalesong.testing")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'whalesong' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
