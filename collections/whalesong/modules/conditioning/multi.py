"""`MultiConditioner`: all conditions of a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from whalesong.modules.conditioning.conditioner import Condition, Conditioner


class MultiConditioner(nn.Module):
    """Embeds the conditions of a batch, each with its own conditioner.

    In training, rows lose single conditions (`dropouts`) or all at once (`dropout`), drawn for each
    row from torch's global CPU generator.

    Args:
        conditioners: by id.
        default_keys: id -> key of the metadata that is read where the id itself is missing.
        pre_encoded_keys: ids whose values are embeddings (S, C) already.
        dropouts: id -> probability that a row loses this condition.
        dropout: probability that a row loses all conditions.

    Raises:
        ValueError: an id that cannot be the name of a module.
    """

    def __init__(
        self,
        conditioners: Mapping[str, Conditioner],
        *,
        default_keys: Mapping[str, str] | None = None,
        pre_encoded_keys: Sequence[str] = (),
        dropouts: Mapping[str, float] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.conditioners = nn.ModuleDict()
        for name, conditioner in conditioners.items():
            if hasattr(self.conditioners, name):
                raise ValueError(f"the id of a conditioner must not be '{name}': torch needs it.")
            self.conditioners[name] = conditioner
        self.default_keys = dict(default_keys or {})
        self.pre_encoded_keys = set(pre_encoded_keys)
        self.dropouts = dict(dropouts or {})
        self.dropout = dropout

    @property
    def output_dims(self) -> dict[str, int]:
        """Width of each condition."""
        return {name: conditioner.output_dim for name, conditioner in self.conditioners.items()}

    @property
    def assets(self) -> dict[str, bytes]:
        """Those of all conditioners, as `<id>.<file name>`."""
        return {
            f"{name}.{file}": content
            for name, conditioner in self.conditioners.items()
            for file, content in conditioner.assets.items()
        }

    def forward(self, metadata: Sequence[Mapping[str, Any]]) -> dict[str, Condition]:
        """Embed what each row has.

        Args:
            metadata: for each row, the value of each condition by id; None is the null condition,
                and a list of one element counts as this element.

        Raises:
            ValueError: a row lacks a condition, or has a value that its conditioner does not take.
        """
        conditions = {
            name: self._embed(name, [self._value(name, row, n) for n, row in enumerate(metadata)])
            for name in self.conditioners
        }
        return self._drop(conditions, len(metadata)) if self.training else conditions

    def null(self, batch_size: int) -> dict[str, Condition]:
        """No condition in any row."""
        return {name: part.null(batch_size) for name, part in self.conditioners.items()}

    def _value(self, name: str, row: Mapping[str, Any], number: int) -> Any:
        key = name if name in row else self.default_keys.get(name, name)
        if key not in row:
            raise ValueError(
                f"Conditioner key {key} not found in batch metadata (row {number}, which has: "
                f"{', '.join(map(str, row)) or 'nothing'})."
            )
        value = row[key]
        return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value

    def _embed(self, name: str, values: list[Any]) -> Condition:
        conditioner = self.conditioners[name]
        try:
            if name in self.pre_encoded_keys:
                condition = _pre_encoded(values, conditioner)
            else:
                condition = conditioner(values)
        except ValueError as error:
            raise ValueError(f"condition '{name}': {error}") from error
        if self.training and not condition.embeds.requires_grad:
            return condition.tied_to(conditioner.parameters())
        return condition

    def _drop(self, conditions: dict[str, Condition], batch_size: int) -> dict[str, Condition]:
        everything = _draw(self.dropout, batch_size)
        dropped = {}
        for name, condition in conditions.items():
            rows = everything | _draw(self.dropouts.get(name, 0.0), batch_size)
            device = condition.mask.device
            dropped[name] = condition.drop(rows.to(device)) if rows.any() else condition
        return dropped


def _draw(probability: float, batch_size: int) -> Tensor:
    if not probability:
        return torch.zeros(batch_size, dtype=torch.bool)
    return torch.rand(batch_size) < probability


def _pre_encoded(values: list[Any], conditioner: Conditioner) -> Condition:
    """Embeddings that were made before: (S_b, C) for each row, or (C,) for one position."""
    kept = [row for row, value in enumerate(values) if value is not None]
    if not kept:
        return conditioner.null(len(values))
    rows = []
    for value in (values[row] for row in kept):
        shape = tuple(getattr(value, "shape", ()))
        if len(shape) not in (1, 2) or shape[-1] != conditioner.output_dim:
            raise ValueError(
                f"pre-encoded values must be (S, {conditioner.output_dim}) tensors, "
                f"but one is {shape or type(value).__name__}."
            )
        embeds = torch.as_tensor(value, device=conditioner.device, dtype=conditioner.dtype)
        rows.append(embeds.reshape(-1, conditioner.output_dim))
    return Condition.of_rows(rows).spread(kept, len(values))
