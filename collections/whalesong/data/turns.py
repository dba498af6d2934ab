"""What the two sides of a conversation say, and when."""

import math
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from lhotse import SupervisionSegment
from lhotse.cut import Cut

from whalesong.core.errors import DataError
from whalesong.data.conversation import origin

TIMESTAMP = re.compile(r"<\|\d+\|>")
"""What NeMo's corpora mark word times with; it is no part of the text."""


class Turn(NamedTuple):
    """What one side says at a stretch; a tuple, for batches that move to a device hold some."""

    begin: float
    """Seconds from the begin of the cut."""
    end: float | None
    """Seconds from the begin of the cut; None where it has not ended."""
    text: str


def turns_of(cut: Cut, roles: Collection[str]) -> list[Turn]:
    """The turns of the speakers that have one of these roles, in order of their begins.

    Raises:
        DataError: naming the cut: nobody in it has such a role, or a turn has no text or times
            that are no numbers.
    """
    place = f"{origin(cut)}, cut {cut.id}"
    segments = [segment for segment in cut.supervisions if segment.speaker in roles]
    if not segments:
        speakers = sorted({str(segment.speaker) for segment in cut.supervisions})
        raise DataError(
            f"{place}: must have supervisions of the speaker {_listed(roles)}, "
            f"but has {f'those of {_listed(speakers)}' if speakers else 'none'}."
        )
    return sorted((_turn(segment, place) for segment in segments), key=lambda turn: turn.begin)


def joined(turns: Sequence[Turn]) -> str:
    """The texts of turns, with a space between them."""
    return " ".join(turn.text for turn in turns if turn.text)


def _turn(segment: SupervisionSegment, place: str) -> Turn:
    begin, duration = segment.start, segment.duration
    if not (math.isfinite(begin) and math.isfinite(duration) and duration >= 0):
        raise DataError(
            f"{place}: a turn must have a begin and a duration of at least 0 s, "
            f"but has {begin} and {duration}."
        )
    if not isinstance(segment.text, str):
        raise DataError(
            f"{place}: the turn of {segment.speaker} at {begin:.2f} s must have a text, "
            f"but has {'none' if segment.text is None else repr(segment.text)}."
        )
    text = " ".join(TIMESTAMP.sub("", segment.text).split())
    return Turn(begin, begin + duration, text)


def _listed(names: Collection[str]) -> str:
    return " or ".join(repr(name) for name in names)
