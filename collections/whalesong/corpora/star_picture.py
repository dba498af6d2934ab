"""A drawing of a star graph: lines as rays from their junction, the path in colour."""

import math
from typing import Any

from whalesong.corpora.star_graphs import StarGraph

PATH, OTHER = "#d1495b", "#8d99ae"
"""Colours of the path and of everything else."""


def draw_star(graph: StarGraph, axes: Any) -> None:
    """Draw a graph.

    Args:
        axes: of matplotlib; their frame is taken away.
    """
    places = node_places(graph)
    path = set(zip(graph.path, graph.path[1:], strict=False))
    for edge in graph.edges:
        begin, end = (places[node] for node in edge)
        colour = PATH if edge in path else OTHER
        arrow = {"arrowstyle": "-|>", "color": colour, "shrinkA": 9, "shrinkB": 9}
        axes.annotate("", xy=end, xytext=begin, arrowprops=arrow)
    for node, place in places.items():
        ends = {graph.path[0]: "s", graph.path[-1]: "g"}
        box = {
            "boxstyle": "circle,pad=0.25",
            "facecolor": "white" if node not in ends else "#ffe5a0",
            "edgecolor": PATH if node in graph.path else OTHER,
        }
        text = f"{node}{ends.get(node, '')}"
        axes.text(*place, text, ha="center", va="center", fontsize=8, bbox=box)
    reach = max(max(map(abs, place)) for place in places.values()) + 0.6
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.axis("off")


def node_places(graph: StarGraph) -> dict[int, tuple[float, float]]:
    """Where each node stands: the junction at (0, 0), what leads to and from it on rays around."""
    places = {graph.junction: (0.0, 0.0)}
    rays = []
    for line in graph.lines:
        place = line.index(graph.junction)
        rays += [line[place + 1 :], line[:place][::-1]]
    rays = [ray for ray in rays if ray]
    for number, ray in enumerate(rays):
        angle = math.tau * number / len(rays) + math.pi / 2
        for distance, node in enumerate(ray, start=1 + len(rays) // 6):
            places[node] = (distance * math.cos(angle), distance * math.sin(angle))
    return places
