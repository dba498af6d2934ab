"""Where a decoder stands in a `KVCache`, and what it needs to know there."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from whalesong.modules.generation.recall import Recall, ShortRecall
from whalesong.modules.kv_cache import KVCache, Pair
from whalesong.modules.rope import rotation_at
from whalesong.modules.transformer import Transformer


class Rotation(NamedTuple):
    """`x * cos + partners * sin`, where halves of the first features of a head are partners."""

    cos: Tensor
    sin: Tensor

    def apply_(self, heads: Tensor) -> None:
        """Rotate queries and keys (..., dh) in place; features behind the rotary ones stay."""
        width = self.cos.shape[-1]
        rotary = heads[..., :width]
        partners = rotary.roll(width // 2, -1)
        rotary.mul_(self.cos).addcmul_(partners, self.sin)


class Steps(ABC):
    """The decoding of one batch, position by position.

    Attributes:
        cache: with the keys and values so far.
        recalls: for each layer its attention to the memory, or None.
        modulations: for each layer scale, offset and gate of both branches (R, D), or None.
        mask: what the present position sees of the keys, (R or 1, 1, 1, S), or None for all.
        positions: absolute positions (R or 1, D) to be added, or None.
        rotation: of the present position, or None.
    """

    mask: Tensor | None = None
    positions: Tensor | None = None
    rotation: Rotation | None = None

    def __init__(
        self,
        transformer: Transformer,
        cache: KVCache,
        recalls: Sequence[Recall | ShortRecall | None],
    ) -> None:
        self.cache = cache
        self.recalls = recalls
        self.modulations = [_split(changes) for changes in cache.modulations]
        self._index = torch.arange(cache.max_len, device=cache.buffer.device)
        self._visible = None
        if cache.padding is not None and bool(cache.padding.any()):
            self._visible = (self._index >= cache.padding[:, None])[:, None, None]
        self._offset, num_positions = _count(cache)
        positions = torch.arange(num_positions, device=cache.buffer.device)
        self._position_table = self._rotation_tables = None
        if transformer.positions is not None:
            self._position_table = transformer.positions(positions).to(cache.buffer.dtype)
        if transformer.rotary_dim:
            self._rotation_tables = _rotation_tables(positions, transformer, cache.buffer.dtype)

    def advance(self) -> None:
        """Go to the next position; the first call goes to the first free one.

        Raises:
            ValueError: the cache is full.
        """
        self.cache.check_room(1)
        self._move()
        self.cache.length += 1
        if self._position_table is not None:
            self.positions = self._entry(self._position_table)
        if self._rotation_tables is not None:
            self.rotation = Rotation(*map(self._entry, self._rotation_tables))

    @abstractmethod
    def append(self, layer: int, pair: Tensor) -> Pair:
        """Write keys and values (R, 2, H, dh) of this position; give what it may see."""

    @abstractmethod
    def _move(self) -> None:
        """Set what depends on the position."""

    @abstractmethod
    def _entry(self, table: Tensor) -> Tensor:
        """Entries of a table over positions for that of each row, (R or 1, ...)."""


class SlicedSteps(Steps):
    """The position is a number: attention reads what is valid, and no more."""

    def append(self, layer: int, pair: Tensor) -> Pair:
        """Write keys and values (R, 2, H, dh); give those up to this position."""
        self._new[layer].copy_(pair)
        return self._seen[2 * layer], self._seen[2 * layer + 1]

    def _move(self) -> None:
        position, buffer = self.cache.length, self.cache.buffer
        # One call for the views of all layers.
        self._new = buffer[:, :, :, :, position].transpose(1, 2).unbind(0)
        self._seen = buffer[:, :, :, :, : position + 1].flatten(0, 1).unbind(0)
        if self._visible is not None:
            self.mask = self._visible[..., : position + 1]

    def _entry(self, table: Tensor) -> Tensor:
        position = self.cache.length - 1 - self._offset
        return table[position : position + 1] if isinstance(position, int) else table[position]


class StaticSteps(Steps):
    """The position is a tensor: every step is the same operations on the same memory."""

    def __init__(
        self,
        transformer: Transformer,
        cache: KVCache,
        recalls: Sequence[Recall | ShortRecall | None],
    ) -> None:
        super().__init__(transformer, cache, recalls)
        self.position = self._index.new_full((1,), cache.length - 1)

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """A step inside goes back to where it came from: the next one overwrites it."""
        position, length = self.position.clone(), self.cache.length
        yield
        self.position.copy_(position)
        self.cache.length = length

    def append(self, layer: int, pair: Tensor) -> Pair:
        """Write keys and values (R, 2, H, dh); give the whole buffer."""
        buffer = self.cache.buffer[layer]
        buffer.index_copy_(3, self.position, pair.transpose(0, 1).unsqueeze(3))
        return buffer.unbind(0)

    def _move(self) -> None:
        self.position += 1
        self.mask = (self._index <= self.position)[None, None, None]
        if self._visible is not None:
            self.mask = self.mask & self._visible

    def _entry(self, table: Tensor) -> Tensor:
        return table[self.position - self._offset]


def _count(cache: KVCache) -> tuple[int | Tensor, int]:
    """What slots are ahead of positions by, a number where rows agree; and how many positions
    there are."""
    if cache.offsets is None:
        return 0, cache.max_len
    least, most = int(cache.offsets.min()), int(cache.offsets.max())
    return least if least == most else cache.offsets, cache.max_len - least


def _split(changes: Tensor | None) -> tuple[Tensor, ...] | None:
    """From (R, 1, 6 D) to six tensors (R, D); scales and gates are factors."""
    if changes is None:
        return None
    scale, offset, gate, ff_scale, ff_offset, ff_gate = changes[:, 0].chunk(6, dim=-1)
    return 1 + scale, offset, 1 + gate, 1 + ff_scale, ff_offset, 1 + ff_gate


def _rotation_tables(index: Tensor, transformer: Transformer, dtype: torch.dtype) -> Rotation:
    """Tables (n, 1, 1, rotary width) for n positions."""
    cos, sin = rotation_at(index, transformer.rotary_dim, base=transformer.rotary_base)
    first, second = sin[0].chunk(2, dim=-1)
    sin = torch.cat((-first, second), dim=-1)
    return Rotation(cos[0][:, None, None].to(dtype), sin[:, None, None].to(dtype))
