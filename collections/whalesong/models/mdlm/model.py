"""The network of mdlm: a transformer that sees both sides and may know how noisy a text is."""

import torch
from torch import Tensor, nn

from whalesong.modules.embeddings import SinusoidalPositions
from whalesong.modules.text_transformer import TextTransformer
from whalesong.modules.transformer_block import Activation

NUM_FREQUENCIES = 256
"""Width of the embedding of the noise before it is learned."""


class MdlmModel(nn.Module):
    """From a partly masked text to logits of its tokens (arXiv 2406.07524).

    The noise scales, shifts and gates every layer (adaLN, arXiv 2212.09748).

    Args:
        vocab_size: V.
        d_model: D.
        num_layers: L.
        num_heads: H; divides D.
        ff_mult: inner width of the feed-forward over D.
        activation: of the feed-forward.
        dropout: of the input and at the end of each branch.
        rotary: rotary positions over all features of each head.
        prompt_positions: see `TextTransformer`.
        condition_dim: G, width of the learned embedding of the noise; None has no such embedding
            and no adaLN, of which nothing depends on the noise without `time_conditioning`.
        time_conditioning: the layers are told the noise; otherwise they are told 0 always, as what
            is masked says it already, and generation is faster by far.
        zero_init_head: the output layer starts as zero.
        checkpointing: recompute each block in the backward pass, to save memory.

    Raises:
        ValueError: `time_conditioning` without `condition_dim`.
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
        rotary: bool = True,
        prompt_positions: int = 0,
        condition_dim: int | None = 128,
        time_conditioning: bool = False,
        zero_init_head: bool = True,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if time_conditioning and condition_dim is None:
            raise ValueError("`condition_dim` must be given with `time_conditioning`, but is null.")
        self.time_conditioning = time_conditioning
        self.waves = SinusoidalPositions(NUM_FREQUENCIES)
        self.condition = _noise_embedding(condition_dim)
        self.transformer = TextTransformer(
            vocab_size=vocab_size,
            d_model=d_model,
            num_layers=num_layers,
            num_heads=num_heads,
            ff_mult=ff_mult,
            activation=activation,
            dropout=dropout,
            causal=False,
            rotary=rotary,
            prompt_positions=prompt_positions,
            condition_dim=condition_dim,
            embedding_std=1.0,
            zero_init_head=zero_init_head,
            checkpointing=checkpointing,
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        prompt_mask: Tensor | None = None,
        total_noise: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of clean tokens, not yet those of `subs_log_probs`.

        Args:
            input_ids: tokens, some of them masked, (B, T).
            attention_mask: (B, T), True = keep.
            prompt_mask: (B, T), True where the prompt is.
            total_noise: (B,), looked at with `time_conditioning` only; None is 0.
            at: (B, T), True where logits are wanted; then they are (M, V), row after row.
        """
        hidden = self.transformer.hidden_states(
            input_ids,
            attention_mask=attention_mask,
            prompt_mask=prompt_mask,
            condition=self._condition(total_noise),
        )
        return self.transformer.head(hidden if at is None else hidden[at])

    def _condition(self, total_noise: Tensor | None) -> Tensor | None:
        """(B, G), or (1, G) where all rows have the same."""
        if self.condition is None:
            return None
        if total_noise is None or not self.time_conditioning:
            total_noise = torch.zeros(1, device=self.transformer.head.weight.device)
        waves = self.waves(total_noise).to(self.transformer.head.weight.dtype)
        return self.condition(waves)


def _noise_embedding(condition_dim: int | None) -> nn.Module | None:
    """From waves to (B, G)."""
    if condition_dim is None:
        return None
    return nn.Sequential(
        nn.Linear(NUM_FREQUENCIES, condition_dim),
        nn.SiLU(),
        nn.Linear(condition_dim, condition_dim),
    )


def without_mask(logits: Tensor, mask_token_id: int) -> Tensor:
    """Logits (..., V) in fp32 at least, by which the mask is never predicted."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    forbidden = torch.arange(logits.shape[-1], device=logits.device) == mask_token_id
    return logits.masked_fill(forbidden, -torch.inf)


def subs_log_probs(logits: Tensor, input_ids: Tensor, mask_token_id: int) -> Tensor:
    """Log-probabilities (B, T, V) of clean tokens, by substitution (SUBS).

    A mask is never predicted, and a token that is not masked is copied. Loss and generation compute
    the same without writing it out for all positions.

    Args:
        logits: (B, T, V).
        input_ids: (B, T).
        mask_token_id: token that stands for what is masked.
    """
    predicted = without_mask(logits, mask_token_id).log_softmax(-1)
    itself = torch.arange(logits.shape[-1], device=logits.device) == input_ids[..., None]
    copied = torch.zeros_like(predicted).masked_fill(~itself, -torch.inf)
    return torch.where((input_ids == mask_token_id)[..., None], predicted, copied)
