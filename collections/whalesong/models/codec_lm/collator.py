"""Clips to batches of the codec language model."""

from whalesong.data.clips import ClipCollator


class CodecLMCollator(ClipCollator):
    """Collates clips as `ClipCollator` does, whose arguments and batch are its own."""

    family = "a codec language model"
