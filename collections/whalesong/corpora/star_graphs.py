"""Star graphs: find the way from a source to a goal in a shuffled list of edges.

The sizes and counts are the published ones of the insertion language model (arXiv 2505.05755),
`mini` is ours. Lines of nodes cross at one junction, the edges point from the begin of a line to
its end; the source is the begin of one line and the goal its end, so that one path joins them.
At the junction one has to know what lies ahead: a model that writes from left to right guesses.
"""

import random
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from whalesong.core.errors import ConfigError
from whalesong.corpora.grammar import Split

Size = Literal["mini", "easy", "medium", "hard"]
Edge = tuple[int, int]


@dataclass(frozen=True)
class StarSize:
    """What the graphs of a size have in common."""

    degree: int
    """Lines that cross at the junction."""
    shortest: int
    """Nodes of a line, at least."""
    longest: int
    """Nodes of a line, at most."""
    num_ids: int
    """Node names are 0 to this, without it."""
    min_plan: int
    """Nodes of a line from the junction on, at least: with `longest`, all lines begin there."""

    @property
    def max_prompt(self) -> int:
        """Tokens of the longest prompt: its edges, the source and the goal."""
        return 2 * self.degree * (self.longest - 1) + 2

    @property
    def max_target(self) -> int:
        """Tokens of the longest path, written as edges."""
        return 2 * (self.longest - 1)


SIZES: Mapping[Size, StarSize] = {
    "mini": StarSize(degree=3, shortest=3, longest=3, num_ids=12, min_plan=3),
    "easy": StarSize(degree=3, shortest=5, longest=5, num_ids=20, min_plan=5),
    "medium": StarSize(degree=3, shortest=3, longest=6, num_ids=20, min_plan=2),
    "hard": StarSize(degree=5, shortest=6, longest=12, num_ids=56, min_plan=5),
}
"""The sizes by name."""

_NAMES = [str(number) for number in range(max(size.num_ids for size in SIZES.values()))]

COUNTS: Mapping[Split, int] = {"train": 50_000, "validation": 100, "test": 5_000}
"""Published number of graphs in each split."""


@dataclass(frozen=True, slots=True)
class StarGraph:
    """One task."""

    lines: tuple[tuple[int, ...], ...]
    """Nodes of each line from its begin to its end; the first one is the path."""
    junction: int
    """The node that all lines share."""
    edges: tuple[Edge, ...]
    """All edges as (from, to), in random order."""

    @property
    def path(self) -> tuple[int, ...]:
        """The nodes from source to goal."""
        return self.lines[0]

    @property
    def prompt(self) -> str:
        """The edges, then source and goal: "u v u v ... s g"."""
        return _words([*chain.from_iterable(self.edges), self.path[0], self.path[-1]])

    @property
    def text(self) -> str:
        """The edges of the path: "s a a b b g"."""
        return _words(chain.from_iterable(zip(self.path, self.path[1:], strict=False)))


class StarGraphs:
    """A data set of star graphs, made on the spot; every graph is a function of its index.

    No graph is in two splits, whatever the seeds: a hash of the graph says where it belongs.
    """

    def __init__(
        self,
        size: Size = "easy",
        split: Split = "train",
        *,
        seed: int = 42,
        num_examples: int | None = None,
    ) -> None:
        """Nothing is made yet.

        Args:
            size: a key of `SIZES`.
            split: a key of `COUNTS`.
            seed: equal seeds give equal graphs.
            num_examples: how many; the published count when not given.

        Raises:
            ConfigError: an unknown size or split, or no graph.
        """
        for name, value, known in (("size", size, SIZES), ("split", split, COUNTS)):
            if value not in known:
                raise ConfigError(f"`{name}` must be one of {', '.join(known)}, but is {value!r}.")
        if num_examples is not None and num_examples < 1:
            raise ConfigError(f"`num_examples` must be at least 1, but is {num_examples} instead.")
        self.size, self.split, self.seed = size, split, seed
        self._count = COUNTS[split] if num_examples is None else num_examples

    def __len__(self) -> int:
        """Number of graphs."""
        return self._count

    def __getitem__(self, index: int) -> dict[str, str]:
        """The graph as an example: `id`, `prompt` and `text`."""
        graph = self.graph(index)
        return {"id": f"{self.name}-{index}", "prompt": graph.prompt, "text": graph.text}

    @property
    def name(self) -> str:
        """Size and split: "star_easy-train"."""
        return f"star_{self.size}-{self.split}"

    def graph(self, index: int) -> StarGraph:
        """Make one graph.

        Raises:
            IndexError: there are not so many.
        """
        if not 0 <= index < self._count:
            raise IndexError(f"{self.name} has {self._count} graphs, but no number {index}.")
        rng = random.Random(f"{self.size} {self.split} {self.seed} {index}")
        while True:
            graph = draw_graph(SIZES[self.size], rng)
            if split_of(graph) == self.split:
                return graph

    def draw(self, index: int, axes: Any) -> None:
        """Draw one graph into matplotlib's `axes`, its path and the ends of it in colour."""
        from whalesong.corpora.star_picture import draw_star

        draw_star(self.graph(index), axes)


def draw_graph(size: StarSize, rng: random.Random) -> StarGraph:
    """Draw the lines, the place of the junction in each, and the order of the edges."""
    if size.shortest == size.longest:
        lengths = [size.longest] * size.degree
    else:
        lengths = [rng.randint(size.shortest, size.longest) for _ in range(size.degree)]
    junction, *nodes = _shuffled(range(size.num_ids), rng)
    lines, edges, begin = [], [], 0
    for length in lengths:
        place = rng.randint(0, length - size.min_plan) if length > size.min_plan else 0
        line = nodes[begin : begin + length - 1]
        line.insert(place, junction)
        lines.append(tuple(line))
        edges += zip(line, line[1:], strict=False)
        begin += length - 1
    return StarGraph(tuple(lines), junction, tuple(_shuffled(edges, rng)))


def split_of(graph: StarGraph) -> Split:
    """Tell which split a graph belongs to, whatever the order of its edges."""
    numbers = sorted([begin << 8 | end for begin, end in graph.edges])
    numbers.append(graph.path[0] << 8 | graph.path[-1])
    # crc32 is the same on every machine and in every process, unlike hash().
    bucket = zlib.crc32(struct.pack(f"<{len(numbers)}H", *numbers)) % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def _shuffled(items: Sequence[Any], rng: random.Random) -> list[Any]:
    """The items in random order; several times as fast as `rng.shuffle`."""
    draw = rng.random
    return sorted(items, key=lambda _: draw())


def _words(nodes: Iterable[int]) -> str:
    return " ".join(map(_NAMES.__getitem__, nodes))
