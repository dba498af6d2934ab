"""The network of arlm: a causal transformer."""

from torch import Tensor

from whalesong.modules.kv_cache import KVCache
from whalesong.modules.text_transformer import TextTransformer
from whalesong.modules.transformer_block import Activation


class ArlmModel(TextTransformer):
    """A transformer in which each token sees itself and what is before it.

    Args:
        vocab_size: V.
        d_model: D.
        num_layers: L.
        num_heads: H; divides D.
        ff_mult: inner width of the feed-forward over D.
        activation: of the feed-forward.
        dropout: of the input and at the end of each branch.
        prompt_positions: positions that are learned for the prompt besides the rotary ones; 0 has
            none.
        checkpointing: recompute each block in the backward pass, to save memory.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int = 128,
        num_layers: int = 3,
        num_heads: int = 4,
        ff_mult: float = 4,
        activation: Activation = "gelu",
        dropout: float = 0.1,
        prompt_positions: int = 0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(
            vocab_size=vocab_size,
            d_model=d_model,
            num_layers=num_layers,
            num_heads=num_heads,
            causal=True,
            ff_mult=ff_mult,
            activation=activation,
            dropout=dropout,
            prompt_positions=prompt_positions,
            checkpointing=checkpointing,
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        prompt_mask: Tensor | None = None,
        cache: KVCache | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Logits of the token that follows each position.

        Args:
            input_ids: (B, T); with a cache, what comes next.
            attention_mask: (B, T), True = keep; padding may stand at either side.
            prompt_mask: (B, T), True where the prompt is.
            cache: from `init_cache`; it grows by T positions.
            at: (B, T), True at the M positions whose logits are wanted; None: at all.

        Returns:
            (B, T, V), or (M, V) with `at`.
        """
        hidden = self.hidden_states(
            input_ids, attention_mask=attention_mask, prompt_mask=prompt_mask, cache=cache
        )
        return self.head(hidden if at is None else hidden[at])
