"""The transformer of the house: pre-norm blocks with an optional memory and global condition."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from whalesong.modules.attention import (
    MemoryAttention,
    QKNorm,
    SelfAttention,
    sequence_mask,
    visible,
    window_mask,
)
from whalesong.modules.embeddings import LearnedPositions, SinusoidalPositions
from whalesong.modules.kv_cache import KVCache
from whalesong.modules.rope import Rotation, rotation_at
from whalesong.modules.transformer_block import Activation, Block, Context, FeedForward
from whalesong.modules.window_cache import WindowCache

Norm = Literal["layer_norm", "rms_norm"]
Positions = Literal["none", "sinusoidal", "learned"]


class Transformer(nn.Module):
    """Pre-norm blocks of self-attention, attention to a memory if any, and feed-forward.

    Args:
        d_model: D.
        num_layers: L.
        num_heads: H.
        head_dim: dh; default D / H.
        ff_dim: inner width of the feed-forward; default `ff_mult` times D.
        ff_mult: see `ff_dim`.
        activation: of the feed-forward; "swiglu" is gated by SiLU.
        norm: kind of all norms over D.
        norm_bias: `layer_norm` has a bias.
        norm_eps: added to the variance.
        attention_bias: the projections to queries, keys and values, and the one out of
            self-attention, have biases.
        ff_bias: the feed-forward has biases.
        causal: a position sees itself and what is before it.
        window: of that, only itself and the `window - 1` before it; None: everything.
        memory_dim: C, width of the memory; None builds no attention to one.
        num_memory_layers: only this many layers, from the first on, attend to the memory.
        rotary_dim: features of each head that carry rotary positions; 0 has none.
        rotary_base: wavelength of the slowest rotation, over 2 pi.
        positions: absolute positions added to the input.
        max_positions: positions that can be learned.
        qk_norm: norm over the features of each query and key.
        condition_dim: G, width of a global condition, which scales, shifts and gates both branches
            of every block (adaLN, arXiv 2212.09748), starting as the identity.
        layer_scale: learned factors at the end of each branch, small at the start.
        zero_init_branch_outputs: each branch starts as zero.
        final_norm: a norm comes behind the last block.
        dropout: of the input and at the end of each branch.
        checkpointing: recompute each block in the backward pass, to save memory.
    """

    def __init__(
        self,
        *,
        d_model: int,
        num_layers: int,
        num_heads: int,
        head_dim: int | None = None,
        ff_dim: int | None = None,
        ff_mult: float = 4,
        activation: Activation = "gelu",
        norm: Norm = "layer_norm",
        norm_bias: bool = True,
        norm_eps: float = 1e-5,
        attention_bias: bool = False,
        ff_bias: bool = False,
        causal: bool = True,
        window: int | None = None,
        memory_dim: int | None = None,
        num_memory_layers: int | None = None,
        rotary_dim: int = 0,
        rotary_base: float = 10000.0,
        positions: Positions = "none",
        max_positions: int = 10000,
        qk_norm: QKNorm = "none",
        condition_dim: int | None = None,
        layer_scale: bool = False,
        zero_init_branch_outputs: bool = False,
        final_norm: bool = True,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.d_model, self.num_heads = d_model, num_heads
        self.head_dim = head_dim or _head_dim(d_model, num_heads)
        _check_rotary(rotary_dim, self.head_dim)
        _check_window(window, causal)
        self.causal, self.window, self.checkpointing = causal, window, checkpointing
        self.rotary_dim, self.rotary_base = rotary_dim, rotary_base
        self.positions = _absolute_positions(positions, d_model, max_positions)
        self.dropout = nn.Dropout(dropout)
        build_norm = partial(_build_norm, norm, d_model, bias=norm_bias, eps=norm_eps)
        heads = {"head_dim": self.head_dim, "bias": attention_bias, "qk_norm": qk_norm}
        with_memory = 0 if memory_dim is None else num_layers
        if num_memory_layers is not None:
            with_memory = min(with_memory, num_memory_layers)
        self.layers = nn.ModuleList(
            Block(
                d_model,
                build_norm=build_norm,
                attention=SelfAttention(d_model, num_heads, **heads),
                memory_attention=MemoryAttention(d_model, memory_dim, num_heads, **heads)
                if index < with_memory
                else None,
                feed_forward=FeedForward(
                    d_model, ff_dim or round(ff_mult * d_model), activation=activation, bias=ff_bias
                ),
                condition_dim=condition_dim,
                layer_scale=layer_scale,
                dropout=dropout,
            )
            for index in range(num_layers)
        )
        self.norm = build_norm() if final_norm else nn.Identity()
        if zero_init_branch_outputs:
            self._zero_branches()

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        seen: Tensor | None = None,
        positions: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        condition: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Map (B, T, D) to (B, T, D), the last norm included if there is one.

        Args:
            x: the sequence, or what comes next of it when there is a cache.
            mask: (B, T), True = keep; positions count from the first one kept. With a cache,
                padding is at the left of the whole sequence. What comes out at padding means
                nothing.
            seen: what each position sees, broadcast to (B, H, T, S), True = see; instead of what
                `causal` and `mask` say.
            positions: (T,) or (B, T), instead of counting; with a cache, what comes later counts on
                from the last of them.
            memory: (B, S, C), what the blocks attend to besides.
            memory_mask: (B, S), True = keep; a row may be empty.
            condition: (B, G), the global condition; None leaves the blocks as they are.
            cache: from `init_cache`, with memory and condition in it; it grows by T positions.

        Raises:
            ValueError: the cache has no room, or comes with a memory or condition beside it; or
                there are not as many learned positions.
        """
        if cache is None:
            counted, visible_to = self._whole(x, mask if seen is None else None)
        else:
            if memory is not None or condition is not None:
                raise ValueError("memory and condition must be given to `init_cache`, not beside "
                                 "`cache`.")  # fmt: skip
            counted, visible_to = self._next(x.shape[1], mask, positions, cache)
            memory_mask = cache.memory_mask
        positions = counted if positions is None else positions
        seen = visible_to if seen is None else seen
        is_causal = self.causal and seen is None and x.shape[1] > 1
        memory_seen = None if memory_mask is None else visible(memory_mask)
        context = Context(
            self._rotation(positions), seen, is_causal, memory, memory_mask, memory_seen, condition
        )
        if self.positions is not None:
            x = x + self.positions(positions).to(x.dtype)
        return self.norm(self._run_layers(self.dropout(x), context, cache))

    def init_cache(
        self,
        batch_size: int,
        max_len: int | None = None,
        *,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> KVCache:
        """An empty cache with keys and values of the memory, and what the condition does.

        Args:
            batch_size: B.
            max_len: positions that it can hold; None, with a window, has no limit.
            memory: (B, S, C).
            memory_mask: (B, S), True = keep.
            condition: (B, G).

        Raises:
            ValueError: the transformer is not causal, so that new positions would change old ones,
                or has not learned as many positions; or `max_len` is missing without a window.
        """
        if not self.causal:
            raise ValueError("`causal` must be true for a cache, but is false.")
        if max_len is None and self.window is None:
            raise ValueError("`max_len` must be given for a transformer without `window`.")
        slides = self.window is not None and (max_len is None or max_len > self.window)
        held = self.window if slides else max_len
        self._check_length(held if max_len is None else max_len)
        weight = self.layers[0].attention.qkv_proj.weight
        shape = (len(self.layers), 2, batch_size, self.num_heads, held, self.head_dim)
        kind = WindowCache if slides else KVCache
        return kind(
            weight.new_zeros(shape),
            memory=[layer.project_memory(memory, memory_mask) for layer in self.layers],
            memory_mask=memory_mask,
            modulations=[layer.modulate(condition) for layer in self.layers],
        )

    def _run_layers(self, x: Tensor, context: Context, cache: KVCache | None) -> Tensor:
        """(B, T, D) before the last norm."""
        if cache is not None:
            for index, layer in enumerate(self.layers):
                x = layer(x, context, cache.layer(index))
            cache.length += x.shape[1]
            return x
        for layer in self.layers:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, context, use_reentrant=False)
            else:
                x = layer(x, context)
        return x

    def _whole(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Positions (T,) or (B, T) of a whole sequence, and what each of them sees."""
        length = x.shape[1]
        self._check_length(length)
        band = None
        if self._exceeds_window(length):
            band = window_mask(length, self.window, device=x.device)
        if mask is None:
            return torch.arange(length, device=x.device), band
        seen = sequence_mask(mask, causal=self.causal)
        return (mask.cumsum(1) - 1).clamp(min=0), seen if band is None else seen & band

    def _next(
        self, num_positions: int, mask: Tensor | None, positions: Tensor | None, cache: KVCache
    ) -> tuple[Tensor, Tensor | None]:
        """The same for what comes next."""
        cache.check_room(num_positions)
        if mask is not None:
            cache.pad(mask)
        if positions is not None:
            cache.count_from(positions)
        starts_plainly = cache.length == 0 and cache.padding is None
        starts_plainly = starts_plainly and not self._exceeds_window(num_positions)
        seen = None if starts_plainly else cache.attention_mask(num_positions)
        return cache.positions(num_positions), seen

    def _exceeds_window(self, length: int) -> bool:
        return self.window is not None and length > self.window

    def _check_length(self, length: int) -> None:
        if not isinstance(self.positions, LearnedPositions):
            return
        if length > (limit := self.positions.num_embeddings):
            raise ValueError(f"a sequence must have at most {limit} positions, as many as were "
                             f"learned, but has {length}.")  # fmt: skip

    def _rotation(self, positions: Tensor) -> Rotation | None:
        if not self.rotary_dim:
            return None
        return rotation_at(positions, self.rotary_dim, base=self.rotary_base)

    @torch.no_grad()
    def _zero_branches(self) -> None:
        for layer in self.layers:
            for projection in layer.branch_outputs():
                for parameter in projection.parameters():
                    parameter.zero_()


def _head_dim(d_model: int, num_heads: int) -> int:
    if d_model % num_heads:
        raise ValueError(f"`num_heads` must divide `d_model` ({d_model}), but is {num_heads}.")
    return d_model // num_heads


def _check_rotary(rotary_dim: int, head_dim: int) -> None:
    if rotary_dim % 2 or not 0 <= rotary_dim <= head_dim:
        raise ValueError(f"`rotary_dim` must be even and at most the head size ({head_dim}), but "
                         f"is {rotary_dim}.")  # fmt: skip


def _check_window(window: int | None, causal: bool) -> None:
    if window is None:
        return
    if window < 1:
        raise ValueError(f"`window` must be at least 1, but is {window}.")
    if not causal:
        raise ValueError("`causal` must be true with a `window`, but is false.")


def _build_norm(kind: str, d_model: int, *, bias: bool, eps: float) -> nn.Module:
    if kind == "rms_norm":
        return nn.RMSNorm(d_model, eps=eps)
    if kind == "layer_norm":
        return nn.LayerNorm(d_model, eps=eps, bias=bias)
    raise ValueError(f"`norm` must be 'layer_norm' or 'rms_norm', but is '{kind}'.")


def _absolute_positions(kind: str, d_model: int, max_positions: int) -> nn.Module | None:
    if kind == "none":
        return None
    if kind == "sinusoidal":
        return SinusoidalPositions(d_model)
    if kind == "learned":
        return LearnedPositions(max_positions, d_model)
    raise ValueError(f"`positions` must be 'none', 'sinusoidal' or 'learned', but is '{kind}'.")
