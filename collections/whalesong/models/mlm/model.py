"""The network of mlm: a transformer that sees both sides."""

from torch import Tensor

from whalesong.modules.text_transformer import TextTransformer
from whalesong.modules.transformer_block import Activation


class MlmModel(TextTransformer):
    """A transformer in which each token sees all others.

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
        embedding_std: standard deviation of embeddings at the start.
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
        embedding_std: float = 1.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(
            vocab_size=vocab_size,
            d_model=d_model,
            num_layers=num_layers,
            num_heads=num_heads,
            causal=False,
            ff_mult=ff_mult,
            activation=activation,
            dropout=dropout,
            prompt_positions=prompt_positions,
            embedding_std=embedding_std,
            checkpointing=checkpointing,
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        prompt_mask: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Logits of the token at each position.

        Args:
            input_ids: (B, T), with masks where tokens are unknown.
            attention_mask: (B, T), True = keep; positions count from the first one kept.
            prompt_mask: (B, T), True where the prompt is.
            at: (B, T), True at the M positions whose logits are wanted; None: at all.

        Returns:
            (B, T, V), or (M, V) with `at`.
        """
        hidden = self.hidden_states(
            input_ids, attention_mask=attention_mask, prompt_mask=prompt_mask
        )
        return self.head(hidden if at is None else hidden[at])
