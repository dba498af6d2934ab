"""Which parameters decay, the schedule of the text-to-music recipe, ScaledAdam and Eden."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from whalesong.core.errors import ConfigError
from whalesong.core.optim import (
    build_optimizer,
    drop_zero_gradients,
    optimizer_sections,
    parameter_groups,
)

RECIPE = {
    "_target_": "torch.optim.AdamW",
    "lr": 0.01,
    "betas": [0.9, 0.99],
    "weight_decay": 0.1,
    "no_decay": ["norm", "bias", "embedding"],
}
COSINE = {"_target_": "nemo.core.optim.lr_scheduler.CosineAnnealing", "warmup_ratio": 0.1}


class ScaleNorm(nn.Module):
    """A norm that torch does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 1))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 8)
        self.inner = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.other_norm = ScaleNorm()
        self.scale = nn.Parameter(torch.ones(8))
        self.head = nn.Linear(8, 5, bias=False)
        self.tied = nn.Linear(8, 5, bias=False)
        self.tied.weight = self.table.weight
        self.frozen = nn.Linear(8, 8).requires_grad_(False)


def names(network: nn.Module, group: dict[str, Any]) -> list[str]:
    known = {parameter: name for name, parameter in network.named_parameters()}
    return [known[parameter] for parameter in group["params"]]


def test_norms_biases_and_embeddings_do_not_decay() -> None:
    network = Network()
    decayed, spared = parameter_groups(network, no_decay=["norm", "bias", "embedding"])
    assert names(network, decayed) == ["inner.weight", "head.weight"]
    assert names(network, spared) == [
        "scale",
        "table.weight",
        "inner.bias",
        "norm.weight",
        "norm.bias",
        "other_norm.weight",
    ]
    assert spared["weight_decay"] == 0.0 and "weight_decay" not in decayed


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("norm", ["norm.weight", "norm.bias", "other_norm.weight"]),
        ("bias", ["scale", "inner.bias"]),
        ("embedding", ["table.weight"]),
    ],
)
def test_each_kind_alone(kind: Any, expected: list[str]) -> None:
    network = Network()
    assert names(network, parameter_groups(network, no_decay=[kind])[1]) == expected


def test_without_exceptions_there_is_one_group() -> None:
    network = Network()
    (group,) = parameter_groups(network)
    assert names(network, group) == [n for n, p in network.named_parameters() if p.requires_grad]


def test_spared_parameters_without_a_gradient_stay_as_they_are() -> None:
    network = Network()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    built = build_optimizer(network, optimizer=RECIPE, lr_scheduler=None, max_steps=10)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    built["optimizer"].step()
    changed = {n for n, p in network.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"inner.weight", "head.weight"}
    assert built["optimizer"].param_groups[0]["betas"] == (0.9, 0.99)


def test_state_fits_a_new_model_of_the_same_config() -> None:
    network, twin = Network(), Network()
    twin.load_state_dict(network.state_dict())
    one = build_optimizer(network, optimizer=RECIPE, lr_scheduler=None, max_steps=10)["optimizer"]
    other = build_optimizer(twin, optimizer=RECIPE, lr_scheduler=None, max_steps=10)["optimizer"]
    train(network, one, steps=3)
    twin.load_state_dict(network.state_dict())
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    train(network, one, steps=2)
    train(twin, other, steps=2)
    for left, right in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(left, right)


def train(network: Network, optimizer: torch.optim.Optimizer, *, steps: int) -> None:
    ids = torch.arange(5)
    for _ in range(steps):
        hidden = network.norm(network.inner(network.table(ids))) * network.scale
        loss = nn.functional.cross_entropy(network.head(hidden) + network.tied(hidden), ids)
        optimizer.zero_grad()
        (loss + network.other_norm.weight.square().sum()).backward()
        optimizer.step()


def learning_rates(section: dict[str, Any], *, max_steps: int) -> list[list[float]]:
    """The rate of each group at each step."""
    built = build_optimizer(Network(), optimizer=RECIPE, lr_scheduler=section, max_steps=max_steps)
    rates = []
    for _ in range(max_steps):
        rates.append([group["lr"] for group in built["optimizer"].param_groups])
        built["optimizer"].step()
        built["lr_scheduler"]["scheduler"].step()
    return rates


def test_cosine_after_a_linear_warm_up_over_the_first_tenth() -> None:
    rates = learning_rates({**COSINE, "max_steps": None}, max_steps=100)
    assert all(left == right for left, right in rates)
    first = [rate for rate, _ in rates]
    assert first[:11] == pytest.approx([0.01 * (step + 1) / 11 for step in range(11)])
    expected = [0.005 * (1 + math.cos(math.pi * (step - 10) / 90)) for step in range(11, 100)]
    assert first[11:] == pytest.approx(expected)


@pytest.mark.parametrize(
    "section, max_steps, message",
    [
        ({**COSINE, "max_steps": None}, -1, "`model.lr_scheduler.max_steps` must be above 0"),
        ({**COSINE, "max_steps": -1}, -1, "`model.lr_scheduler.max_steps` must be above 0"),
        ({**COSINE, "warmup_steps": 3}, 10, "`warmup_steps` and `warmup_ratio`, but has both"),
    ],
)
def test_impossible_schedules_are_refused(
    section: dict[str, Any], max_steps: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_optimizer(Network(), optimizer=RECIPE, lr_scheduler=section, max_steps=max_steps)


def test_unknown_kinds_and_frozen_models_are_refused() -> None:
    wrong = {**RECIPE, "no_decay": ["norms"]}
    with pytest.raises(ConfigError, match=r"`model.optimizer.no_decay\[0\]`.*norm"):
        build_optimizer(Network(), optimizer=wrong, lr_scheduler=None, max_steps=1)
    frozen = Network().requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        build_optimizer(frozen, optimizer=RECIPE, lr_scheduler=None, max_steps=1)


SCALED_ADAM = {"_target_": "whalesong.core.scaled_adam.ScaledAdam", "lr": 0.05}
EDEN = {"_target_": "whalesong.core.eden.Eden", "lr_batches": 10, "warmup_batches": 4}


@pytest.mark.parametrize("no_decay", [[], ["norm", "bias", "embedding"]])
def test_scaled_adam_and_eden_by_class(no_decay: list[str]) -> None:
    network = Network()
    settings = {**SCALED_ADAM, "clipping_scale": 2.0, "no_decay": no_decay}
    built = build_optimizer(network, optimizer=settings, lr_scheduler=EDEN, max_steps=-1)
    before = network.head.weight.detach().clone()
    assert built["optimizer"].param_groups[0]["lr"] == 0.025
    train(network, built["optimizer"], steps=3)
    built["lr_scheduler"]["scheduler"].step()
    assert built["optimizer"].param_groups[0]["lr"] > 0.025
    assert not torch.equal(network.head.weight, before)


def test_ours_by_name_are_the_same_as_by_class() -> None:
    optim = {"name": "scaled_adam", "lr": 0.05, "clipping_scale": 2.0}
    sched = {"name": "Eden", "lr_batches": 10, "warmup_batches": 4}
    by_class = ({**SCALED_ADAM, "clipping_scale": 2.0}, EDEN)
    assert optimizer_sections({"optim": {**optim, "sched": sched}}) == by_class
    assert optimizer_sections({"optimizer": by_class[0], "lr_scheduler": EDEN}) == by_class
    assert optimizer_sections({"optim": optim}) == (by_class[0], None)
    with_nemos = {**optim, "sched": {"name": "NoamAnnealing", "d_model": 8, "warmup_steps": 2}}
    sections = optimizer_sections({"optim": with_nemos})
    assert sections is not None
    optimizer, schedule = sections
    built = build_optimizer(Network(), optimizer=optimizer, lr_scheduler=schedule, max_steps=7)
    assert built["lr_scheduler"]["scheduler"].max_steps == 7
    adam = {"name": "adamw", "lr": 0.1, "weight_decay": 0.1, "sched": sched}
    assert optimizer_sections({"optim": adam}) == (
        {"_target_": "torch.optim.AdamW", "lr": 0.1, "weight_decay": 0.1},
        EDEN,
    )


def test_what_is_nemos_is_left_to_nemo() -> None:
    nemos = {"name": "novograd", "lr": 0.1, "sched": {"name": "NoamAnnealing"}}
    assert optimizer_sections({"optim": nemos}) is None
    with pytest.raises(ConfigError, match="`model.optim.name` must be one of .* but is novograd"):
        optimizer_sections({"optim": {**nemos, "sched": {"name": "Eden"}}})
    with pytest.raises(ConfigError, match="`model.optimizer` is mandatory"):
        optimizer_sections({"lr_scheduler": EDEN})


@pytest.mark.parametrize("settings", [RECIPE, SCALED_ADAM])
def test_what_a_step_has_not_used_does_not_drift(settings: dict[str, Any]) -> None:
    used, unused = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    network = nn.ParameterList([used, unused])
    built = build_optimizer(network, optimizer=settings, lr_scheduler=None, max_steps=10)
    for step in range(6):
        used.grad = torch.tensor([0.0, 1.0, -1.0, 0.5])
        unused.grad = torch.full_like(unused, float(step < 3))
        drop_zero_gradients([used, unused])
        assert (unused.grad is None) == (step >= 3)
        before = used.detach().clone(), unused.detach().clone()
        built["optimizer"].step()
        assert not torch.equal(used, before[0])
        assert torch.equal(unused, before[1]) == (step >= 3)
    used.grad, unused.grad = None, torch.full_like(unused, torch.nan)
    drop_zero_gradients([used, unused])
    assert unused.grad is not None
