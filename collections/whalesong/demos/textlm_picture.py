"""The text demo's picture: exact match over steps, the graph, and how each model fills it in."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whalesong.core.atomic import atomic_path
from whalesong.demos.report import Curve
from whalesong.demos.textlm_graphs import Edge, StarTask, edges_of

NEW, OLD, OPEN = "#fb8f44", "#ddf4ff", "#ffffff"
"""Colors of a token that a step has added, of one that was there, of one that is open."""

CELL = 0.86
"""Width and height of a token; the distance of two is 1."""

BLANK = "_"
"""What stands for an open token."""


def draw_picture(
    values: Mapping[str, Mapping[str, Any]], curves: Mapping[str, Curve], path: Path
) -> None:
    """Draw curves and graph above, a panel of steps for each model below.

    Args:
        values: of each model, with its `sample`; all samples are of the same graph.
        curves: exact match in % over steps.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(values)
    rows = [["curves"] * (len(names) - 1) + ["graph"], names]
    figure, panels = pyplot.subplot_mosaic(rows, figsize=(13, 8.5), height_ratios=[1, 1.2])
    sample = next(iter(values.values()))["sample"]
    task = StarTask.parse(sample["prompt"])
    _draw_curves(panels["curves"], curves, degree=len(task.arms()))
    _draw_graph(panels["graph"], task, edges_of(sample["truth"]))
    for name in names:
        _draw_steps(panels[name], values[name]["sample"]["states"])
        panels[name].set_title(f"{name}, step by step")
    figure.tight_layout()
    with atomic_path(path) as whole:
        figure.savefig(whole, dpi=110, format="png")
    pyplot.close(figure)


def node_places(task: StarTask) -> dict[str, tuple[float, float]]:
    """Where the nodes of a symmetric star are drawn: its centre in the middle, arms around it."""
    arms = task.arms()
    places = {task.source: (0.0, 0.0)}
    for number, arm in enumerate(arms):
        angle = math.pi / 2 + 2 * math.pi * number / len(arms)
        for distance, node in enumerate(arm, start=1):
            places[node] = (distance * math.cos(angle), distance * math.sin(angle))
    return places


def _draw_curves(axes: Any, curves: Mapping[str, Curve], *, degree: int) -> None:
    for name, (steps, shares) in curves.items():
        axes.plot(steps, shares, label=name, marker="o", markersize=3)
    axes.axhline(
        100 / degree, color="gray", linestyle="--", label=f"1/{degree}: a guess of the arm"
    )
    axes.set(xlabel="step", ylabel="exact match on validation graphs (%)", ylim=(0, 102))
    axes.legend()


def _draw_graph(axes: Any, task: StarTask, path: Sequence[Edge]) -> None:
    places = node_places(task)
    for begin, end in task.edges:
        xs, ys = zip(places[begin], places[end], strict=True)
        is_path = (begin, end) in path
        axes.plot(xs, ys, color=NEW if is_path else "#afb8c1", linewidth=4 if is_path else 2)
    for node, (x, y) in places.items():
        role = {task.source: "#aceebb", task.goal: "#ffcecb"}.get(node, OPEN)
        box = {"boxstyle": "circle", "facecolor": role, "edgecolor": "#57606a"}
        axes.text(x, y, node, ha="center", va="center", bbox=box)
    axes.set(title=f"from {task.source} (green) to {task.goal} (red)", aspect="equal")
    axes.margins(0.15)
    axes.axis("off")


def _draw_steps(axes: Any, states: Sequence[Sequence[str]]) -> None:
    """One row of cells a step, the first one on top."""
    from matplotlib.patches import Rectangle

    width = max(map(len, states))
    for row, state in enumerate(states):
        for column, (token, color) in enumerate(zip(state, _colors(states, row), strict=True)):
            corner = (column - CELL / 2, row - CELL / 2)
            cell = Rectangle(corner, CELL, CELL, facecolor=color, edgecolor="#afb8c1")
            axes.add_patch(cell)
            axes.text(column, row, token, ha="center", va="center_baseline", fontsize=9)
    axes.set(xlim=(-0.7, max(width, 6) - 0.3), ylim=(max(len(states), 6) - 0.3, -0.7))
    axes.set(aspect="equal", anchor="N")
    axes.axis("off")


def _colors(states: Sequence[Sequence[str]], row: int) -> list[str]:
    """The color of each token of a step: what was not there the step before is new."""
    state = states[row]
    if row == 0:
        return [OPEN if token == BLANK else NEW for token in state]
    fresh = new_tokens(states[row - 1], state)
    return [
        OPEN if token == BLANK else NEW if column in fresh else OLD
        for column, token in enumerate(state)
    ]


def new_tokens(before: Sequence[str], after: Sequence[str]) -> set[int]:
    """Columns of tokens that a step has added: by insertion, at the end, or in the place of `_`."""
    if len(before) == len(after):
        return {column for column, token in enumerate(after) if before[column] != token}
    fresh, known = set(), list(before)
    for column, token in enumerate(after):
        if known and known[0] == token:
            known.pop(0)
        else:
            fresh.add(column)
    return fresh
