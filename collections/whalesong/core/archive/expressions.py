"""Regular expressions of unknown origin: those that may search for ever are told apart."""

import re
from collections.abc import Iterator
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

_MOST_REPEATS = 4
_MOST_CHARACTERS = 500
_REPEATS = (codes.MAX_REPEAT, codes.MIN_REPEAT)


def hanging(expression: str) -> str | None:
    """Why matching an expression against a short name may take for ever; None when it may not.

    The time of a match is bounded by a small power of the length of the name when no repetition
    stands in another one, and there are few of them.
    """
    if len(expression) > _MOST_CHARACTERS:
        return f"is longer than {_MOST_CHARACTERS} characters"
    try:
        parsed = parser.parse(expression)
    except (re.error, RecursionError, OverflowError) as error:
        return f"is no regular expression: {error}"
    depths = list(_repeats(parsed, 0))
    if any(depth > 1 for depth in depths):
        return "repeats a repetition, so that a match may take for ever"
    if len(depths) > _MOST_REPEATS:
        return f"has more than {_MOST_REPEATS} repetitions, so that a match may take for ever"
    return None


def _repeats(node: Any, depth: int) -> Iterator[int]:
    """For each repetition of a variable count, in how many it stands, itself included.

    An alternation in a repetition counts as one more: its branches may be the same.
    """
    for operation, argument in node:
        inner = depth
        if operation in _REPEATS and argument[0] != argument[1]:
            inner = depth + 1
            yield inner
        elif operation is codes.BRANCH and depth:
            yield depth + 1
        for child in _children(argument):
            yield from _repeats(child, inner)


def _children(argument: Any) -> Iterator[Any]:
    """The patterns inside the argument of an operation."""
    if isinstance(argument, parser.SubPattern):
        yield argument
    elif isinstance(argument, list | tuple):
        for item in argument:
            yield from _children(item)
