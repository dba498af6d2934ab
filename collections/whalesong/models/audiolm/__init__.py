"""AudioLM: one quantizer after the other, the first ones autoregressively."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whalesong.models.audiolm.model import AudioLM

__all__ = ["AudioLM"]


def __getattr__(name: str) -> Any:
    if name != "AudioLM":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from whalesong.models.audiolm.model import AudioLM

    return AudioLM
