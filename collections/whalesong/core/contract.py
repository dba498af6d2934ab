"""The contract of the parts, checked where they are called: who broke it, and where."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from whalesong.core.errors import UserError
from whalesong.core.parts import Batch, LossFunction, Predictor


class ContractError(UserError):
    """A part of a model breaks its contract; the message names class, method and file."""


def checked_loss(loss: LossFunction, batch: Batch) -> dict[str, Any]:
    """What `loss.loss_fn` returns for a batch.

    Raises:
        ContractError: it is no dictionary with a scalar tensor "loss".
    """
    outputs = method(loss, "loss_fn")(batch)
    if not isinstance(outputs, Mapping):
        raise broken(loss, "loss_fn", f"must return a dictionary, but returned {_kind(outputs)}")
    if "loss" not in outputs:
        known = ", ".join(map(str, outputs)) or "nothing"
        raise broken(loss, "loss_fn", f'must return a dictionary with "loss", but it has {known}')
    value = outputs["loss"]
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise broken(
            loss, "loss_fn", f'must give "loss" as a scalar tensor, but gave {_kind(value)}'
        )
    return dict(outputs)


def checked_predictions(predictor: Predictor, batch: Batch, **generation: Any) -> dict[str, Any]:
    """What `predictor.predict` returns for a batch.

    Raises:
        ContractError: it is no dictionary with "ids" or "text".
    """
    preds = method(predictor, "predict")(batch, **generation)
    if not isinstance(preds, Mapping):
        raise broken(predictor, "predict", f"must return a dictionary, but returned {_kind(preds)}")
    if not {"ids", "text"} & set(preds):
        known = ", ".join(map(str, preds)) or "nothing"
        rule = f'must return a dictionary with "ids" or "text", but it has {known}'
        raise broken(predictor, "predict", rule)
    return dict(preds)


def checked_rows(predictor: Predictor, batch: Batch, preds: dict[str, Any]) -> list[dict[str, Any]]:
    """What `predictor.to_dict` returns for predictions.

    Raises:
        ContractError: it is no list of dictionaries.
    """
    rows = method(predictor, "to_dict")(batch, preds)
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        rule = f"must return a list of dictionaries, but returned {_kind(rows)}"
        raise broken(predictor, "to_dict", rule)
    return rows


def method(part: Any, name: str) -> Any:
    """A method of a part.

    Raises:
        ContractError: the part has none of that name.
    """
    if not callable(found := getattr(part, name, None)):
        raise broken(part, name, "is missing")
    return found


def broken(part: Any, name: str, rule: str) -> ContractError:
    """The error of a part whose method breaks a rule."""
    kind = type(part)
    return ContractError(f"{kind.__name__}.{name} {rule} ({_file(kind)}).")


def _file(kind: type) -> str:
    try:
        return str(Path(inspect.getfile(kind)))
    except (OSError, TypeError):
        return kind.__module__


def _kind(value: Any) -> str:
    if value is None:
        return "None (is there a `return`?)"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{type(value).__name__}"
