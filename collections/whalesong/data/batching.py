"""Examples -> batches: limits on a batch, and buckets of about the same length."""

import random
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from whalesong.data.config import DatasetConfig
from whalesong.data.conversation import Example
from whalesong.data.filters import MeasureTokens
from whalesong.data.text_example import TextExample

CHARACTERS_A_SECOND = 15.0
"""Speaking rate by which an example without audio gets a length in seconds."""


@dataclass(frozen=True)
class Limits:
    """When a batch is full."""

    max_examples: int | None = None
    max_length: float | None = None
    """Of the padded batch: examples times the longest."""
    quadratic: float | None = None
    """An example of this length counts twice."""

    def cost(self, length: float) -> float:
        """What an example of a length counts."""
        return length if self.quadratic is None else length + length**2 / self.quadratic

    def fit(self, count: int, longest: float) -> bool:
        """Whether `count` examples, the longest of this cost, fit into a batch."""
        if self.max_examples is not None and count > self.max_examples:
            return False
        return self.max_length is None or count * longest <= self.max_length

    def full(self, count: int) -> bool:
        """Whether no further example can fit, whatever its length."""
        return self.max_examples is not None and count >= self.max_examples


@dataclass
class Bucket:
    """Collects the examples of one batch."""

    limits: Limits
    examples: list[Example] = field(default_factory=list)
    longest: float = 0.0

    def add(self, example: Example, length: float) -> Iterator[list[Example]]:
        """Take an example; yield the batch that it completes or does not fit into."""
        cost = self.limits.cost(length)
        longest = max(self.longest, cost)
        if self.examples and not self.limits.fit(len(self.examples) + 1, longest):
            yield self.take()
            longest = cost
        self.examples.append(example)
        self.longest = longest
        if self.limits.full(len(self.examples)):
            yield self.take()

    def take(self) -> list[Example]:
        """Empty the bucket into a batch."""
        batch, self.examples, self.longest = self.examples, [], 0.0
        return batch


@dataclass(frozen=True)
class Batcher:
    """Turns a stream of examples into batches, always the same way."""

    measure: Callable[[Example], float]
    """Length of an example, in the unit of the bins and of the limits."""
    limits: tuple[Limits, ...]
    """Of each bucket."""
    bins: tuple[float, ...] = ()
    """Upper bounds of the buckets; one bucket more takes what is longer, if it has limits."""
    drop_last: bool = False

    def batches(self, examples: Iterable[Example], rng: random.Random) -> Iterator[list[Example]]:
        """Yield batches; the incomplete ones of all buckets come last, in random order."""
        buckets = [Bucket(limits) for limits in self.limits]
        for example in examples:
            length = self.measure(example)
            yield from buckets[bisect_left(self.bins, length)].add(example, length)
        rest = [bucket.take() for bucket in buckets if bucket.examples]
        if not self.drop_last:
            rng.shuffle(rest)
            yield from rest


def length_measure(
    config: DatasetConfig, measure_tokens: MeasureTokens | None
) -> Callable[[Example], float]:
    """How the length of an example is measured: in tokens, or in seconds."""
    if config.batch_tokens is not None or config.use_multimodal_sampling:
        return measure_tokens
    return seconds_of


def seconds_of(example: Example) -> float:
    """Seconds of audio; of an example without audio, the time to say its text."""
    if example.duration > 0:
        return example.duration
    parts = example.parts if isinstance(example, TextExample) else getattr(example, "texts", ())
    return sum(map(len, parts)) / CHARACTERS_A_SECOND


def make_limits(config: DatasetConfig, num_buckets: int) -> tuple[Limits, ...]:
    """The limits of each bucket."""
    in_tokens = config.batch_tokens is not None
    common = Limits(
        max_examples=config.batch_size,
        max_length=config.batch_tokens if in_tokens else config.batch_duration,
        quadratic=config.quadratic_factor if in_tokens else config.quadratic_duration,
    )
    if config.bucket_batch_size is None:
        return (common,) * num_buckets
    return tuple(Limits(max_examples=size) for size in config.bucket_batch_size)


def estimate_bins(lengths: Iterable[float], num_buckets: int) -> tuple[float, ...]:
    """Upper bounds of buckets (without the last) that hold about the same total length."""
    ordered = sorted(lengths)
    step, total, bins = sum(ordered) / num_buckets, 0.0, []
    for length in ordered:
        total += length
        if total >= step * (len(bins) + 1) and len(bins) < num_buckets - 1:
            bins.append(length)
    return tuple(sorted(set(bins)))
