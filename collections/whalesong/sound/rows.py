"""What a user asks for, brought to one entry for each row."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from whalesong.core.errors import ConfigError
from whalesong.modules.codec.codec import Codec
from whalesong.sound.wav import read_clip

Metadata = Sequence[Mapping[str, Any]]
"""For each row, the value of each condition by its id."""

Clip = Tensor | None
"""Audio (C, N), or codes (K, F), or nothing."""


def count_rows(*given: Any, batch_size: int | None = None) -> int:
    """Rows by the first argument that is one entry for each; 1 if none tells."""
    if batch_size is not None:
        return batch_size
    return next((len(values) for values in given if isinstance(values, Sequence)), 1)


def check_rows(rows: int, **given: Sequence[Any] | None) -> None:
    """A ValueError names the first argument that has not one entry for each row."""
    for name, values in given.items():
        if values is not None and len(values) != rows:
            raise ValueError(f"`{name}` must have one entry for each of {rows} rows, "
                             f"but has {len(values)}.")  # fmt: skip


def row_seeds(seeds: int | Sequence[int] | None, rows: int) -> list[int]:
    """A seed for each row: random ones, those from a number on, or as given."""
    if seeds is None:
        return torch.randint(2**31, (rows,)).tolist()
    return [seeds + row for row in range(rows)] if isinstance(seeds, int) else list(seeds)


def row_seconds(seconds: float | Sequence[float], rows: int) -> list[float]:
    """A length for each row; a ValueError says that one is not above 0."""
    lengths = [float(seconds)] * rows if isinstance(seconds, int | float) else list(seconds)
    if not all(isfinite(length) and length > 0 for length in lengths):
        raise ValueError(f"`seconds` must be above 0 in every row, but is {lengths}.")
    return lengths


def spread(values: Sequence[Any], rows: int, *, key: str) -> list[Any]:
    """One value for each row: as they are, or the only one for all.

    Raises:
        ConfigError: there are others than one or one for each, naming `predict.<key>`.
    """
    if len(values) not in (1, rows):
        raise ConfigError(f"`predict.{key}` must have one entry, or one for each of {rows} rows, "
                          f"but has {len(values)}.")  # fmt: skip
    return list(values) * rows if len(values) == 1 else list(values)


def read_clips(paths: Sequence[str], rows: int, *, key: str, codec: Codec) -> list[Clip]:
    """Audio (C, N) of a file for each row, as a codec takes it; no paths, no audio.

    Raises:
        ConfigError: there are others than one path or one for each row.
        DataError: naming a file that cannot be read.
    """
    if not paths:
        return [None] * rows
    spread_paths = spread(paths, rows, key=key)
    clips = {
        path: read_clip(path, sample_rate=codec.sample_rate, num_channels=codec.num_channels)
        for path in dict.fromkeys(paths)
    }
    return [clips[path] for path in spread_paths]
