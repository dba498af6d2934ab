"""Fields of the backbone `continuous_transformer`; light to import.

Names and defaults are those of stable-audio-tools; the spellings of the factory's specification
(`d_model`, `n_heads`, `n_layers`, `causal`, `use_generation_cache`) stand beside them.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from whalesong.core.config.kinds import MAX_LAYERS, MAX_WIDTH

ALIASES = ("d_model", "n_heads", "n_layers", "causal", "use_generation_cache")
"""Fields that say in other words what native ones say."""

MIN_ROTARY_DIM = 32


def _only(*allowed: Any) -> Callable[[Any], Any]:
    """A check that leaves only values under which the field changes nothing."""

    def check(value: Any) -> Any:
        if value not in allowed:
            raise ValueError(f"must be {allowed[0]!r}: what it asks for is not supported, but it "
                             f"is {value!r}")  # fmt: skip
        return value

    return check


Unsupported = Annotated[bool, AfterValidator(_only(False))]
Absent = Annotated[Any, AfterValidator(_only(None, 0, False, [], {}))]


class BackboneFields(BaseModel):
    """Base: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class AttentionFields(BackboneFields):
    """`attn_kwargs`."""

    qk_norm: Literal["none", "ln", "l2"] = "none"
    """Norm over the features of each query and key."""
    differential: Unsupported = False
    feat_scale: Unsupported = False


class FeedForwardFields(BackboneFields):
    """`ff_kwargs`."""

    mult: float = Field(4, gt=0)
    """Inner width, in units of `embed_dim`."""
    no_bias: bool = False
    glu: bool = True
    """A gate (SwiGLU) instead of a plain activation."""
    use_conv: Unsupported = False
    conv_kernel_size: int = 3


class NormFields(BackboneFields):
    """`norm_kwargs`."""

    bias: bool = False
    fix_scale: Unsupported = False
    force_fp32: bool = False
    """Accepted: norms under autocast are always computed in fp32."""
    eps: float = Field(1e-5, gt=0)


class ContinuousTransformerConfig(BackboneFields):
    """`lm.config` of the type `continuous_transformer`.

    After validation `embed_dim`, `depth` and `dim_heads` are always set.
    """

    embed_dim: int | None = Field(None, gt=0, le=MAX_WIDTH)
    """Width of the model; required, here or as `d_model`."""
    depth: int | None = Field(None, gt=0, le=MAX_LAYERS)
    """Number of layers; required, here or as `n_layers`."""
    dim_heads: int | None = Field(None, gt=0, le=MAX_WIDTH)
    """Width of a head; default 64, or `embed_dim / n_heads`."""
    d_model: int | None = Field(None, gt=0, le=MAX_WIDTH)
    """The same as `embed_dim`."""
    n_layers: int | None = Field(None, gt=0, le=MAX_LAYERS)
    """The same as `depth`."""
    n_heads: int | None = Field(None, gt=0, le=MAX_WIDTH)
    """`embed_dim / dim_heads`."""
    causal: Literal[True] = True
    use_generation_cache: bool = True
    """Accepted: generation always uses the cache, and gives the same without."""

    cross_attn_cond_dim: int = Field(0, ge=0)
    """Width of the conditions for cross-attention; 0 builds none."""
    project_cross_attn_cond: bool = False
    """Project these conditions to `embed_dim` by a small network."""
    final_cross_attn_ix: int = Field(-1, ge=-1)
    """Last layer that has cross-attention; -1 is the last of all."""
    prepend_cond_dim: int = Field(0, ge=0)
    """Width of the conditions that are prepended; 0 takes none."""
    global_cond_dim: int | None = Field(None, ge=0)
    """Width of the global condition; null or 0 takes none."""
    num_memory_tokens: int = Field(0, ge=0, le=MAX_WIDTH)
    """Learned positions before everything else."""

    rotary_pos_emb: bool = True
    use_sinusoidal_emb: bool = False
    use_abs_pos_emb: bool = False
    abs_pos_emb_max_length: int = Field(10000, gt=0, le=MAX_WIDTH)
    zero_init_branch_outputs: bool = True
    layer_scale: bool = False
    norm_type: Literal["layer_norm", "rms_norm"] = "layer_norm"
    attn_kwargs: AttentionFields = Field(default_factory=AttentionFields)
    ff_kwargs: FeedForwardFields = Field(default_factory=FeedForwardFields)
    norm_kwargs: NormFields = Field(default_factory=NormFields)

    activation: Literal["silu", "gelu", "relu"] = "silu"
    """Of the feed-forward; with `ff_kwargs.glu` it must be silu."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of the input and at the end of each branch."""
    checkpointing: bool = False
    """Recompute each block in the backward pass, to save memory."""

    conformer: Unsupported = False
    add_rope: Unsupported = False
    remove_norms: Unsupported = False
    cross_attn_rotary_pos_emb: Unsupported = False
    sliding_window: Absent = None
    local_add_cond_dim: Absent = None
    modular_local_cond_configs: Absent = None

    @model_validator(mode="after")
    def _resolved(self) -> "ContinuousTransformerConfig":
        width = self._same("embed_dim", "d_model")
        self._same("depth", "n_layers")
        heads = self.n_heads
        if heads is not None and width % heads:
            raise ValueError(f"d_model must be divisible by n_heads, but {width} is not by {heads}")
        by_heads = None if heads is None else width // heads
        if self.dim_heads is None:
            self.dim_heads = by_heads or 64
        if by_heads not in (None, self.dim_heads):
            raise ValueError(f"`dim_heads` must be {by_heads}, as `n_heads` says, but is "
                             f"{self.dim_heads}")  # fmt: skip
        if width % self.dim_heads:
            raise ValueError(f"`embed_dim` must be a multiple of the head size `dim_heads` "
                             f"({self.dim_heads}), but is {width}")  # fmt: skip
        if self.rotary_pos_emb and self.dim_heads < MIN_ROTARY_DIM:
            raise ValueError(f"the head size must be at least {MIN_ROTARY_DIM} with "
                             f"`rotary_pos_emb`, but is {self.dim_heads}")  # fmt: skip
        if self.use_sinusoidal_emb and self.use_abs_pos_emb:
            raise ValueError("`use_sinusoidal_emb` and `use_abs_pos_emb` must not both be true")
        if self.ff_kwargs.glu and self.activation != "silu":
            raise ValueError(f"`activation` must be 'silu' with `ff_kwargs.glu`, but is "
                             f"'{self.activation}'")  # fmt: skip
        return self

    def _same(self, native: str, alias: str) -> int:
        """Set both of two names of one thing, which must not contradict each other."""
        given = {getattr(self, native), getattr(self, alias)} - {None}
        if not given:
            raise ValueError(f"`{native}` must be given, here or as `{alias}`")
        if len(given) > 1:
            raise ValueError(f"`{alias}` must be `{native}` ({getattr(self, native)}), but is "
                             f"{getattr(self, alias)}")  # fmt: skip
        (value,) = given
        setattr(self, native, value)
        setattr(self, alias, value)
        return value
