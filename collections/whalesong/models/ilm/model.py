"""The network of ILM: what to insert in each gap, and whether the text is complete."""

import torch
from torch import Tensor, nn

from whalesong.modules.text_transformer import TextTransformer
from whalesong.modules.transformer_block import Activation

EMBEDDING_STD = 0.5
"""Standard deviation of embeddings at the start: larger than what a first layer adds, so that later
layers still tell the tokens apart. With 0.02, looking ahead in a graph is learned much later."""


class IlmModel(TextTransformer):
    """A transformer that sees all of a text with gaps, with a second head on the first token.

    Gap k of a row is what comes right after position k; its logits say what is missing there.

    Args:
        vocab_size: V.
        d_model: D.
        num_layers: L; use at least 3, for fewer do not learn to plan.
        num_heads: H; divides D.
        ff_mult: inner width of the feed-forward over D.
        activation: of the feed-forward.
        dropout: of the input and at the end of each branch.
        prompt_positions: positions of a prompt that are learned besides; 0 has none.
        final_norm: a norm comes before the output layer; published networks for graphs have none.
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
        final_norm: bool = False,
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
            embedding_std=EMBEDDING_STD,
            final_norm=final_norm,
            checkpointing=checkpointing,
        )
        self.stop_head = StopHead(d_model)

    def stop_logits(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, 2) of "complete" and "something is missing", read at the first token.

        Args:
            hidden: (B, T, D), from `hidden_states`.
            attention_mask: (B, T), True = keep.
        """
        first = attention_mask.int().argmax(1)
        return self.stop_head(hidden[torch.arange(len(hidden), device=hidden.device), first])


class StopHead(nn.Module):
    """Norm, a feed-forward with tanh beside it, and two classes.

    Args:
        d_model: D.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.up_proj = nn.Linear(d_model, 2 * d_model)
        self.down_proj = nn.Linear(2 * d_model, d_model)
        self.classes = nn.Linear(d_model, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, D) to logits (B, 2)."""
        x = self.norm(x)
        return self.classes(x + self.down_proj(self.up_proj(x).tanh()))
