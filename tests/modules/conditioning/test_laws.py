"""Laws that every conditioner obeys."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from whalesong.modules.conditioning.conditioner import Condition
from whalesong.modules.conditioning.pretrained import Frozen

TOLERANCE = {"atol": 2e-6, "rtol": 2e-5}


def frozen_weights(module: nn.Module) -> list[nn.Parameter]:
    return [w for part in module.modules() if isinstance(part, Frozen) for w in part.parameters()]


def assert_close(condition: Condition, expected: Condition) -> None:
    """Equal up to padding behind the end."""
    length = min(condition.mask.shape[1], expected.mask.shape[1])
    for one in (condition, expected):
        assert not one.mask[:, length:].any()
    assert torch.equal(condition.mask[:, :length], expected.mask[:, :length])
    torch.testing.assert_close(
        condition.embeds[:, :length], expected.embeds[:, :length], **TOLERANCE
    )


@torch.no_grad()
def test_a_row_alone_is_the_row_in_a_batch(example: Any) -> None:
    conditioner = example.build().eval()
    values = [None, *example.values, None]
    batch = conditioner(values)
    assert batch.embeds.shape == (len(values), batch.mask.shape[1], example.output_dim)
    assert batch.mask.any(dim=1).tolist() == [False, *[True] * len(example.values), False]
    assert not batch.embeds[~batch.mask].any()
    for row, value in enumerate(values):
        alone = conditioner([value])
        assert_close(Condition(batch.embeds[row : row + 1], batch.mask[row : row + 1]), alone)


def test_without_values_all_is_masked(example: Any) -> None:
    conditioner = example.build()
    for condition in (conditioner([None, None]), conditioner.null(2)):
        assert condition.embeds.shape == (2, 1, example.output_dim)
        assert not condition.embeds.any() and not condition.mask.any()


def test_gradients_reach_what_is_trainable_and_nothing_else(example: Any) -> None:
    conditioner = example.build().train()
    conditioner(example.values).embeds.square().sum().backward()
    frozen = {id(weight) for weight in frozen_weights(conditioner)}
    for name, weight in conditioner.named_parameters():
        if id(weight) in frozen or name.startswith("codec."):
            assert not weight.requires_grad and weight.grad is None
        else:
            assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_training_changes_nothing_about_frozen_parts(example: Any) -> None:
    conditioner = example.build()
    with torch.no_grad():
        expected = conditioner.eval()(example.values)
        assert_close(conditioner.train()(example.values), expected)


def test_state_dict_and_assets_make_it_again(example: Any, tmp_path: Path) -> None:
    conditioner = example.build()
    moved = {
        key: str(tmp_path / "gone") for key in example.fields if "path" in key or "name" in key
    }
    if "pretransform_config" in example.fields:
        gone = {"type": "mel_rvq", "config": {"model_path": str(tmp_path / "gone")}}
        moved = {"pretransform_config": gone}
    torch.manual_seed(7)
    again = example.build(fields=moved, assets=conditioner.assets)
    again.load_state_dict(conditioner.state_dict())
    with torch.no_grad():
        for one, other in zip(again(example.values), conditioner(example.values), strict=True):
            assert torch.equal(one, other)
    assert again.assets == conditioner.assets


def test_moves_to_another_device(example: Any) -> None:
    conditioner = example.build().to("meta")
    assert conditioner.null(2).embeds.device.type == "meta"
    tensors = [*conditioner.parameters(), *conditioner.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@torch.no_grad()
def test_frozen_parts_stay_in_fp32(example: Any) -> None:
    conditioner = example.build()
    expected = [weight.clone() for weight in frozen_weights(conditioner)]
    conditioner = copy.deepcopy(conditioner).bfloat16()
    assert conditioner(example.values).embeds.dtype == torch.bfloat16
    for weight, before in zip(frozen_weights(conditioner), expected, strict=True):
        assert torch.equal(weight, before)
