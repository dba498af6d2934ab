"""Turn-taking against conversations judged by hand."""

from typing import Any

import pytest

from whalesong.metrics.turn_taking import TurnTaking

Times = list[tuple[float, float | None]]


def row(user: Times, agent: Times, reference: Times | None = None) -> dict[str, Any]:
    """One conversation; the reference is what the agent does unless it is given."""
    sides = {
        "user_turns": user,
        "agent_turns": agent,
        "reference_turns": agent if reference is None else reference,
    }
    return {
        side: [{"begin": begin, "end": end, "text": ""} for begin, end in times]
        for side, times in sides.items()
    }


def values(*rows: dict[str, Any]) -> dict[str, float]:
    metric = TurnTaking()
    metric.update(list(rows))
    return metric.compute(metric.totals())


PERFECT = {"response_latency": pytest.approx(0.5), "false_starts": 0.0, "missed_responses": 0.0}


def test_an_answer_counts_from_the_end_of_the_question() -> None:
    assert values(row([(0, 1)], [(1.5, 2)])) == PERFECT
    assert values(row([(0, 1), (4, 5)], [(1.25, 3), (5.75, 6)])) == PERFECT


def test_only_the_first_answer_to_a_turn_has_a_latency() -> None:
    assert values(row([(0, 1)], [(3, 4), (1.5, 2)], [(1.5, 2)])) == PERFECT


def test_who_does_as_the_reference_does_makes_no_mistake() -> None:
    found = values(row([(0.0, 2.0), (3.0, 5.0)], [(1.0, 2.5), (5.5, 6.0)]))
    assert found == PERFECT


def test_beginning_while_the_user_speaks_is_a_false_start() -> None:
    found = values(row([(0, 2), (4, 6)], [(1, 3), (6.5, 7)], [(2.5, 3), (6.5, 7)]))
    assert found == {**PERFECT, "false_starts": 0.5}


def test_a_frame_too_early_is_no_false_start() -> None:
    found = values(row([(0, 2)], [(1.93, 3)], [(2.0, 3)]))
    assert found == {
        "response_latency": pytest.approx(-0.07), "false_starts": 0.0, "missed_responses": 0.0
    }  # fmt: skip


def test_a_question_without_an_answer_is_missed() -> None:
    answered = row([(0, 1)], [(1.5, 2)])
    silent = row([(0, 1)], [], [(1.5, 2)])
    assert values(answered, silent) == {**PERFECT, "missed_responses": 0.5}


def test_a_question_that_nobody_answers_is_not_missed() -> None:
    assert values(row([(0, 1)], [])) == {"false_starts": 0.0}


def test_what_is_said_before_the_first_turn_of_the_user_is_no_answer() -> None:
    assert values(row([(2, 3)], [(0, 1)])) == {"false_starts": 0.0}


@pytest.mark.parametrize(("agent_end", "success"), [(3.0, 1), (3.5, 1), (3.6, 0), (None, 0)])
def test_the_agent_must_stop_when_the_user_barges_in(
    agent_end: float | None, success: float
) -> None:
    found = values(row([(0, 1), (2.5, 3.5)], [(1.5, agent_end)], [(1.5, 6.0)]))
    assert found["barge_in_success"] == success


def test_no_barge_in_has_no_success() -> None:
    assert "barge_in_success" not in values(row([(0, 1), (2, 3)], [(1.25, 2.05)]))


def test_a_user_who_goes_on_has_not_been_answered() -> None:
    assert values(row([(0, None)], [], [])) == {"false_starts": 0.0}
    assert values(row([(0, None)], [(3, 4)], [])) == {"false_starts": 1.0}


def test_ranks_are_summed_before_dividing() -> None:
    one, other, whole = TurnTaking(), TurnTaking(), TurnTaking()
    first = [row([(0, 2), (4, 6)], [(1, 3)], [(2.5, 3)]), row([(0, 1)], [(1.3, 2)])]
    second = [row([(0, 1), (1.5, 2)], [(1.2, 2.5)])]
    one.update(first)
    other.update(second)
    whole.update(first + second)
    summed = [a + b for a, b in zip(one.totals(), other.totals(), strict=True)]
    assert one.compute(summed) == whole.compute(whole.totals())
    whole.reset()
    assert not any(whole.totals())
