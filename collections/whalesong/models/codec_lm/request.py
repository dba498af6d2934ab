"""What a user asks of the codec language model, brought to one entry for each row."""

from collections.abc import Sequence
from dataclasses import dataclass

from whalesong.sound.rows import Clip, Metadata, check_rows, count_rows, row_seconds, row_seeds


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
    rows = count_rows(conditioning, begin, seconds, seeds, batch_size=batch_size)
    lengths = row_seconds(seconds, rows)
    begin = begin or [None] * rows
    given = {"metadata": conditioning, "negative": negative, "begin": begin}
    own_seeds = row_seeds(seeds, rows)
    check_rows(rows, **given, seconds=lengths, seeds=own_seeds)
    return Request(conditioning, negative, begin, lengths, own_seeds)
