"""What the laws share: batches compared, copied, cut into rows and padded."""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from whalesong.core.parts import Batch

IGNORED = -100
TOLERANCE = 1e-4


def same(one: Any, other: Any) -> bool:
    """Whether two nested containers of tensors, numbers and texts are equal but for rounding."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and _close(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return _close(torch.tensor(one), torch.tensor(other))
    return type(one) is type(other) and bool(one == other)


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys whose values are not the same, or that only one of the two has."""
    keys = dict.fromkeys([*one, *other])
    missing = object()
    return [key for key in keys if not same(one.get(key, missing), other.get(key, missing))]


def takes(method: Callable[..., Any], name: str) -> bool:
    """Whether a method takes a keyword of that name, or any keyword."""
    parameters = inspect.signature(method).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def copied(batch: Batch) -> Batch:
    """A copy that shares no tensor."""
    return copy.deepcopy(batch)


def row(batch: Batch, index: int, num_rows: int) -> Batch | None:
    """One row of a batch; None when a value of it does not come row by row."""
    cut = {key: _row(value, index, num_rows) for key, value in batch.items()}
    return None if any(value is None for value in cut.values()) else cut


def wider(batch: Batch, *, pad_id: int, left: int = 0, right: int = 0) -> Batch | None:
    """The batch with more padding; None when it is not known how one of its values is padded.

    What has the shape of `attention_mask`, (B, T), gets more columns: padding in `*_ids`, -100 in
    `labels`, False in masks.
    """
    shape = batch["attention_mask"].shape
    widened = {}
    for key, value in batch.items():
        if not isinstance(value, Tensor) or value.dim() < 2:
            widened[key] = value
        elif value.shape == shape and (fill := _fill(key, value, pad_id)) is not None:
            widened[key] = torch.nn.functional.pad(value, (left, right), value=fill)
        elif left:  # it may hold positions, which would be other ones
            return None
        else:
            widened[key] = value
    return widened


def _fill(key: str, value: Tensor, pad_id: int) -> int | bool | None:
    if value.dtype == torch.bool:
        return False
    if key.endswith("_ids"):
        return pad_id
    return IGNORED if key == "labels" else None


def _row(value: Any, index: int, num_rows: int) -> Any:
    if isinstance(value, Mapping):
        return row(dict(value), index, num_rows)
    if isinstance(value, Tensor):
        by_row = value.dim() > 0 and len(value) == num_rows
        return value[index : index + 1] if by_row else None
    if isinstance(value, list | tuple):
        return value[index : index + 1] if len(value) == num_rows else None
    return None


def _close(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point() and not one.is_complex():
        return torch.equal(one, other)
    return torch.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
