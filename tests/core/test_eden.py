"""Eden: the formula, its warm-up, epochs, and going on from a state."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from whalesong.core.eden import Eden
from whalesong.core.errors import ConfigError

BASE = 0.05


def schedule(**options: Any) -> Eden:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=BASE)
    return Eden(optimizer, **options)


def steps(eden: Eden, count: int) -> list[float]:
    """The rates of so many steps."""
    rates = []
    for _ in range(count):
        rates.append(eden.optimizer.param_groups[0]["lr"])
        eden.optimizer.step()
        eden.step()
    return rates


def expected(step: int, epoch: float, *, batches: float = 5000, epochs: float = 4) -> float:
    decay = ((step**2 + batches**2) / batches**2) ** -0.25
    return BASE * decay * ((epoch**2 + epochs**2) / epochs**2) ** -0.25


def test_rises_from_half_and_falls_with_the_steps() -> None:
    rates = steps(schedule(lr_batches=50, warmup_batches=20), 400)
    assert rates[0] == BASE / 2
    assert rates[10] == pytest.approx(0.75 * expected(10, 0, batches=50))
    for step in (20, 50, 399):
        assert rates[step] == pytest.approx(expected(step, 0, batches=50))
    assert rates[200] / rates[399] == pytest.approx(2**0.5, rel=0.03)


def test_an_epoch_counts_at_once_and_null_is_none() -> None:
    eden = schedule(warmup_batches=0)
    steps(eden, 3)
    eden.step_epoch(2)
    assert eden.get_last_lr() == [eden.optimizer.param_groups[0]["lr"]]
    assert steps(eden, 2) == pytest.approx([expected(3, 2), expected(4, 2)])
    without = schedule(warmup_batches=0, lr_epochs=None)
    without.step_epoch(9)
    assert steps(without, 1) == [BASE]


def test_goes_on_from_its_state() -> None:
    whole = schedule(lr_batches=10, warmup_batches=8)
    steps(whole, 5)
    whole.step_epoch(1)
    saved = copy.deepcopy((whole.state_dict(), whole.optimizer.state_dict()))
    resumed = schedule(lr_batches=10, warmup_batches=8)
    resumed.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    assert steps(resumed, 9) == steps(whole, 9)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lr_batches": 0}, "`lr_batches` of Eden must be above 0, but is 0"),
        ({"lr_epochs": -1}, "`lr_epochs` of Eden must be above 0, but is -1"),
        ({"warmup_start": 2}, r"`warmup_start` of Eden must be in \[0, 1\], but is 2"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        schedule(**options)
