"""Numbers in a description of unknown origin that would make a library fill the memory."""

from typing import Any

_LARGEST = {
    "n_fft": 2**16,
    "features": 2**12,
    "n_mels": 2**12,
    "num_labels": 10_000,
    "num_quantizers": 10_000,
    "num_codebooks": 10_000,
}
_MOST_LAYERS = 10_000
_LAYERS = ("layers", "n_layer", "blocks", "depth")


def largest(key: str) -> int | None:
    """The largest number that may stand at a key; None where it does not matter here.

    Libraries make lists and filters of these sizes before there is any weight. What weights there
    are bounds all others; see `whalesong.core.archive.restoring.bounded_by`.
    """
    return _MOST_LAYERS if key.endswith(_LAYERS) else _LARGEST.get(key)


def is_too_large(key: str, value: Any) -> bool:
    """Whether a number exceeds `largest(key)`."""
    limit = largest(key)
    return limit is not None and isinstance(value, int | float) and abs(value) > limit
