"""What a user asks of AudioLM, brought to one entry for each row."""

from collections.abc import Sequence
from dataclasses import dataclass

from whalesong.sound.rows import Clip, Metadata, check_rows, count_rows, row_seconds, row_seeds


@dataclass(frozen=True)
class Request:
    """What to generate, row by row.

    Attributes:
        begin: what each row goes on from.
        end: what each row leads to; None where it just goes on.
        metadata: conditions of each row; None generates without conditions.
        seconds: longest new audio of each row; its exact length where it leads to something.
        seeds: one for each row.
    """

    begin: Sequence[Clip]
    end: Sequence[Clip]
    metadata: Metadata | None
    seconds: Sequence[float]
    seeds: Sequence[int]

    def __len__(self) -> int:
        return len(self.seeds)


def make_request(
    *,
    begin: Sequence[Clip] | None = None,
    end: Sequence[Clip] | None = None,
    conditioning: Metadata | None = None,
    seconds: float | Sequence[float],
    batch_size: int | None = None,
    seeds: int | Sequence[int] | None = None,
) -> Request:
    """Bring the arguments of a user to one entry for each row.

    Raises:
        ValueError: they speak of different numbers of rows, or a length is not above 0.
    """
    rows = count_rows(begin, end, conditioning, seconds, seeds, batch_size=batch_size)
    lengths = row_seconds(seconds, rows)
    begin, end = begin or [None] * rows, end or [None] * rows
    own_seeds = row_seeds(seeds, rows)
    check_rows(
        rows, begin=begin, end=end, conditioning=conditioning, seconds=lengths, seeds=own_seeds
    )
    return Request(begin, end, conditioning, lengths, own_seeds)
