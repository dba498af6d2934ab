"""Questions to a home's assistant and their answers, in lower-case words without punctuation."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from whalesong.corpora.grammar import Split, number_to_words, split_of

SWITCHES = ("on", "off")
APPLIANCES = ("lamp", "heater", "fan", "radio", "oven", "television", "printer", "music")
ROOMS = ("kitchen", "bedroom", "garage", "office", "hall", "basement", "attic", "studio")
LARGEST_NUMBER = 5

_COMMANDS = (
    "turn {switch} the {appliance} in the {room}",
    "please turn {switch} the {room} {appliance}",
)
_SUM_SHARE = 0.3


@dataclass(frozen=True)
class Question:
    """What the user says, and the right answer."""

    text: str
    answer: str


def draw_questions(rng: random.Random, *, split: Split) -> Iterator[Question]:
    """Draw questions without end, three of ten about sums.

    A command for an appliance in a room belongs to one split only, however it is worded. Sums of
    numbers up to `LARGEST_NUMBER` are so few that all splits share them.
    """
    commands = [question for question in _commands() if split_of(question.answer) == split]
    sums = list(_sums())
    while True:
        yield rng.choice(sums if rng.random() < _SUM_SHARE else commands)


def all_questions() -> list[Question]:
    """Each question once, those of all splits."""
    return [*_commands(), *_sums()]


def _commands() -> Iterator[Question]:
    for template, *fillers in itertools.product(_COMMANDS, SWITCHES, APPLIANCES, ROOMS):
        switch, appliance, room = fillers
        text = template.format(switch=switch, appliance=appliance, room=room)
        yield Question(text, f"the {room} {appliance} is {switch}")


def _sums() -> Iterator[Question]:
    for pair in itertools.product(range(1, LARGEST_NUMBER + 1), repeat=2):
        first, second, total = map(number_to_words, (*pair, sum(pair)))
        yield Question(f"what is {first} plus {second}", f"{first} plus {second} is {total}")


VOCABULARY: tuple[str, ...] = tuple(
    sorted({word for q in all_questions() for word in f"{q.text} {q.answer}".split()})
)
"""Every word that a question or an answer can hold, in alphabetical order."""
