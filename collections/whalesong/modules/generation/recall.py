"""Attention of single positions to a memory that stays the same for a whole sequence."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from whalesong.modules.attention import MemoryAttention, visible
from whalesong.modules.generation.packed_linear import PackedLinear, effective_weight
from whalesong.modules.kv_cache import Pair


class Recall:
    """Attention to a memory with its keys and values at hand.

    Args:
        attention: of the layer.
        norm: before it.
        query: its packed projection to queries.
        out: its packed projection of what was found.
        pair: keys and values (R, H, S, dh).
        mask: (R, S), True = keep.
    """

    def __init__(
        self,
        attention: MemoryAttention,
        *,
        norm: nn.Module,
        query: PackedLinear,
        out: PackedLinear,
        pair: Pair,
        mask: Tensor | None,
    ) -> None:
        self._attention, self._norm, self._query, self._out = attention, norm, query, out
        self._pair = pair[0].contiguous(), pair[1].contiguous()
        seen = None if mask is None else visible(mask)
        self._mask = None if seen is None or bool(seen.all()) else seen

    def add_to(self, x: Tensor) -> Tensor:
        """Add what is found to x (R, D)."""
        attention = self._attention
        queries = self._query(self._norm(x)).view(len(x), attention.num_heads, 1, -1)
        found = functional.scaled_dot_product_attention(
            attention.query_norm(queries), *self._pair, attn_mask=self._mask, scale=attention.scale
        )
        return self._out.add_to(x, found.view(len(x), -1))


class ShortRecall:
    """Attention to short memories: keys and values are multiplied into the projections.

    Scores are linear in the input and outputs are linear in the weights, so that per row two
    matrices (D, H * S) and (H * S, D) replace both projections; while all rows together have at
    most D / H positions, this is less to read. Rows without memory cost nothing.

    Args:
        attention: of the layer, without norms over heads.
        norm: before it.
        scale: (D,), factors of the outputs, or None.
        pair: keys and values (R, H, S, dh).
        mask: (R, S), True = keep.
    """

    def __init__(
        self,
        attention: MemoryAttention,
        *,
        norm: nn.Module,
        scale: Tensor | None,
        pair: Pair,
        mask: Tensor,
    ) -> None:
        self._norm, self._num_heads = norm, attention.num_heads
        query, bias = effective_weight(attention.query_proj)
        out, _ = effective_weight(attention.out_proj)
        query = query.unflatten(0, (self._num_heads, -1)) * attention.scale  # (H, dh, D)
        out = out.unflatten(1, (self._num_heads, -1))  # (D, H, dh)
        if scale is not None:
            out = out * scale[:, None, None]
        self._rows = []
        for row in mask.any(dim=1).nonzero().flatten().tolist():
            keys, values = (part[row, :, mask[row]] for part in pair)  # (H, S, dh)
            offset = keys.new_zeros(keys.shape[0] * keys.shape[1])
            if bias is not None:
                heads = bias.view(self._num_heads, -1, 1) * attention.scale
                offset = (keys @ heads).flatten()
            to_scores = torch.einsum("hkd,hsk->dhs", query, keys).flatten(1).contiguous()
            from_scores = torch.einsum("dhk,hsk->hsd", out, values).flatten(0, 1).contiguous()
            self._rows.append((slice(row, row + 1), offset, to_scores, from_scores))

    @staticmethod
    def fits(attention: MemoryAttention, mask: Tensor) -> bool:
        """Is it less to read than the projections are?"""
        plain = isinstance(attention.query_norm, nn.Identity)
        width = attention.out_proj.out_features
        return (
            plain and mask.device.type == "cpu" and (int(mask.sum()) * attention.num_heads <= width)
        )

    def add_to(self, x: Tensor) -> Tensor:
        """Add what is found to x (R, D), in place."""
        for row, offset, to_scores, from_scores in self._rows:
            scores = torch.addmm(offset, self._norm(x[row]), to_scores)
            shares = scores.view(self._num_heads, -1).softmax(dim=-1)
            x[row].addmm_(shares.view(1, -1), from_scores)
        return x
