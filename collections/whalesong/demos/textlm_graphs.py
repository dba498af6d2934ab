"""Star graphs as a text model meets them: what was asked, and what its answer amounts to."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Edge = tuple[str, str]
"""From a node to the next one, away from where the path begins."""


@dataclass(frozen=True)
class StarTask:
    """The question of a prompt: which edges lead from the source to the goal?

    Attributes:
        edges: of the whole graph, in the shuffled order of the prompt.
    """

    edges: tuple[Edge, ...]
    source: str
    goal: str

    @classmethod
    def parse(cls, prompt: str) -> "StarTask":
        """Read a prompt `u v u v ... source goal`."""
        *edges, (source, goal) = edges_of(prompt)
        return cls(tuple(edges), source, goal)

    def is_arm(self, edges: Sequence[Edge]) -> bool:
        """Whether edges lead from the source along an arm: to its end, or at last to the goal.

        Who has begun a wrong arm still knows the goal, and the goal comes last.
        """
        if not edges or edges[0][0] != self.source or not set(edges[:-1]) <= set(self.edges):
            return False
        joined = all(left[1] == right[0] for left, right in pairwise(edges))
        first, last = edges[0], edges[-1]
        at_end = last in self.edges and all(begin != last[1] for begin, _ in self.edges)
        return joined and first in self.edges and (at_end or last[1] == self.goal)

    def arms(self) -> list[list[str]]:
        """The nodes of every arm of a symmetric star, without its centre."""
        following = dict(edge for edge in self.edges if edge[0] != self.source)
        arms = [[end] for begin, end in self.edges if begin == self.source]
        for arm in arms:
            while arm[-1] in following:
                arm.append(following[arm[-1]])
        return arms


def edges_of(text: str) -> list[Edge]:
    """Two and two nodes of a text; a single one at the end is nobody's edge."""
    nodes = text.split()
    return list(zip(nodes[::2], nodes[1::2], strict=False))


def outcome(row: Mapping[str, Any]) -> str:
    """What an answer amounts to: `right`, along an `other arm`, or `no arm` of the graph.

    Args:
        row: `prompt`, `text` and `truth` of a graph.
    """
    if row["text"].split() == row["truth"].split():
        return "right"
    nodes = row["text"].split()
    task = StarTask.parse(row["prompt"])
    is_arm = len(nodes) % 2 == 0 and task.is_arm(edges_of(row["text"]))
    return "other arm" if is_arm else "no arm"


def outcomes(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The share of each outcome, and of answers whose first hop is right (`first hop`)."""
    rows = list(rows)
    counts = Counter(map(outcome, rows))
    first_hops = sum(edges_of(row["text"])[:1] == edges_of(row["truth"])[:1] for row in rows)
    shares = {name: counts[name] / len(rows) for name in ("right", "other arm", "no arm")}
    return {**shares, "first hop": first_hops / len(rows)}
