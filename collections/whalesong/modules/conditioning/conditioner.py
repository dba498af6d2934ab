"""`Conditioner`: from raw values of a batch to embeddings with a mask."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from whalesong.modules.codec.codec import Codec


class Condition(NamedTuple):
    """What one conditioner gives for a batch."""

    embeds: Tensor
    """(B, S, C), zeros where `mask` is False."""
    mask: Tensor
    """(B, S) bool, True = keep; a row that is False everywhere is the null condition."""

    @classmethod
    def masked(cls, embeds: Tensor, mask: Tensor) -> Self:
        """From embeddings that may hold anything where `mask` is False."""
        return cls(embeds.masked_fill(~mask.unsqueeze(-1), 0), mask)

    @classmethod
    def of_rows(cls, rows: Sequence[Tensor]) -> Self:
        """From one (S_b, C) for each row, padded to the longest one."""
        return cls(*pad_rows(rows))

    def null(self) -> "Condition":
        """The same shape without anything in it: what guidance compares with."""
        return Condition(
            self.embeds.new_zeros(self.embeds.shape), self.mask.new_zeros(self.mask.shape)
        )

    def drop(self, dropped: Tensor) -> "Condition":
        """Replace the rows where `dropped` (B,) is True by the null condition."""
        keep = ~dropped[:, None]
        return Condition(self.embeds.masked_fill(~keep.unsqueeze(-1), 0), self.mask & keep)

    def spread(self, rows: Sequence[int], batch_size: int) -> "Condition":
        """Put row i at `rows[i]` of a larger batch that is null elsewhere."""
        if len(rows) == batch_size:
            return self
        index = torch.tensor(rows, device=self.embeds.device)
        embeds = self.embeds.new_zeros(batch_size, *self.embeds.shape[1:])
        mask = self.mask.new_zeros(batch_size, self.mask.shape[1])
        return Condition(
            embeds.index_copy(0, index, self.embeds), mask.index_copy(0, index, self.mask)
        )

    def tied_to(self, weights: Iterable[nn.Parameter]) -> "Condition":
        """The same with a gradient of zero for weights that may have taken no part in it.

        Distributed training waits for a gradient of every trainable weight on every rank.
        """
        trainable = [weight for weight in weights if weight.requires_grad]
        if not trainable or not torch.is_grad_enabled():
            return self
        nothing = sum(weight.flatten()[:1].sum() for weight in trainable) * 0
        return Condition(self.embeds + nothing, self.mask)


class Conditioner(nn.Module, ABC):
    """Turns the values of one condition, one for each row of a batch, into embeddings.

    Attributes:
        output_dim: C, width of the embeddings.
        assets: content of the files from which `build_conditioner` makes it again without its
            weights, by file name.
    """

    def __init__(self, output_dim: int, *, assets: Mapping[str, bytes] | None = None) -> None:
        super().__init__()
        self.output_dim = output_dim
        self.assets = dict(assets or {})
        # Follows the module to a device and a precision, also where all weights are frozen.
        self.register_buffer("place", torch.empty(0), persistent=False)

    @classmethod
    def from_fields(
        cls,
        fields: Any,
        output_dim: int,
        *,
        assets: Mapping[str, bytes] | None = None,
        codec: Codec | None = None,
    ) -> Self:
        """Build it as `build_conditioner` says, from the checked fields of its type."""
        return cls(output_dim, **fields.settings())

    @property
    def device(self) -> torch.device:
        """Where the embeddings are made."""
        return self.place.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the trainable weights."""
        return self.place.dtype

    def forward(self, values: Sequence[Any]) -> Condition:
        """Embed B values on the device of the module; None is the null condition.

        Every row gives what it gives alone, padding aside.

        Raises:
            ValueError: a value that the conditioner does not take.
        """
        rows = [row for row, value in enumerate(values) if value is not None]
        if not rows:
            return self.null(len(values))
        return self.embed([values[row] for row in rows]).spread(rows, len(values))

    def null(self, batch_size: int) -> Condition:
        """The null condition in every row, one masked position long."""
        return Condition(
            torch.zeros(batch_size, 1, self.output_dim, device=self.device, dtype=self.dtype),
            torch.zeros(batch_size, 1, device=self.device, dtype=torch.bool),
        )

    @abstractmethod
    def embed(self, values: Sequence[Any]) -> Condition:
        """Embed at least one value; None is not among them."""


def pad_rows(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad tensors (S_b, ...) with zeros: (B, S, ...) and their mask (B, S), S at least 1."""
    lens = torch.tensor([len(row) for row in rows], device=rows[0].device)
    padded = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    if not padded.shape[1]:
        padded = padded.new_zeros(len(rows), 1, *padded.shape[2:])
    return padded, torch.arange(padded.shape[1], device=lens.device) < lens[:, None]


def single(embeds: Tensor) -> Condition:
    """One position for each row of (B, C)."""
    return Condition(
        embeds.unsqueeze(1), torch.ones(len(embeds), 1, device=embeds.device, dtype=torch.bool)
    )


def output_projection(width: int, output_dim: int, *, project_out: bool = False) -> nn.Module:
    """A linear layer with bias, or nothing where the widths agree and `project_out` is False."""
    if width == output_dim and not project_out:
        return nn.Identity()
    return nn.Linear(width, output_dim)


def require_texts(kind: str, values: Sequence[Any]) -> None:
    """Refuse values that are no strings.

    Raises:
        ValueError: naming the type of conditioner and the value.
    """
    for value in values:
        if not isinstance(value, str):
            raise ValueError(f"a `{kind}` condition must be a string, but is {value!r}.")


def side_by_side(conditions: Mapping[str, Condition], ids: Sequence[str]) -> Tensor | None:
    """A global condition: the mean of each over what its mask keeps, next to each other.

    Returns:
        (B, sum of C), or None without ids.
    """
    if not ids:
        return None
    return torch.cat([_mean(conditions[name]) for name in ids], dim=1)


def _mean(condition: Condition) -> Tensor:
    count = condition.mask.sum(dim=1, keepdim=True).clamp_min(1)
    return (condition.embeds * condition.mask.unsqueeze(-1)).sum(dim=1) / count
