"""`StepDecoder`: one position at a time through a `Transformer`, as fast as it goes.

The transformer itself begins a sequence with a `KVCache`; the decoder goes on from there. It does
the same sums with packed weights and few operations, on (R, D) instead of (B, T, D).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from whalesong.modules.generation.packed_linear import PackedLinear, pack_linear
from whalesong.modules.generation.recall import Recall, ShortRecall
from whalesong.modules.generation.steps import SlicedSteps, StaticSteps, Steps
from whalesong.modules.kv_cache import KVCache
from whalesong.modules.transformer import Transformer
from whalesong.modules.transformer_block import Block, activate


class StepDecoder:
    """Packed weights of a transformer, for a fixed number of rows.

    Args:
        transformer: causal; it stays as it is, and later changes of its weights do not matter here.
        num_rows: R.
        packing: `weight_dtype` and `copy_large` of `pack_linear`.
    """

    @torch.no_grad()
    def __init__(self, transformer: Transformer, *, num_rows: int, **packing: Any) -> None:
        self.transformer = transformer
        pack = partial(pack_linear, num_rows=num_rows, **packing)
        self._layers = [_Layer(layer, pack) for layer in transformer.layers]

    @torch.no_grad()
    def begin(self, cache: KVCache, *, static: bool = False) -> Steps:
        """Go on from what the transformer has put into a cache of R rows.

        Args:
            cache: grows by one position with each step.
            static: keep the position in a tensor and attend to the whole buffer under a mask, so
                that a step can be captured as a CUDA graph; else attend to what is valid only.
        """
        kind = StaticSteps if static else SlicedSteps
        recalls = [layer.recall(cache, index) for index, layer in enumerate(self._layers)]
        return kind(self.transformer, cache, recalls)

    @torch.inference_mode()
    def step(self, x: Tensor, steps: Steps) -> Tensor:
        """Map the next position of each row (R, D) to (R, D), the last norm included.

        Raises:
            ValueError: the cache has no room.
        """
        steps.advance()
        if steps.positions is not None:
            x = x + steps.positions
        for index, layer in enumerate(self._layers):
            x = layer(x, steps, index)
        return self.transformer.norm(x)


class _Layer:
    """One block with packed weights."""

    def __init__(self, block: Block, pack: Callable[..., PackedLinear]) -> None:
        self.block = block
        self.num_heads = block.attention.num_heads
        self.norms_heads = not isinstance(block.attention.query_norm, nn.Identity)
        self.qkv = pack(block.attention.qkv_proj)
        self.out = pack(block.attention.out_proj, scale=block.attention_end.scale)
        self.up = pack(block.feed_forward.up_proj)
        self.down = pack(block.feed_forward.down_proj, scale=block.ff_end.scale)
        if block.memory_attention is not None:
            self.query = pack(block.memory_attention.query_proj)
            self.memory_out = pack(block.memory_attention.out_proj, scale=block.memory_end.scale)

    def recall(self, cache: KVCache, index: int) -> Recall | ShortRecall | None:
        """The attention to the memory in a cache, if there is one."""
        if (pair := cache.memory[index]) is None:
            return None
        block, mask = self.block, cache.memory_mask
        shared = {"norm": block.memory_norm, "pair": pair}
        keep = pair[0].new_ones(pair[0].shape[::2], dtype=torch.bool) if mask is None else mask
        if ShortRecall.fits(block.memory_attention, keep):
            scale = block.memory_end.scale
            return ShortRecall(block.memory_attention, scale=scale, mask=keep, **shared)
        return Recall(
            block.memory_attention, query=self.query, out=self.memory_out, mask=mask, **shared
        )

    def __call__(self, x: Tensor, steps: Steps, index: int) -> Tensor:
        """Map (R, D) to (R, D)."""
        block, modulation = self.block, steps.modulations[index]
        normed = block.attention_norm(x)
        if modulation is None:
            x = self.out.add_to(x, self._attend(normed, steps, index))
        else:
            scale, offset, gate = modulation[:3]
            attended = self._attend(torch.addcmul(offset, normed, scale), steps, index)
            x = torch.addcmul(x, self.out(attended), gate)
        if (recall := steps.recalls[index]) is not None:
            x = recall.add_to(x)
        normed = block.ff_norm(x)
        if modulation is None:
            return self.down.add_to(x, self._expand(normed))
        scale, offset, gate = modulation[3:]
        return torch.addcmul(x, self.down(self._expand(torch.addcmul(offset, normed, scale))), gate)

    def _attend(self, x: Tensor, steps: Steps, index: int) -> Tensor:
        """Self-attention without its last projection, (R, H * dh)."""
        attention = self.block.attention
        heads = self.qkv(x).view(len(x), 3, self.num_heads, -1)
        if self.norms_heads:
            queries, keys, values = heads.unbind(1)
            normed = attention.query_norm(queries), attention.key_norm(keys)
            heads = torch.stack((*normed, values), dim=1)
        if steps.rotation is not None:
            steps.rotation.apply_(heads[:, :2])
        keys, values = steps.append(index, heads[:, 1:])
        out = functional.scaled_dot_product_attention(
            heads[:, 0, :, None], keys, values, attn_mask=steps.mask, scale=attention.scale
        )
        return out.view(len(x), -1)

    def _expand(self, x: Tensor) -> Tensor:
        """The feed-forward without its last projection."""
        return activate(self.up(x), self.block.feed_forward.activation)
