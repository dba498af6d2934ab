"""Synthesized music as cuts in memory, and the shar folders they are written to."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lhotse import MonoCut
from lhotse.shar import SharWriter
from tqdm.auto import tqdm

from whalesong.core.atomic import atomic_folder
from whalesong.corpora.grammar import Split


@dataclass(frozen=True)
class SplitSummary:
    """What was written for one split."""

    num_cuts: int
    duration_s: float
    instruments: dict[str, int]
    """Loops of each."""


def write_splits(
    folder: str | Path,
    cuts_of: Callable[..., Iterator[MonoCut]],
    *,
    counts: Mapping[Split, int],
    shard_size: int,
) -> dict[Split, SplitSummary]:
    """Write a shar folder for each split; `folder` appears only when all of it is written.

    Args:
        folder: new or empty.
        cuts_of: `(split=, count=) -> cuts`.
        counts: cuts of each split.
        shard_size: cuts of a shard.

    Raises:
        DataError: if `folder` is not empty.
    """
    with atomic_folder(folder) as partial:
        return {
            split: write_split(
                partial / split,
                cuts_of(split=split, count=count),
                count=count,
                shard_size=shard_size,
            )
            for split, count in counts.items()
        }


def write_split(
    folder: Path, cuts: Iterator[MonoCut], *, count: int, shard_size: int
) -> SplitSummary:
    """Write `count` cuts, each with an `instrument`, as shar with `cuts` and flac `recording`."""
    folder.mkdir()
    duration_s, instruments = 0.0, Counter()
    with SharWriter(str(folder), fields={"recording": "flac"}, shard_size=shard_size) as writer:
        for cut in tqdm(cuts, total=count, desc=f"Playing {folder.name}", unit="loop"):
            writer.write(cut)
            duration_s += cut.duration
            instruments[cut.custom["instrument"]] += 1
    return SplitSummary(count, duration_s, dict(instruments))
