"""`TextTransformer`: from token ids to logits, the backbone of the text models."""

from typing import Any

from torch import Tensor, nn

from whalesong.modules.kv_cache import KVCache
from whalesong.modules.transformer import Transformer
from whalesong.modules.transformer_block import Activation


class TextTransformer(nn.Module):
    """Token embedding, the transformer of the house, and an output layer of its own.

    Args:
        vocab_size: V.
        d_model: D.
        num_layers: L.
        num_heads: H; divides D.
        ff_mult: inner width of the feed-forward over D.
        activation: of the feed-forward.
        dropout: of the input and at the end of each branch.
        causal: a position sees itself and what is before it.
        rotary: rotary positions over all features of each head.
        prompt_positions: positions of a prompt that are learned besides, and added to the tokens
            of the prompt only; 0 has none. A prompt that is a list of pairs, as the edges of a
            graph, is hard to read without it for a model that sees both sides.
        final_norm: a norm comes before the output layer.
        condition_dim: G, width of a global condition (adaLN), such as the noise level.
        embedding_std: standard deviation of all embeddings at the start. Where tokens are to be
            copied and compared, 1 learns in a third of the steps that 0.02 takes.
        zero_init_head: the output layer starts as zero, so that all tokens are equally likely.
        checkpointing: recompute each block in the backward pass, to save memory.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        num_layers: int,
        num_heads: int,
        causal: bool,
        ff_mult: float = 4,
        activation: Activation = "gelu",
        dropout: float = 0.1,
        rotary: bool = True,
        prompt_positions: int = 0,
        final_norm: bool = True,
        condition_dim: int | None = None,
        embedding_std: float = 0.02,
        zero_init_head: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.embedding = _embedding(vocab_size, d_model, embedding_std)
        self.prompt_embedding = (
            _embedding(prompt_positions, d_model, embedding_std) if prompt_positions else None
        )
        self.transformer = Transformer(
            d_model=d_model,
            num_layers=num_layers,
            num_heads=num_heads,
            ff_mult=ff_mult,
            activation=activation,
            dropout=dropout,
            causal=causal,
            rotary_dim=d_model // num_heads if rotary else 0,
            final_norm=final_norm,
            condition_dim=condition_dim,
            checkpointing=checkpointing,
        )
        self.output_modulation = _output_modulation(condition_dim, d_model)
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        if zero_init_head:
            nn.init.zeros_(self.head.weight)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **context: Any
    ) -> Tensor:
        """Logits (B, T, V) of token ids (B, T); `context` as in `hidden_states`."""
        return self.head(self.hidden_states(input_ids, attention_mask=attention_mask, **context))

    def hidden_states(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        positions: Tensor | None = None,
        condition: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Map token ids (B, T) to what the output layer reads, (B, T, D).

        Args:
            input_ids: the tokens, or what comes next of them when there is a cache.
            attention_mask: (B, T), True = keep. Positions count from the first one kept; what comes
                out at padding means nothing.
            prompt_mask: (B, T), True where the prompt is, for `prompt_positions`.
            positions: (T,) or (B, T), instead of counting.
            condition: (B, G), the global condition.
            cache: from `init_cache`; it grows by T positions. The prompt comes whole, at its begin.

        Raises:
            ValueError: more positions of a prompt than are learned.
        """
        x = self.embedding(input_ids)
        if self.prompt_embedding is not None and prompt_mask is not None:
            x = x + self._embed_prompt(prompt_mask, attention_mask)
        x = self.transformer(
            x, mask=attention_mask, positions=positions, condition=condition, cache=cache
        )
        if self.output_modulation is None or condition is None:
            return x
        scale, offset = self.output_modulation(condition)[:, None].chunk(2, dim=-1)
        return x * (1 + scale) + offset

    def init_cache(self, batch_size: int, max_len: int) -> KVCache:
        """An empty cache for B rows of at most `max_len` positions; a causal model only."""
        return self.transformer.init_cache(batch_size, max_len)

    def _embed_prompt(self, prompt_mask: Tensor, attention_mask: Tensor | None) -> Tensor:
        """(B, T, D): the learned positions of the prompt, zeros elsewhere."""
        kept = prompt_mask if attention_mask is None else prompt_mask & attention_mask
        limit = self.prompt_embedding.num_embeddings
        if prompt_mask.shape[1] > limit and (length := int(kept.sum(1).max())) > limit:
            raise ValueError(
                f"a prompt must have at most `prompt_positions` ({limit}) tokens, but has {length}."
            )
        index = (kept.cumsum(1) - 1).clamp(0, limit - 1)
        return self.prompt_embedding(index) * kept[..., None]


def _embedding(num_embeddings: int, d_model: int, std: float) -> nn.Embedding:
    embedding = nn.Embedding(num_embeddings, d_model)
    nn.init.normal_(embedding.weight, std=std)
    return embedding


def _output_modulation(condition_dim: int | None, d_model: int) -> nn.Module | None:
    """From the condition to scale and shift of what the output layer reads; zeros at the start."""
    if condition_dim is None:
        return None
    linear = nn.Linear(condition_dim, 2 * d_model)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.SiLU(), linear)


def count_positions(mask: Tensor) -> Tensor:
    """Position of each token (B, T) in its row, from the first one that the mask keeps."""
    return (mask.cumsum(1) - 1).clamp(min=0)
