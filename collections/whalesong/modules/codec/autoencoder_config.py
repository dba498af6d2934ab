"""Fields of the parts of an autoencoder, under the names of stable-audio-tools; light to import.

Options that only matter in training are accepted and not used.
"""

from typing import Any, Literal

from pydantic import Field

from whalesong.modules.codec.config import CodecFields


class OobleckFields(CodecFields):
    """Fields that both halves of an Oobleck autoencoder have."""

    channels: int = 128
    latent_dim: int = 32
    c_mults: list[int] = [1, 2, 4, 8]
    """Width of each level in `channels`, from the audio inwards."""
    strides: list[int] = [2, 4, 8, 8]
    use_snake: bool = False
    antialias_activation: Literal[False] = False


class OobleckEncoderFields(OobleckFields):
    """Convolutional encoder of stable-audio-tools."""

    in_channels: int = 2


class OobleckDecoderFields(OobleckFields):
    """Convolutional decoder of stable-audio-tools."""

    out_channels: int = 2
    use_nearest_upsample: bool = False
    final_tanh: bool = True


class SeanetFields(CodecFields):
    """Fields that both halves of EnCodec's SEANet have."""

    channels: int = 1
    dimension: int = 128
    n_filters: int = 32
    n_residual_layers: int = 1
    activation: Literal["ELU"] = "ELU"
    activation_params: dict[str, Any] = {"alpha": 1.0}
    norm: Literal["weight_norm", "none"] = "weight_norm"
    norm_params: dict[str, Any] = {}
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    dilation_base: int = 2
    causal: bool = False
    pad_mode: Literal["reflect", "constant", "replicate"] = "reflect"
    true_skip: bool = False
    compress: int = 2
    lstm: int = Field(2, ge=1)


class SeanetEncoderFields(SeanetFields):
    """EnCodec's SEANet encoder."""

    ratios: list[int] = [2, 2, 2, 2, 2]
    """Strides from the audio inwards."""


class SeanetDecoderFields(SeanetFields):
    """EnCodec's SEANet decoder."""

    ratios: list[int] = [8, 5, 4, 2]
    """Strides from the latents outwards."""
    final_activation: Literal[None, "Tanh"] = None
    final_activation_params: dict[str, Any] | None = None
    trim_right_ratio: float = 1.0


class DacEncoderFields(CodecFields):
    """Encoder of the Descript audio codec."""

    in_channels: int = 1
    latent_dim: int | None = None
    d_model: int = 64
    strides: list[int] = [2, 4, 8, 8]


class DacDecoderFields(CodecFields):
    """Decoder of the Descript audio codec."""

    latent_dim: int
    out_channels: int = 1
    channels: int = 1536
    rates: list[int] = [8, 8, 4, 2]


class RVQFields(CodecFields):
    """Residual vector quantizer with Euclidean distances."""

    dim: int = 128
    codebook_size: int = 1024
    num_quantizers: int = 8
    codebook_dim: int | None = None
    use_cosine_sim: Literal[False] = False
    heads: Literal[1] = 1
    shared_codebook: bool = False
    decay: float = 0.99
    eps: float = 1e-5
    kmeans_init: bool = True
    kmeans_iters: int = 50
    threshold_ema_dead_code: float = 2
    commitment_weight: float = 1.0
    quantize_dropout: bool = False
    quantize_dropout_cutoff_index: int = 0
    quantize_dropout_multiple_of: int = 1
    sample_codebook_temp: float = 0.0
    orthogonal_reg_weight: float = 0.0
    sync_codebook: bool | None = None


class DacRVQFields(CodecFields):
    """Residual vector quantizer of the Descript audio codec."""

    input_dim: int = 512
    n_codebooks: int = 9
    codebook_size: int = 1024
    codebook_dim: int = 8
    quantizer_dropout: float = 0.0
    quantize_on_decode: Literal[False] = False
    noise_augment_dim: Literal[0] = 0


class FSQFields(CodecFields):
    """Finite scalar quantization (Mentzer et al., 2023, arXiv:2309.15505)."""

    levels: list[int]
    num_codebooks: int = 1
    dim: int | None = None
    noise_augment_dim: Literal[0] = 0


class DitheredFSQFields(CodecFields):
    """Finite scalar quantization of equally wide cells; the dither is for training only."""

    dim: int
    levels: int | list[int]
    num_codebooks: int = 1
    dither_inference: bool = True
    noise_dropout: float = 0.05


ENCODERS: dict[str, type[CodecFields]] = {
    "dac": DacEncoderFields,
    "oobleck": OobleckEncoderFields,
    "seanet": SeanetEncoderFields,
}
"""Encoders by type."""

DECODERS: dict[str, type[CodecFields]] = {
    "dac": DacDecoderFields,
    "oobleck": OobleckDecoderFields,
    "seanet": SeanetDecoderFields,
}
"""Decoders by type."""

BOTTLENECKS: dict[str, type[CodecFields]] = {
    "dac_rvq": DacRVQFields,
    "dac_rvq_vae": DacRVQFields,
    "dithered_fsq": DitheredFSQFields,
    "fsq": FSQFields,
    "rvq": RVQFields,
    "rvq_vae": RVQFields,
}
"""Quantizing bottlenecks by type."""

OTHER_CODERS = ("local_attn", "taae")
"""Encoders and decoders of stable-audio-tools that are not here."""

CONTINUOUS_BOTTLENECKS = ("l2_norm", "softnorm", "tanh", "vae", "wasserstein")
"""Bottlenecks of stable-audio-tools that give no codes."""
