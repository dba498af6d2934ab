"""Bounds of what our own parts take as arguments, by name, for the check before any import.

The classes check what their arguments mean together; here stands what no value may be.
"""

from pydantic import ConfigDict

from whalesong.core.config.kinds import (
    AtLeastOne,
    BelowOne,
    Count,
    Layers,
    NotNegative,
    Positive,
    Seed,
    Share,
    Width,
)
from whalesong.core.schema import Schema


class EncoderConfig(Schema):
    """Arguments of NeMo's encoders and front ends, which say nothing of their types."""

    model_config = ConfigDict(extra="allow")

    att_context_size: list[int] | list[list[int]] | None = None
    conv_context_size: list[int] | str | None = None
    d_model: Width | None = None
    n_layers: Layers | None = None
    n_heads: Width | None = None
    subsampling_factor: Width | None = None
    ff_expansion_factor: Width | None = None
    conv_kernel_size: Width | None = None
    pos_emb_max_len: Width | None = None
    dropout: BelowOne | None = None
    dropout_pre_encoder: BelowOne | None = None
    dropout_emb: BelowOne | None = None
    dropout_att: BelowOne | None = None
    features: Width | None = None
    n_fft: Width | None = None
    window_size: Positive | None = None
    window_stride: Positive | None = None
    normalize: str | dict[str, list[float]] | None = None


class PartConfig(Schema):
    """Arguments of networks, adapters, losses and predictors."""

    d_model: Width | None = None
    hidden_dim: Width | None = None
    condition_dim: Width | None = None
    num_heads: Width | None = None
    num_queries: Width | None = None
    window_frames: Width | None = None
    stacking_factor: Width | None = None
    num_layers: Layers | None = None
    ff_mult: Positive | None = None
    dropout: BelowOne | None = None
    embedding_std: NotNegative | None = None
    prompt_positions: Count | None = None
    stop_loss_weight: NotNegative | None = None
    temperature: NotNegative | None = None
    top_k: Count | None = None
    top_p: Share | None = None
    threshold: Share | None = None
    stop_threshold: Share | None = None
    num_steps: AtLeastOne | None = None
    max_length: AtLeastOne | None = None
    max_new_tokens: AtLeastOne | None = None
    num_examples: AtLeastOne | None = None
    seed: Seed | None = None
