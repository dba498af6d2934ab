"""`WindowCache`: what a transformer with a sliding window keeps, however long it goes on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from whalesong.modules.kv_cache import KVCache, Pair


@dataclass
class WindowCache(KVCache):
    """Keys and values of the last W positions in a ring: position i stands in slot i modulo W.

    The buffer never grows, and a step costs the same however many went before.
    """

    @property
    def window(self) -> int:
        """W, positions that are kept."""
        return self.max_len

    def check_room(self, num_positions: int) -> None:
        """There always is."""

    def key_indices(self, num_positions: int) -> Tensor:
        """The index of each position whose keys `append` gives, (S,)."""
        device = self.buffer.device
        if num_positions == 1:
            return self._held(self.length + 1, device)
        new = torch.arange(self.length, self.length + num_positions, device=device)
        return torch.cat((self._held(self.length, device), new))

    def attention_mask(self, num_positions: int) -> Tensor | None:
        """What the next T positions may see of those keys, (T, S) or (B, 1, T, S), or None."""
        seen = super().attention_mask(num_positions)
        if seen is None or num_positions == 1:
            return seen
        keys = self.key_indices(num_positions)
        return seen & (keys > keys[-num_positions:, None] - self.window)

    def append(self, index: int, keys: Tensor, values: Tensor) -> Pair:
        """Write keys and values (B, H, T, dh) of a layer; give all that one of them may see."""
        new, ring = torch.stack((keys, values)), self.buffer[index]
        before = ring[:, :, :, : min(self.length, self.window)]
        end = self.length + new.shape[3]
        if new.shape[3] == 1:
            ring[:, :, :, self.length % self.window] = new[:, :, :, 0]
            return ring[:, :, :, : min(end, self.window)].unbind(0)
        given = torch.cat((before, new), dim=3)
        kept = min(new.shape[3], self.window)
        slots = torch.arange(end - kept, end, device=ring.device) % self.window
        ring[:, :, :, slots] = new[:, :, :, -kept:]
        return given.unbind(0)

    def _held(self, length: int, device: torch.device) -> Tensor:
        """The index of the position in each slot that is taken, once there are `length`."""
        slots = torch.arange(min(length, self.window), device=device)
        return length - 1 - (length - 1 - slots) % self.window
