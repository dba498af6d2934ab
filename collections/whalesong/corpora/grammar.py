"""A grammar of smart-home commands with numbers, in lower-case words without punctuation."""

import itertools
import random
import zlib
from collections.abc import Iterator, Mapping
from typing import Literal

from whalesong.core.errors import ConfigError

Split = Literal["train", "validation", "test"]

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def number_to_words(number: int) -> str:
    """Write a number from 0 to 100 in words: 42 is "forty two"."""
    if not 0 <= number <= 100:
        raise ConfigError(f"`number` must be from 0 to 100, but is {number} instead.")
    if number == 100:
        return "one hundred"
    if number < 20:
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return f"{_TENS[tens - 2]} {_ONES[ones]}" if ones else _TENS[tens - 2]


def _numbers(first: int, last: int) -> tuple[str, ...]:
    return tuple(number_to_words(number) for number in range(first, last + 1))


TEMPLATES: tuple[str, ...] = (
    "turn {switch} the {appliance} in the {room}",
    "please turn {switch} the {room} {appliance}",
    "{dim} the {color} light in the {room} to {number} percent",
    "set the {room} heater to {degrees} degrees",
    "make the {room} {color} at {hour} {minute}",
    "{open} the {opening} of the {room}",
    "please {open} the {room} {opening} at {hour} {minute}",
    "wake me up at {hour} {minute} on {day}",
    "set a timer for {number} minutes and {number} seconds",
    "play song {number} on the {room} radio",
    "play the next song in {number} seconds",
    "call number {digit} {digit} {digit} {digit}",
    "remind me to {open} the {opening} on {day}",
    "is the {appliance} in the {room} still {switch}",
    "add {number} and {number}",
    "move channel {number} to the {room} television",
)
"""Sentences with slots; the same slot may appear twice."""

FILLERS: Mapping[str, tuple[str, ...]] = {
    "switch": ("on", "off"),
    "dim": ("dim", "set", "change"),
    "open": ("open", "close", "lock"),
    "opening": ("door", "window", "curtain", "gate"),
    "appliance": ("light", "lamp", "heater", "fan", "radio", "television", "oven"),
    "room": ("kitchen", "bedroom", "bathroom", "garage", "garden", "office", "hall", "basement"),
    "color": ("red", "green", "blue", "yellow", "white"),
    "day": ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    "hour": _numbers(1, 12),
    "minute": _numbers(10, 59),
    "number": _numbers(2, 100),
    "degrees": _numbers(5, 35),
    "digit": _numbers(0, 9),
}
"""What may stand in each slot of `TEMPLATES`."""

VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {word for fillers in FILLERS.values() for phrase in fillers for word in phrase.split()}
        | {word for template in TEMPLATES for word in template.split() if "{" not in word}
    )
)
"""Every word that a sentence can hold, in alphabetical order."""


def sample_sentences(seed: int, count: int, *, split: Split = "train") -> list[str]:
    """Draw sentences of one split from the grammar.

    Templates and fillers are dealt like cards, each used once before any is used again, so words
    are balanced and 600 training sentences hold all of `VOCABULARY`. Sentences may repeat, but
    no sentence is in two splits, whatever the seeds.

    Args:
        seed: equal seeds give equal sentences.
        count: how many sentences to draw.
        split: "train" has 8 of 10 possible sentences, "validation" and "test" one each.
    """
    sentences = (
        sentence for sentence in _deal_sentences(random.Random(seed)) if split_of(sentence) == split
    )
    return list(itertools.islice(sentences, count))


def split_of(sentence: str) -> Split:
    """Tell which split a sentence belongs to."""
    # crc32 is the same on every machine and in every process, unlike hash().
    bucket = zlib.crc32(sentence.encode()) % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def _deal_sentences(rng: random.Random) -> Iterator[str]:
    decks = {slot: _deal(fillers, rng) for slot, fillers in FILLERS.items()}
    for template in _deal(TEMPLATES, rng):
        words = (
            next(decks[word[1:-1]]) if word.startswith("{") else word for word in template.split()
        )
        yield " ".join(words)


def _deal(cards: tuple[str, ...], rng: random.Random) -> Iterator[str]:
    while True:
        yield from rng.sample(cards, len(cards))
