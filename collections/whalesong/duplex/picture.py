"""A picture of a conversation: both waveforms over one time axis, with the words on them."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from whalesong.core.atomic import atomic_path
from whalesong.data.turns import Turn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {"user": "tab:blue", "agent": "tab:orange"}
COLUMNS = 1600
"""Of a waveform: more are no longer seen."""
INCHES_PER_SECOND = 1.5
SIGNS_PER_SECOND = 18
"""Of a text, at that width."""
WIDTHS = (7.0, 60.0)
"""Least and greatest width in inches."""


def draw_conversation(
    user: Tensor,
    agent: Tensor,
    *,
    turns: Sequence[Turn],
    user_turns: Sequence[Turn] = (),
    sample_rates: tuple[int, int],
    path: str | Path,
    title: str = "",
) -> None:
    """Draw the user above the agent, each with its turns, into a PNG file.

    Args:
        user: waveform (N,).
        agent: waveform (M,).
        turns: of the agent.
        user_turns: of the user, where they are known.
        sample_rates: of user and agent in Hz.
        path: the file; its folder is made.
        title: written above, shortened to one line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    channels = {"user": (user, user_turns), "agent": (agent, turns)}
    lengths = [len(wave) / rate for wave, rate in zip((user, agent), sample_rates, strict=True)]
    seconds = max(*lengths, 0.1)
    width = min(max(INCHES_PER_SECOND * seconds, WIDTHS[0]), WIDTHS[1])
    figure = Figure(figsize=(width, 4), dpi=100, layout="tight")
    canvas = FigureCanvasAgg(figure)  # not `pyplot`, whose figures are global and stay in memory
    rows = figure.subplots(2, 1, sharex=True, squeeze=True)
    signs = SIGNS_PER_SECOND * width / (INCHES_PER_SECOND * seconds)
    for axes, (name, (wave, spoken)), rate in zip(
        rows, channels.items(), sample_rates, strict=True
    ):
        _draw_wave(axes, wave, rate, color=COLORS[name])
        _draw_turns(axes, spoken, seconds=seconds, signs_per_second=signs, color=COLORS[name])
        axes.set(ylabel=name, ylim=(-1.1, 2), yticks=[], xlim=(0, seconds))
    rows[1].set_xlabel("s")
    rows[0].set_title(textwrap.shorten(title, 90, placeholder="..."), parse_math=False)
    with atomic_path(path) as unfinished:
        canvas.print_png(unfinished)


def envelope(wave: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Least and greatest sample of each of at most `columns` equal pieces of a waveform (N,)."""
    size = max(-(-len(wave) // columns), 1)
    missing = -len(wave) % size
    pieces = torch.cat([wave, wave[-1:].expand(missing)]).view(-1, size)
    return pieces.amin(dim=1), pieces.amax(dim=1)


def _draw_wave(axes: "Axes", wave: Tensor, sample_rate: int, *, color: str) -> None:
    if not len(wave):
        return
    low, high = envelope(wave.detach().float().cpu().nan_to_num(), COLUMNS)
    loudest = max(float(high.max()), -float(low.min()), 1e-3)
    times = torch.linspace(0, len(wave) / sample_rate, len(low))
    axes.fill_between(
        times.numpy(), (low / loudest).numpy(), (high / loudest).numpy(), color=color, linewidth=0.3
    )


def _draw_turns(
    axes: "Axes", turns: Sequence[Turn], *, seconds: float, signs_per_second: float, color: str
) -> None:
    """Shade each turn, and write its text from its begin on up to the next one."""
    limits = [*(turn.begin for turn in turns[1:]), seconds]
    for turn, limit in zip(turns, limits, strict=False):
        axes.axvspan(turn.begin, seconds if turn.end is None else turn.end, color=color, alpha=0.15)
        signs = int(signs_per_second * (limit - turn.begin))
        text = "\n".join(textwrap.wrap(turn.text, max(signs, 6)))
        axes.text(turn.begin, 1.9, text, va="top", fontsize=8, parse_math=False, clip_on=True)
