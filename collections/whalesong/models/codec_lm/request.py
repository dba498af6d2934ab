"""What a user asks of the codec language model, brought to one entry for each row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

Metadata = Sequence[Mapping[str, Any]]
"""For each row, the value of each condition by its id."""

Clip = Tensor | None
"""Audio (C, N), or codes (K, F), or nothing."""


@dataclass(frozen=True)
class Request:
    """What to generate, row by row.

    Attributes:
        metadata: conditions of each row; None generates without conditions.
        negative: conditions to be led away from; None compares with no conditions.
        begin: what each row goes on from.
        seconds: length of each row, what it goes on from included.
        seeds: one for each row.
    """

    metadata: Metadata | None
    negative: Metadata | None
    begin: Sequence[Clip]
    seconds: Sequence[float]
    seeds: Sequence[int]

    def __len__(self) -> int:
        return len(self.seeds)


def make_request(
    conditioning: Metadata | None,
    *,
    seconds: float | Sequence[float],
    batch_size: int | None = None,
    negative: Metadata | None = None,
    begin: Sequence[Clip] | None = None,
    seeds: int | Sequence[int] | None = None,
) -> Request:
    """Bring the arguments of a user to one entry for each row.

    Raises:
        ValueError: they speak of different numbers of rows, or a length is not above 0.
    """
    rows = _num_rows(conditioning, begin, seconds, seeds, batch_size)
    if seeds is None:
        seeds = torch.randint(2**31, (rows,)).tolist()
    elif isinstance(seeds, int):
        seeds = [seeds + row for row in range(rows)]
    if isinstance(seconds, int | float):
        seconds = [float(seconds)] * rows
    if not all(isfinite(length) and length > 0 for length in seconds):
        raise ValueError(f"`seconds` must be above 0 in every row, but is {list(seconds)}.")
    request = Request(conditioning, negative, begin or [None] * rows, seconds, list(seeds))
    for name in ("metadata", "negative", "begin", "seconds"):
        given = getattr(request, name)
        if given is not None and len(given) != rows:
            raise ValueError(f"`{name}` must have one entry for each of {rows} rows, "
                             f"but has {len(given)}.")  # fmt: skip
    return request


def _num_rows(
    conditioning: Metadata | None,
    begin: Sequence[Clip] | None,
    seconds: float | Sequence[float],
    seeds: int | Sequence[int] | None,
    batch_size: int | None,
) -> int:
    """Rows by the first argument that tells; 1 if none does."""
    if batch_size is not None:
        return batch_size
    for given in (conditioning, begin, seconds, seeds):
        if isinstance(given, Sequence):
            return len(given)
    return 1
