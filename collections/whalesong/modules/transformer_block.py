"""One layer of the transformer, and its feed-forward."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from whalesong.modules.attention import MemoryAttention, SelfAttention
from whalesong.modules.kv_cache import LayerCache, Pair
from whalesong.modules.rope import Rotation

Activation = Literal["gelu", "gelu_new", "relu", "silu", "swiglu"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}
LAYER_SCALE = 1e-5
"""Start of the factors of `layer_scale`."""


class Context(NamedTuple):
    """What all layers of a pass share."""

    rotation: Rotation | None = None
    """Of the positions."""
    mask: Tensor | None = None
    """What each position sees, broadcast to (B, H, T, S)."""
    is_causal: bool = False
    """Each position sees itself and what is before; then `mask` is None."""
    memory: Tensor | None = None
    """(B, S, C), unless a cache has its keys and values."""
    memory_mask: Tensor | None = None
    """(B, S), True = keep."""
    memory_seen: Tensor | None = None
    """(B, 1, 1, S), from `attention.visible`."""
    condition: Tensor | None = None
    """(B, G), unless a cache has what it does."""


class Block(nn.Module):
    """One layer: each branch is normed, applied and added.

    Args:
        d_model: D.
        build_norm: makes the norm before a branch.
        attention: to itself.
        memory_attention: to the memory, if the layer has it.
        feed_forward: the last branch.
        condition_dim: G, or None.
        layer_scale: learned factors at the end of each branch.
        dropout: at the end of each branch.
    """

    def __init__(
        self,
        d_model: int,
        *,
        build_norm: Callable[[], nn.Module],
        attention: SelfAttention,
        memory_attention: MemoryAttention | None,
        feed_forward: "FeedForward",
        condition_dim: int | None,
        layer_scale: bool,
        dropout: float,
    ) -> None:
        super().__init__()

        def build_end() -> nn.Module:
            return BranchEnd(d_model, layer_scale=layer_scale, dropout=dropout)

        self.attention_norm, self.attention_end = build_norm(), build_end()
        self.attention = attention
        self.memory_attention = memory_attention
        if memory_attention is not None:
            self.memory_norm, self.memory_end = build_norm(), build_end()
        self.ff_norm, self.ff_end = build_norm(), build_end()
        self.feed_forward = feed_forward
        self.modulation = None if condition_dim is None else Modulation(condition_dim, d_model)

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        if cache is None:
            projected = self.project_memory(context.memory, context.memory_mask)
            modulation = self.modulate(context.condition)
        else:
            projected, modulation = cache.memory, cache.modulation
        changes = [None] * 6 if modulation is None else modulation.chunk(6, dim=-1)

        branch = self.attention(
            shift(self.attention_norm(x), changes[0], changes[1]),
            rotation=context.rotation,
            mask=context.mask,
            is_causal=context.is_causal,
            cache=cache,
        )
        x = x + gate(self.attention_end(branch), changes[2])
        if projected is not None:
            branch = self.memory_attention(self.memory_norm(x), projected, context.memory_seen)
            x = x + self.memory_end(branch)
        branch = self.feed_forward(shift(self.ff_norm(x), changes[3], changes[4]))
        return x + gate(self.ff_end(branch), changes[5])

    def project_memory(self, memory: Tensor | None, mask: Tensor | None) -> Pair | None:
        """Keys and values of the memory, if there is one and the layer attends to it."""
        if memory is None or self.memory_attention is None:
            return None
        return self.memory_attention.project(memory, mask)

    def modulate(self, condition: Tensor | None) -> Tensor | None:
        """(B, 1, 6 D): scale, shift and gate of self-attention, then of the feed-forward."""
        if condition is None or self.modulation is None:
            return None
        return self.modulation(condition)

    def branch_outputs(self) -> list[nn.Linear]:
        """The last projection of each branch."""
        attentions = [self.attention, self.memory_attention]
        outputs = [branch.out_proj for branch in attentions if branch is not None]
        return [*outputs, self.feed_forward.down_proj]


class FeedForward(nn.Module):
    """Two linear layers with an activation, or a gate, between them.

    Args:
        d_model: D.
        ff_dim: inner width.
        activation: "gelu", "gelu_new" (by tanh), "relu", "silu", or "swiglu" for a gate.
        bias: of both layers.
    """

    def __init__(self, d_model: int, ff_dim: int, *, activation: Activation, bias: bool) -> None:
        super().__init__()
        if activation != "swiglu" and activation not in ACTIVATIONS:
            names = "', '".join([*ACTIVATIONS, "swiglu"])
            raise ValueError(f"`activation` must be one of '{names}', but is '{activation}'.")
        self.activation = activation
        inputs = 2 if activation == "swiglu" else 1
        self.up_proj = nn.Linear(d_model, inputs * ff_dim, bias=bias)
        self.down_proj = nn.Linear(ff_dim, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        return self.down_proj(activate(self.up_proj(x), self.activation))


class BranchEnd(nn.Module):
    """Dropout and learned factors at the end of a branch."""

    def __init__(self, d_model: int, *, layer_scale: bool, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        factors = torch.full((d_model,), LAYER_SCALE)
        self.scale = nn.Parameter(factors) if layer_scale else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        x = self.dropout(x)
        return x if self.scale is None else x * self.scale


class Modulation(nn.Module):
    """From a global condition to scale, shift and gate of two branches; zeros at the start."""

    def __init__(self, condition_dim: int, d_model: int) -> None:
        super().__init__()
        self.proj = nn.Linear(condition_dim, 6 * d_model)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, condition: Tensor) -> Tensor:
        """Map (B, G) to (B, 1, 6 D)."""
        return self.proj(functional.silu(condition))[:, None]


def activate(x: Tensor, activation: str) -> Tensor:
    """Apply an activation to (..., F); "swiglu" takes (..., 2 F), values before gates."""
    if activation == "swiglu":
        values, gates = x.chunk(2, dim=-1)
        return values * functional.silu(gates)
    return ACTIVATIONS[activation](x)


def shift(x: Tensor, scale: Tensor | None, offset: Tensor | None) -> Tensor:
    """`x * (1 + scale) + offset`, or x."""
    return x if scale is None else x * (1 + scale) + offset


def gate(x: Tensor, factor: Tensor | None) -> Tensor:
    """`x * (1 + factor)`, or x."""
    return x if factor is None else x * (1 + factor)
