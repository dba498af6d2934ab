"""`KVCache`: what a transformer has computed so far of one batch of sequences."""

from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


@dataclass
class KVCache:
    """Keys and values in buffers of a fixed size, and what depends only on the conditions.

    `Transformer.init_cache` makes one; each `forward` with it appends T positions to all its rows.
    """

    buffer: Tensor
    """(L, 2, B, H, max_len, dh): keys and values, valid up to `length`."""
    memory: list[Pair | None]
    """Keys and values (B, H, S, dh) of the memory for each layer that attends to it."""
    memory_mask: Tensor | None = None
    """(B, S), True = keep; None keeps all."""
    modulations: list[Tensor | None] | None = None
    """(B, 1, 6 D) for each layer, from the global condition."""
    padding: Tensor | None = None
    """(B,) padded positions at the left of each row; None: none has any."""
    offsets: Tensor | None = None
    """(B,) what the index of a slot is above its position in each row; None: they are the same."""
    length: int = 0
    """Positions that all rows hold."""

    @property
    def max_len(self) -> int:
        """Positions that fit."""
        return self.buffer.shape[4]

    @property
    def batch_size(self) -> int:
        """B, rows."""
        return self.buffer.shape[2]

    def layer(self, index: int) -> "LayerCache":
        """The view of one layer on it."""
        return LayerCache(self, index)

    def check_room(self, num_positions: int) -> None:
        """Refuse more positions than fit.

        Raises:
            ValueError: with both numbers.
        """
        if (needed := self.length + num_positions) > self.max_len:
            raise ValueError(f"`max_len` of the cache must be at least {needed}, but is "
                             f"{self.max_len}.")  # fmt: skip

    def pad(self, mask: Tensor) -> None:
        """Count the padding (False) in the mask (B, T) of the positions that come next."""
        padding = (~mask).sum(dim=1)
        self.padding = padding if self.padding is None else self.padding + padding
        self.offsets = padding if self.offsets is None else self.offsets + padding

    def count_from(self, positions: Tensor) -> None:
        """Let what comes behind the given positions, (T,) or (B, T), count on from the last one."""
        last = positions[..., -1].expand(self.batch_size)
        self.offsets = self.length + positions.shape[-1] - 1 - last

    def positions(self, num_positions: int) -> Tensor:
        """Positions of what comes next, (T,), or (B, T) where rows differ."""
        index = torch.arange(self.length, self.length + num_positions, device=self.buffer.device)
        if self.offsets is None:
            return index
        return (index - self.offsets[:, None]).clamp(min=0)

    def select(self, rows: Tensor) -> None:
        """Keep some rows (b,), in this order."""
        self.buffer = self.buffer.index_select(2, rows)
        self.memory = [pair and (pair[0][rows], pair[1][rows]) for pair in self.memory]
        self.memory_mask, self.padding, self.offsets = (
            tensor if tensor is None else tensor[rows]
            for tensor in (self.memory_mask, self.padding, self.offsets)
        )
        if self.modulations is not None:
            self.modulations = [m if m is None else m[rows] for m in self.modulations]

    def key_indices(self, num_positions: int) -> Tensor:
        """The index of each position whose keys `append` gives for the next T, (S,)."""
        return torch.arange(self.length + num_positions, device=self.buffer.device)

    def attention_mask(self, num_positions: int) -> Tensor | None:
        """What the next T positions may see of all positions, (T, S) or (B, 1, T, S).

        None where nothing is hidden. A padded position sees itself, so that it is finite.
        """
        if num_positions == 1 and self.padding is None:
            return None
        keys = self.key_indices(num_positions)
        at = torch.arange(self.length, self.length + num_positions, device=keys.device)[:, None]
        if self.padding is None:
            return keys <= at
        first = torch.minimum(self.padding[:, None, None, None], at)
        return (keys <= at) & (keys >= first)

    def append(self, index: int, keys: Tensor, values: Tensor) -> Pair:
        """Write keys and values (B, H, T, dh) of a layer behind what is there; give all of them.

        The length stays: it grows once, when all layers have written.
        """
        start, end = self.length, self.length + keys.shape[2]
        self.buffer[index, 0, :, :, start:end] = keys
        self.buffer[index, 1, :, :, start:end] = values
        return self.buffer[index, 0, :, :, :end], self.buffer[index, 1, :, :, :end]


@dataclass(frozen=True)
class LayerCache:
    """One layer of a `KVCache`."""

    cache: KVCache
    index: int

    @property
    def memory(self) -> Pair | None:
        """Keys and values (B, H, S, dh) of the memory."""
        return self.cache.memory[self.index]

    @property
    def modulation(self) -> Tensor | None:
        """(B, 1, 6 D) from the global condition."""
        return None if self.cache.modulations is None else self.cache.modulations[self.index]

    def append(self, keys: Tensor, values: Tensor) -> Pair:
        """Write keys and values (B, H, T, dh) behind what is there; give what may be seen."""
        return self.cache.append(self.index, keys, values)
