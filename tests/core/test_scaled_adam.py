"""ScaledAdam: relative steps, learned sizes, clipping by the median, and what it leaves alone."""

import copy
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from whalesong.core.errors import ConfigError
from whalesong.core.optim import drop_zero_gradients
from whalesong.core.parallel import shard, whole_state_dict
from whalesong.core.scaled_adam import ScaledAdam


def parameters(*shapes: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(scale * torch.randn(s, generator=generator)) for s in shapes]


def set_gradients(params: list[nn.Parameter], *, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in params:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def train(params: list[nn.Parameter], optimizer: ScaledAdam, seeds: range, **kwargs: Any) -> None:
    for seed in seeds:
        set_gradients(params, seed=seed, **kwargs)
        optimizer.step()


def one_by_one(values: Tensor, gradients: list[Tensor], *, lr: float, period: int) -> Tensor:
    """The formulas of the paper, written down for one tensor in double precision."""
    x, velocity, square = values.double(), 0.0, 0.0
    size_square, slopes = 0.0, []
    for step, gradient in enumerate((g.double() for g in gradients), start=1):
        rms = x.square().mean().sqrt()
        slopes.append(float((gradient * x).sum()))
        square = 0.98 * square + 0.02 * gradient**2
        direction = gradient / ((square / (1 - 0.98**step)).sqrt() + 1e-8)
        move = -lr * rms * direction
        if step % period == 0:
            recent, decay = slopes[-period:], 0.98**period
            mean = sum(slope**2 for slope in recent) / period
            size_square = decay * size_square + (1 - decay) * mean
            corrected = size_square / (1 - decay ** (step // period))
            move = move - 0.1 * lr * sum(recent) / (corrected**0.5 + 1e-8) * x
        velocity = 0.9 * velocity + 0.1 * move
        x = x + velocity
    return x


@pytest.mark.parametrize("period", [1, 4])
def test_steps_follow_the_formulas(period: int) -> None:
    params = parameters((6, 5), (7,), (6, 5))
    expected, gradients = [p.detach().clone() for p in params], []
    optimizer = ScaledAdam(params, lr=0.05, size_update_period=period)
    for seed in range(11):
        set_gradients(params, seed=seed)
        gradients.append([p.grad.clone() for p in params])
        optimizer.step()
    for index, parameter in enumerate(params):
        of_it = [step[index] for step in gradients]
        slow = one_by_one(expected[index], of_it, lr=0.05, period=period)
        torch.testing.assert_close(parameter.detach().double(), slow, rtol=1e-5, atol=1e-6)


def test_without_a_gradient_nothing_moves_and_no_state_is_kept() -> None:
    used, unused = parameters((4, 3), (4, 3))
    optimizer = ScaledAdam([used, unused])
    before = unused.detach().clone()
    train([used], optimizer, range(5))
    assert torch.equal(unused, before) and unused not in optimizer.state
    train([used, unused], optimizer, range(3))
    before, unused.grad = unused.detach().clone(), None
    train([used], optimizer, range(5))
    assert torch.equal(unused, before)
    assert (optimizer.state[used]["step"], optimizer.state[unused]["step"]) == (13, 3)


def test_a_gradient_of_zero_moves_by_momentum_alone() -> None:
    params = [*parameters((4, 3), (1,)), *parameters((9,), scale=50.0)]
    optimizer = ScaledAdam(params)
    before = [p.detach().clone() for p in params]
    for _ in range(5):
        for parameter in params:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))
    train(params, optimizer, range(8))
    moves = []
    for _ in range(12):
        before = params[0].detach().clone()
        params[0].grad = torch.zeros_like(params[0])
        optimizer.step()
        moves.append(float((params[0].detach() - before).norm()))
    assert all(later < 0.95 * earlier for earlier, later in zip(moves, moves[1:], strict=False))


@pytest.mark.parametrize("clipping_scale", [None, 1.5])
def test_a_larger_parameter_of_the_same_loss_moves_alike(clipping_scale: float | None) -> None:
    small = parameters((8, 4), (5,), scale=0.01)
    large = parameters((8, 4), (5,), scale=0.64)
    options: dict[str, Any] = {"lr": 0.05, "clipping_scale": clipping_scale}
    train(small, ScaledAdam(small, **options), range(20), scale=64.0)
    train(large, ScaledAdam(large, **options), range(20))
    for one, other in zip(small, large, strict=True):
        torch.testing.assert_close(64 * one, other, rtol=1e-4, atol=1e-5)


def size(parameter: Tensor) -> float:
    return float(parameter.detach().square().mean().sqrt())


def test_each_step_changes_a_tensor_by_about_its_rate() -> None:
    (parameter,) = parameters((40, 40), scale=0.1)
    optimizer = ScaledAdam([parameter], lr=0.03)
    for _ in range(30):
        before = parameter.detach().clone()
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert size(parameter - before) / size(before) == pytest.approx(0.03, rel=0.1)


def test_too_large_a_tensor_shrinks() -> None:
    (bounded,), (free,) = parameters((400,), scale=4.0), parameters((400,), scale=4.0)
    before = size(free)
    train([bounded], ScaledAdam([bounded], lr=0.01), range(100))
    train([free], ScaledAdam([free], lr=0.01, param_max_rms=10.0), range(100))
    assert size(bounded) < 0.93 * before < size(free)


def test_a_tensor_of_zeros_starts_at_the_least_size() -> None:
    parameter = nn.Parameter(torch.zeros(64))
    optimizer = ScaledAdam([parameter], lr=0.05, betas=(0.0, 0.98), param_min_rms=1e-3)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert size(parameter) == pytest.approx(0.05 * 1e-3, rel=1e-3)


def test_single_numbers_stay_below_their_bound() -> None:
    number = nn.Parameter(torch.tensor(9.9))
    optimizer = ScaledAdam([number], lr=1.0)
    for _ in range(20):
        number.grad = torch.tensor(-1.0)
        optimizer.step()
    assert number.item() == 10.0


def test_gradients_far_above_the_median_are_clipped() -> None:
    (clipped,), (free,) = parameters((30, 30)), parameters((30, 30))
    clipping = ScaledAdam([clipped], clipping_scale=2.0, clipping_update_period=5)
    plain = ScaledAdam([free])
    norms: list[float] = []
    for seed, scale in enumerate((9.0, 1.2, 0.9, 1.1, 1.0, 1.0, 1000.0, 1.0)):
        set_gradients([clipped], seed=seed, scale=scale)
        norm = float(clipped.grad.norm()) * size(clipped)
        bound = 2.0 * median(norms[-5:]) if norms else norm
        free.grad = clipped.grad * min(1.0, bound / norm)
        norms.append(norm)
        clipping.step()
        plain.step()
        torch.testing.assert_close(clipped, free)
    assert clipping.param_groups[0]["gradient_norms"] == pytest.approx(tuple(norms[-5:]))


def test_a_norm_that_is_not_finite_is_no_measure() -> None:
    params = parameters((4, 4))
    optimizer = ScaledAdam(params, clipping_scale=2.0)
    for value in (float("nan"), float("inf"), 0.0):
        params[0].grad = torch.full((4, 4), value)
        optimizer.step()
    assert optimizer.param_groups[0]["gradient_norms"] == ()


def test_goes_on_from_its_state_bit_for_bit() -> None:
    shapes = ((8, 4), (5,), (1,), (8, 4))
    options: dict[str, Any] = {"clipping_scale": 1.1, "clipping_update_period": 3}
    whole, resumed = parameters(*shapes), parameters(*shapes)
    one = ScaledAdam(whole, **options)
    train(whole, one, range(6))
    saved = copy.deepcopy(one.state_dict())
    middle = [parameter.detach().clone() for parameter in whole]
    train(whole, one, range(6, 15))
    other = ScaledAdam(resumed, **options)
    other.load_state_dict(saved)
    for parameter, value in zip(resumed, middle, strict=True):
        parameter.data.copy_(value)
    train(resumed, other, range(6, 15))
    for left, right in zip(whole, resumed, strict=True):
        assert torch.equal(left, right)


def test_how_tensors_are_bundled_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = ((8, 4), (5,), (1,), (8, 4), (1, 1), (3,))
    together, apart = parameters(*shapes), parameters(*shapes)
    train(together, ScaledAdam(together, clipping_scale=1.0), range(9))
    monkeypatch.setattr("whalesong.core.scaled_adam._BUNDLE_NUMBERS", {"cpu": 1})
    train(apart, ScaledAdam(apart, clipping_scale=1.0), range(9))
    for left, right in zip(together, apart, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7)


def test_groups_have_rates_of_their_own() -> None:
    slow, fast = parameters((6, 6), (6, 6))
    groups = [{"params": [slow], "lr": 0.001, "weight_decay": 0.0}, {"params": [fast]}]
    before = [p.detach().clone() for p in (slow, fast)]
    optimizer = ScaledAdam(groups, lr=0.1, clipping_scale=2.0)
    train([slow, fast], optimizer, range(3))
    moved = [size(p - old) for p, old in zip((slow, fast), before, strict=True)]
    assert moved[1] > 50 * moved[0]
    late = parameters((2, 2))
    optimizer.add_param_group({"params": late})
    train(late, optimizer, range(2))
    assert [len(group["gradient_norms"]) for group in optimizer.param_groups] == [5, 5, 2]


def test_short_floats_are_trained_and_resumed() -> None:
    (parameter,) = parameters((16, 16))
    parameter.data = parameter.data.bfloat16()
    optimizer = ScaledAdam([parameter], clipping_scale=2.0)
    for step in range(9):
        parameter.grad = torch.ones_like(parameter)
        if step == 5:
            optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step()
    assert parameter.isfinite().all()
    assert {v.dtype for v in optimizer.state[parameter].values() if isinstance(v, Tensor)} == {
        torch.bfloat16
    }


def test_a_regression_falls_at_the_usual_rate() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(256, 8)
    targets = torch.sin(inputs @ torch.randn(8, 2))
    network = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = ScaledAdam(network.parameters(), lr=0.05, clipping_scale=2.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(inputs), targets)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(150)]
    assert losses[-1] < 0.25 * losses[0]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lr": 0.0}, "`lr` of ScaledAdam must be above 0, but is 0.0"),
        ({"betas": (0.9, 1.0)}, "`betas` of ScaledAdam must be from 0 to below 1, but has 1.0"),
        ({"clipping_scale": -2.0}, "`clipping_scale` of ScaledAdam must be above 0"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScaledAdam(parameters((2,)), **options)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3, bias=False), nn.Linear(3, 1))


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The whole parameters after steps, the last ones with gradients of zero."""
    optimizer = ScaledAdam(model.parameters(), clipping_scale=0.9, clipping_update_period=3)
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        loss = model(torch.randn(4, 6, generator=generator)).square().mean()
        (loss * (step < 4)).backward()
        drop_zero_gradients(model.parameters())
        assert all((p.grad is None) == (step > 3) for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    return {name: tensor.detach() for name, tensor in whole_state_dict(model).items()}


def train_sharded(rank: int, folder: str) -> None:
    """One of two ranks that each hold a half of every tensor."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    model = network()
    shard(model, init_device_mesh("cpu", (2,)), blocks=[model[0], model[1]])
    found = trained(model)
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_sharded_tensors_move_as_whole_ones(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_sharded, (str(tmp_path),), nprocs=2)
    expected, found = trained(network()), torch.load(tmp_path / "found.pt")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
