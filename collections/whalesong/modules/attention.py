"""Multi-head attention: of a sequence to itself, and to a memory under a mask that holds."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from whalesong.modules.kv_cache import LayerCache, Pair
from whalesong.modules.rope import Rotation, rotate

QKNorm = Literal["none", "layer", "l2"]

L2_SCALE = 10.0
"""Factor of the cosine between query and key with `qk_norm` "l2"."""


class SelfAttention(nn.Module):
    """Attention of a sequence to itself, with one projection for queries, keys and values.

    Args:
        d_model: D.
        num_heads: H.
        head_dim: dh.
        bias: of both projections.
        qk_norm: what is done to each query and key before they meet.
    """

    def __init__(
        self, d_model: int, num_heads: int, *, head_dim: int, bias: bool, qk_norm: QKNorm
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv_proj = nn.Linear(d_model, 3 * num_heads * head_dim, bias=bias)
        self.out_proj = nn.Linear(num_heads * head_dim, d_model, bias=bias)
        self.query_norm, self.key_norm = head_norm(qk_norm, head_dim), head_norm(qk_norm, head_dim)
        self.scale = attention_scale(qk_norm, head_dim)

    def forward(
        self,
        x: Tensor,
        *,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        is_causal: bool = False,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Map (B, T, D) to (B, T, D).

        Args:
            x: the sequence, or what comes next of it when there is a cache.
            rotation: of its positions.
            mask: what each position sees, broadcast to (B, H, T, S); True = see.
            is_causal: each position sees itself and what is before; then without `mask`.
            cache: takes the new keys and values, and gives those before.
        """
        queries, keys, values = split_heads(self.qkv_proj(x), 3, self.num_heads)
        queries, keys = self.query_norm(queries), self.key_norm(keys)
        if rotation is not None:
            queries, keys = rotate(queries, rotation), rotate(keys, rotation)
        if cache is not None:
            keys, values = cache.append(keys, values)
        out = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=is_causal, scale=self.scale
        )
        return self.out_proj(out.transpose(1, 2).flatten(2))


class MemoryAttention(nn.Module):
    """Attention of a sequence to a memory (cross-attention).

    What the mask hides has no influence at all; a row that sees nothing gets zeros. For that, the
    output projection never has a bias.

    Args:
        d_model: D.
        memory_dim: C, width of the memory.
        num_heads: H.
        head_dim: dh.
        bias: of the projections to queries, keys and values.
        qk_norm: what is done to each query and key before they meet.
    """

    def __init__(
        self,
        d_model: int,
        memory_dim: int,
        num_heads: int,
        *,
        head_dim: int,
        bias: bool,
        qk_norm: QKNorm,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_proj = nn.Linear(d_model, num_heads * head_dim, bias=bias)
        self.memory_proj = nn.Linear(memory_dim, 2 * num_heads * head_dim, bias=bias)
        self.out_proj = nn.Linear(num_heads * head_dim, d_model, bias=False)
        self.query_norm, self.key_norm = head_norm(qk_norm, head_dim), head_norm(qk_norm, head_dim)
        self.scale = attention_scale(qk_norm, head_dim)

    def project(self, memory: Tensor, mask: Tensor | None) -> Pair:
        """Keys and values (B, H, S, dh) of a memory (B, S, C) with mask (B, S)."""
        keys, values = split_heads(self.memory_proj(memory), 2, self.num_heads)
        if mask is not None:
            values = values.masked_fill(~mask[:, None, :, None], 0.0)
        return self.key_norm(keys), values

    def forward(self, x: Tensor, projected: Pair, mask: Tensor | None = None) -> Tensor:
        """Map (B, T, D) to (B, T, D).

        Args:
            x: the sequence.
            projected: keys and values, from `project`.
            mask: (B, 1, 1, S) from `visible`.
        """
        (queries,) = split_heads(self.query_proj(x), 1, self.num_heads)
        out = functional.scaled_dot_product_attention(
            self.query_norm(queries), *projected, attn_mask=mask, scale=self.scale
        )
        return self.out_proj(out.transpose(1, 2).flatten(2))


def visible(mask: Tensor) -> Tensor:
    """The mask (B, S) of a memory as (B, 1, 1, S) for attention.

    A row without memory sees everything, for a softmax over nothing is not a number; its values
    are zeros, and so is what it gets.
    """
    return (mask | ~mask.any(dim=1, keepdim=True))[:, None, None, :]


def split_heads(x: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """Split (B, T, parts * H * dh) into `parts` tensors (B, H, T, dh)."""
    return x.unflatten(-1, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def attention_scale(qk_norm: QKNorm, head_dim: int) -> float:
    """The factor of the products between queries and keys."""
    return L2_SCALE if qk_norm == "l2" else head_dim**-0.5


def head_norm(qk_norm: QKNorm, head_dim: int) -> nn.Module:
    """The norm over the features of each head.

    Raises:
        ValueError: an unknown name.
    """
    if qk_norm == "none":
        return nn.Identity()
    if qk_norm == "layer":
        return nn.LayerNorm(head_dim)
    if qk_norm == "l2":
        return UnitNorm()
    raise ValueError(f"`qk_norm` must be 'none', 'layer' or 'l2', but is '{qk_norm}'.")


class UnitNorm(nn.Module):
    """Scales each vector to length 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dh) to the same shape."""
        return functional.normalize(x, dim=-1)


def sequence_mask(mask: Tensor, *, causal: bool) -> Tensor:
    """What each position of padded sequences sees, (B, 1, T, T), from their mask (B, T).

    A padded position sees itself, so that it is finite.
    """
    length = mask.shape[1]
    self_seen = torch.eye(length, dtype=torch.bool, device=mask.device)
    seen = mask[:, None, None, :] | self_seen
    if causal:
        seen = seen & torch.ones_like(self_seen).tril()
    return seen


def window_mask(length: int, window: int, *, device: torch.device | None = None) -> Tensor:
    """What each position of a sequence sees, (T, T): itself and the `window - 1` before it."""
    index = torch.arange(length, device=device)
    distance = index[:, None] - index
    return (distance >= 0) & (distance < window)


def prompt_target_mask(
    prompt_mask: Tensor, mask: Tensor, *, causal_prompt: bool = False, causal_target: bool
) -> Tensor:
    """What each position of a prompt and its target sees, (B, 1, T, T).

    The prompt sees the prompt and never the target; the target sees all of the prompt, and of the
    target everything or, if it is causal, itself and what is before. A padded position sees
    itself, so that it is finite.

    Args:
        prompt_mask: (B, T), True where the prompt is; the prompt may stand anywhere.
        mask: (B, T), True = keep.
        causal_prompt: positions of the prompt do not see later ones.
        causal_target: positions of the target do not see later ones.
    """
    length = mask.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    prompt, target = (mask & prompt_mask)[:, None], (mask & ~prompt_mask)[:, None]
    of_prompt = prompt & before if causal_prompt else prompt
    of_target = target & before if causal_target else target
    seen = torch.where(prompt_mask[..., None], of_prompt, prompt | of_target)
    return (seen | torch.eye(length, dtype=torch.bool, device=mask.device))[:, None]
