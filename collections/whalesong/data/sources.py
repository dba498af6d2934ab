"""A source yields examples, metadata only, in an order that depends on (seed, epoch) alone."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from whalesong.core.errors import DataError
from whalesong.core.seeding import mix
from whalesong.data.conversation import Example
from whalesong.data.faults import Faults
from whalesong.data.manifests import count_lines

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of examples."""

    path: str
    """The manifest whose lines are the examples."""
    read: Callable[[random.Random, Faults], Iterator[Example]]
    """Reads the examples in the order of the file; the generator is for random choices in them."""
    has_lines: bool = True
    """Whether the file has a line for each example."""
    count: int | None = None
    """Number of examples, where it is known."""

    def __len__(self) -> int:
        """Number of examples; none is opened if it is known, or the file has a line for each."""
        if self.count is not None:
            return self.count
        if self.has_lines:
            return count_lines(self.path)
        return sum(1 for _ in self.read(random.Random(0), Faults("skip")))


@dataclass(frozen=True)
class Source:
    """Examples of one item of `input_cfg`."""

    name: str
    """How messages call it."""
    shards: Sequence[Shard]
    faults: Faults
    convert: Callable[[Example], Example] | None = None
    """Applied to each example; a `DataError` in it is a fault of that example."""
    weight: float | None = field(default=None)
    """Share of the draws; None where no weights are given."""

    def __len__(self) -> int:
        """Number of examples before any is left out."""
        return sum(len(shard) for shard in self.shards)

    def iterate(
        self, seed: int, *, shuffle: bool = True, buffer_size: int = 2000
    ) -> Iterator[Example]:
        """Yield every example once.

        With `shuffle`, the shards come in random order and their examples pass a shuffle buffer.
        """
        rng = random.Random(mix(seed, "shards"))
        order = rng.sample(self.shards, len(self.shards)) if shuffle else self.shards
        examples = self._converted(order, rng)
        return shuffled(examples, rng=rng, size=buffer_size) if shuffle else examples

    def _converted(self, shards: Iterable[Shard], rng: random.Random) -> Iterator[Example]:
        for shard in shards:
            # Its own generator: choices in a shard do not depend on the shards before it.
            for example in shard.read(random.Random(rng.getrandbits(63)), self.faults):
                try:
                    yield self.convert(example) if self.convert else example
                except DataError as error:
                    self.faults.report(str(error))


def shuffled(items: Iterable[T], *, rng: random.Random, size: int) -> Iterator[T]:
    """Yield items in random order, choosing among the next `size`."""
    buffer: list[T] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        index = rng.randrange(size)
        buffer[index], item = item, buffer[index]
        yield item
    rng.shuffle(buffer)
    yield from buffer
