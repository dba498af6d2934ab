"""The text of a speaker on a grid of frames: one token a frame, silence between the turns.

A turn of three tokens, and the frames where it begins and ends:

    tokens  PAD PAD BOS  t1  t2  t3 PAD PAD EOS PAD
    events   -   -   B   -   -   -   -   -   E   -
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from whalesong.core.errors import DataError
from whalesong.data.turns import Turn, joined

logger = logging.getLogger(__name__)

NO_EVENT, TURN_BEGINS, TURN_ENDS = 0, 1, 2


@dataclass(frozen=True)
class TextIds:
    """Ids of the control tokens; `bos` may be the same as `eos`."""

    bos: int
    eos: int
    pad: int


@dataclass(frozen=True)
class TextChannel:
    """A token and an event for each frame."""

    tokens: list[int]
    events: list[int]
    """NO_EVENT, TURN_BEGINS or TURN_ENDS; tells begins from ends where `bos` is `eos`."""


def place_turns(
    turns: Sequence[Turn],
    *,
    num_frames: int,
    frame_length: float,
    encode: Callable[[str], list[int]],
    ids: TextIds,
    name: str,
) -> TextChannel:
    """Place BOS at the begin of each turn, its tokens behind it, and EOS at its end.

    A turn ends in the frame before the next one at the latest, and has no EOS where that is its
    first frame, or where its end is not in the row. Turns that begin in the same frame are one.
    Tokens that do not fit before EOS are left out, with a warning.

    Args:
        turns: of one speaker, in any order.
        num_frames: length of the row.
        frame_length: seconds.
        encode: text to token ids.
        name: of the row, for messages.

    Raises:
        DataError: a turn begins outside of the row, or its text holds a control token.
    """
    channel = TextChannel([ids.pad] * num_frames, [NO_EVENT] * num_frames)
    begins = _by_frame(turns, num_frames=num_frames, frame_length=frame_length, name=name)
    limits = [*list(begins)[1:], None]
    for (begin, turn), following in zip(begins.items(), limits, strict=True):
        end = _end(turn, begin, following, num_frames=num_frames, frame_length=frame_length)
        stop = num_frames if end is None else end
        tokens = _encode(turn, encode, ids, name)
        room = max(stop - begin - 1, 0)
        if len(tokens) > room:
            logger.warning(
                "%s: the turn at %.2f s has %d tokens, but room for %d: the last %d are left out.",
                *(name, turn.begin, len(tokens), room, len(tokens) - room),
            )
        fitting = [ids.bos, *tokens[:room]]
        channel.tokens[begin : begin + len(fitting)] = fitting
        channel.events[begin] = TURN_BEGINS
        if end is not None and end > begin:
            channel.tokens[end], channel.events[end] = ids.eos, TURN_ENDS
    return channel


def frame_at(seconds: float, frame_length: float) -> int:
    """The frame that begins nearest to a time; the later one of two."""
    # Rounded first: 0.12 s are 1.5 frames of 0.08 s, but not in floating point.
    return math.floor(round(seconds / frame_length, 6) + 0.5)


def _by_frame(
    turns: Sequence[Turn], *, num_frames: int, frame_length: float, name: str
) -> dict[int, Turn]:
    """First frame -> turn, in order; turns that begin in the same frame are joined."""
    begins: dict[int, Turn] = {}
    for turn in sorted(turns, key=lambda turn: turn.begin):
        frame = frame_at(turn.begin, frame_length)
        if not 0 <= frame < num_frames:
            raise DataError(
                f"{name}: a turn must begin within its {num_frames * frame_length:.2f} s, "
                f"but one begins at {turn.begin:.2f} s."
            )
        begins[frame] = _join(begins[frame], turn) if frame in begins else turn
    return begins


def _join(first: Turn, second: Turn) -> Turn:
    ends = (first.end, second.end)
    return Turn(first.begin, None if None in ends else max(ends), joined([first, second]))


def _end(
    turn: Turn, begin: int, following: int | None, *, num_frames: int, frame_length: float
) -> int | None:
    """Frame of the EOS; None for a turn that goes on to the end of the row."""
    end = num_frames if turn.end is None else frame_at(turn.end, frame_length)
    end = max(end, begin + 1)
    if following is not None:
        end = min(end, following - 1)
    return end if end < num_frames else None


def _encode(turn: Turn, encode: Callable[[str], list[int]], ids: TextIds, name: str) -> list[int]:
    tokens = encode(turn.text) if turn.text else []
    for token in tokens:
        if token in (ids.bos, ids.eos):
            raise DataError(
                f"{name}: the text of the turn at {turn.begin:.2f} s must not hold the token "
                f"{token} that begins or ends a turn: {turn.text!r}."
            )
    return tokens
