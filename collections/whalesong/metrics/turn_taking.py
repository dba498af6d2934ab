"""When an agent speaks: how fast it answers, whether it interrupts and lets itself be interrupted.

Turns are dictionaries with "begin" and "end" in seconds; "end" is None where a turn has not ended.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

Span = tuple[float, float]
"""Begin and end of a turn in seconds."""


@dataclass
class TurnCounts:
    """What `TurnTaking` counts."""

    latency: float = 0.0
    """Seconds between the user's end and the answer, over all answers."""
    answers: int = 0
    user_turns: int = 0
    false_starts: int = 0
    expected: int = 0
    """User turns that the reference answers."""
    missed: int = 0
    barge_ins: int = 0
    stopped: int = 0


class TurnTaking:
    """Turn-taking over rows with "user_turns", "agent_turns" and "reference_turns".

    A turn of the agent belongs to the user's turn that has begun last. It is

    - a false start, if it begins while the user speaks and none of the reference does;
    - an answer, if the user has ended; the latency of the first one counts from that end.

    A user's turn is missed if the reference has a turn that belongs to it and the agent has none.
    The user barges in by beginning while the agent speaks; it succeeds if the agent ends in time.
    A `core.parts.Metric`.

    Args:
        stop_within: seconds in which an interrupted agent must stop.
        tolerance: seconds by which turns may overlap without being an interruption: one frame.
    """

    def __init__(self, *, stop_within: float = 1.0, tolerance: float = 0.08) -> None:
        self.stop_within = stop_within
        self.tolerance = tolerance
        self.counts = TurnCounts()

    def update(self, rows: list[dict[str, Any]]) -> None:
        """Add the turns of these rows."""
        for row in rows:
            user, agent, reference = (
                _spans(row[key]) for key in ("user_turns", "agent_turns", "reference_turns")
            )
            for turn, following in _with_next(user):
                self._count_answer(
                    turn, _within(agent, turn, following), _within(reference, turn, following)
                )
                self._count_barge_in(turn[0], agent)

    def totals(self) -> list[float]:
        """The counts in the order of `TurnCounts`."""
        return [float(count) for count in astuple(self.counts)]

    def compute(self, totals: list[float]) -> dict[str, float]:
        """Values from summed totals; one of which nothing was counted is left out.

        Returns:
            `response_latency` in seconds, `false_starts` by user turn, `missed_responses` by
            expected one, `barge_in_success` by barge-in.
        """
        names = [field.name for field in fields(TurnCounts)]
        counts = TurnCounts(**dict(zip(names, totals, strict=True)))
        ratios = {
            "response_latency": (counts.latency, counts.answers),
            "false_starts": (counts.false_starts, counts.user_turns),
            "missed_responses": (counts.missed, counts.expected),
            "barge_in_success": (counts.stopped, counts.barge_ins),
        }
        return {name: part / whole for name, (part, whole) in ratios.items() if whole}

    def reset(self) -> None:
        """Forget all counts."""
        self.counts = TurnCounts()

    def _count_answer(self, user: Span, agent: Sequence[Span], reference: Sequence[Span]) -> None:
        counts, answer = self.counts, self._answer(user, agent)
        counts.user_turns += 1
        counts.false_starts += self._is_early(user, agent) and not self._is_early(user, reference)
        counts.expected += bool(reference)
        counts.missed += bool(reference) and not agent
        if answer is not None:
            counts.answers += 1
            counts.latency += answer[0] - user[1]

    def _count_barge_in(self, begin: float, agent: Sequence[Span]) -> None:
        open_turns = [end for start, end in agent if start < begin < end - self.tolerance]
        self.counts.barge_ins += bool(open_turns)
        self.counts.stopped += bool(open_turns) and max(open_turns) - begin <= self.stop_within

    def _is_early(self, user: Span, agent: Sequence[Span]) -> bool:
        return any(begin < user[1] - self.tolerance for begin, _ in agent)

    def _answer(self, user: Span, agent: Sequence[Span]) -> Span | None:
        return next((turn for turn in agent if turn[0] >= user[1] - self.tolerance), None)


def _spans(turns: Sequence[dict[str, Any]]) -> list[Span]:
    ends = [math.inf if turn["end"] is None else turn["end"] for turn in turns]
    return sorted((turn["begin"], end) for turn, end in zip(turns, ends, strict=True))


def _with_next(turns: Sequence[Span]) -> Iterator[tuple[Span, float]]:
    """Each turn with the begin of the next one."""
    begins = [begin for begin, _ in turns[1:]]
    return zip(turns, [*begins, math.inf], strict=True)


def _within(agent: Sequence[Span], user: Span, following: float) -> list[Span]:
    """The turns that belong to a user's turn."""
    return [turn for turn in agent if user[0] <= turn[0] < following]
