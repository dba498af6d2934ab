"""The backbone `continuous_transformer`: a causal transformer under prepended, attended and global
conditions."""

from typing import Any

import torch
from torch import Tensor, nn

from whalesong.models.codec_lm.backbone_config import (
    MIN_ROTARY_DIM,
    ContinuousTransformerConfig,
)
from whalesong.modules.conditioning.conditioner import Condition
from whalesong.modules.kv_cache import KVCache
from whalesong.modules.transformer import Transformer


class ContinuousTransformerAudioLMBackbone(nn.Module):
    """From embedded codes and conditions to hidden states of the codes.

    Args:
        config: the fields of `ContinuousTransformerConfig`, in either spelling.

    Raises:
        ValueError: a field is unknown, contradicts another or asks for what is not supported.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        fields = ContinuousTransformerConfig(**config)
        width = fields.embed_dim
        self.fields = fields
        self.d_model = width
        self.memory_proj = self.prepend_proj = None
        if fields.cross_attn_cond_dim and fields.project_cross_attn_cond:
            self.memory_proj = _projection(fields.cross_attn_cond_dim, width)
        if fields.prepend_cond_dim:
            self.prepend_proj = _projection(fields.prepend_cond_dim, width)
        self.memory_tokens = None
        if fields.num_memory_tokens:
            self.memory_tokens = nn.Parameter(torch.randn(fields.num_memory_tokens, width) * 0.02)
        self.transformer = Transformer(**transformer_arguments(fields))

    def forward(
        self,
        x: Tensor,
        *,
        prepend: Condition | None = None,
        memory: Condition | None = None,
        global_cond: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Map (B, P, D) to (B, P, D), the last norm included.

        Args:
            x: embedded codes, or the next of them when there is a cache.
            prepend: (B, S, C) before the codes; with a cache, at its first call only.
            memory: (B, S, C) for cross-attention; not beside a cache, which has it.
            global_cond: (B, G) for all blocks; not beside a cache, which has it.
            cache: from `init_cache`.

        Raises:
            ValueError: a condition has no place in this backbone, or another width.
        """
        self._check(prepend, memory, global_cond)
        begins = cache is None or cache.length == 0
        prefix = self._prefix(prepend, len(x)) if begins else None
        mask, num_steps = None, x.shape[1]
        if prefix is not None:
            mask = torch.cat((prefix.mask, prefix.mask.new_ones(x.shape[:2])), dim=1)
            x = torch.cat((prefix.embeds.to(x.dtype), x), dim=1)
        memory = self._projected(memory)
        hidden = self.transformer(
            x,
            mask=mask,
            memory=None if memory is None else memory.embeds,
            memory_mask=None if memory is None else memory.mask,
            condition=global_cond,
            cache=cache,
        )
        return hidden[:, -num_steps:]

    def init_cache(
        self,
        batch_size: int,
        max_len: int,
        *,
        prepend: Condition | None = None,
        memory: Condition | None = None,
        global_cond: Tensor | None = None,
    ) -> KVCache:
        """An empty cache for `max_len` steps of codes behind what is prepended.

        `prepend` only makes room; it goes to the first `forward`, too.
        """
        self._check(prepend, memory, global_cond)
        memory = self._projected(memory)
        before = self.fields.num_memory_tokens + (0 if prepend is None else prepend.mask.shape[1])
        return self.transformer.init_cache(
            batch_size,
            before + max_len,
            memory=None if memory is None else memory.embeds,
            memory_mask=None if memory is None else memory.mask,
            condition=global_cond,
        )

    def _projected(self, memory: Condition | None) -> Condition | None:
        """The memory in the width that the blocks take."""
        if memory is None or self.memory_proj is None:
            return memory
        return Condition(self.memory_proj(memory.embeds), memory.mask)

    def _prefix(self, prepend: Condition | None, rows: int) -> Condition | None:
        """What stands before the codes (B, S, D), its padding at the left, or None."""
        parts = []
        if self.memory_tokens is not None:
            tokens = self.memory_tokens.expand(rows, -1, -1)
            parts.append(Condition(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool)))
        if prepend is not None:
            parts.append(Condition(self.prepend_proj(prepend.embeds), prepend.mask))
        if not parts:
            return None
        embeds, masks = zip(*parts, strict=True)
        return padding_first(Condition(torch.cat(embeds, dim=1), torch.cat(masks, dim=1)))

    def _check(
        self, prepend: Condition | None, memory: Condition | None, global_cond: Tensor | None
    ) -> None:
        given = {
            "prepend_cond_dim": None if prepend is None else prepend.embeds,
            "cross_attn_cond_dim": None if memory is None else memory.embeds,
            "global_cond_dim": global_cond,
        }
        for name, condition in given.items():
            width = getattr(self.fields, name) or 0
            if condition is not None and condition.shape[-1] != width:
                raise ValueError(f"`{name}` must be the width of the condition that is given "
                                 f"({condition.shape[-1]}), but is {width}.")  # fmt: skip


def transformer_arguments(fields: ContinuousTransformerConfig) -> dict[str, Any]:
    """The arguments of `Transformer` for the fields of the backbone."""
    width, head_dim = fields.embed_dim, fields.dim_heads
    memory_dim = width if fields.project_cross_attn_cond else fields.cross_attn_cond_dim
    positions = "sinusoidal" if fields.use_sinusoidal_emb else "none"
    return {
        "d_model": width,
        "num_layers": fields.depth,
        "num_heads": width // head_dim,
        "head_dim": head_dim,
        "ff_mult": fields.ff_kwargs.mult,
        "ff_bias": not fields.ff_kwargs.no_bias,
        "activation": "swiglu" if fields.ff_kwargs.glu else fields.activation,
        "norm": fields.norm_type,
        "norm_bias": fields.norm_kwargs.bias,
        "norm_eps": fields.norm_kwargs.eps,
        "memory_dim": memory_dim if fields.cross_attn_cond_dim else None,
        "num_memory_layers": fields.final_cross_attn_ix + 1 or None,
        "rotary_dim": max(head_dim // 2, MIN_ROTARY_DIM) if fields.rotary_pos_emb else 0,
        "positions": "learned" if fields.use_abs_pos_emb else positions,
        "max_positions": fields.abs_pos_emb_max_length,
        "qk_norm": {"ln": "layer"}.get(fields.attn_kwargs.qk_norm, fields.attn_kwargs.qk_norm),
        "condition_dim": fields.global_cond_dim or None,
        "layer_scale": fields.layer_scale,
        "zero_init_branch_outputs": fields.zero_init_branch_outputs,
        "dropout": fields.dropout,
        "checkpointing": fields.checkpointing,
    }


def padding_first(condition: Condition) -> Condition:
    """Move what the mask hides to the left of each row; the rest stays in its order."""
    order = torch.argsort(condition.mask.byte(), dim=1, stable=True)
    index = order[..., None].expand_as(condition.embeds)
    return Condition(condition.embeds.gather(1, index), condition.mask.gather(1, order))


def _projection(width_in: int, width_out: int) -> nn.Sequential:
    """Without biases, so that zeros stay zeros."""
    return nn.Sequential(
        nn.Linear(width_in, width_out, bias=False),
        nn.SiLU(),
        nn.Linear(width_out, width_out, bias=False),
    )
