"""Mimi (Defossez et al., 2024, arXiv:2410.00037) through `transformers`."""

import math
from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn
from transformers import MimiConfig, MimiModel
from transformers.models.mimi.modeling_mimi import (
    MimiConv1d,
    MimiConvTranspose1d,
    MimiEuclideanCodebook,
    MimiTransformerModel,
)

from whalesong.modules.codec.codec import Codec
from whalesong.modules.codec.config import MimiFields
from whalesong.modules.codec.pretrained import (
    codebooks_used,
    describe,
    load_pretrained,
    read_description,
)
from whalesong.modules.codec.receptive_field import (
    Reach,
    Upsampling,
    conv_reach,
    receptive_field,
)


class MimiCodec(Codec):
    """Mimi: the first codebooks are semantic, the others a residual quantizer of their own.

    Args:
        model: the whole model; acoustic quantizers behind `num_quantizers` are dropped from it.
        num_quantizers: codebooks to keep, at least the semantic ones; None keeps all.

    Raises:
        ValueError: the model has fewer codebooks, or more semantic ones.
    """

    def __init__(self, model: MimiModel, *, num_quantizers: int | None = None) -> None:
        super().__init__()
        config, quantizer = model.config, model.quantizer
        semantic = config.num_semantic_quantizers
        self.num_codebooks = codebooks_used(num_quantizers, config.num_quantizers)
        if self.num_codebooks < semantic:
            raise ValueError(
                f"`num_quantizers` must be at least {semantic}, the semantic codebooks of Mimi, "
                f"but is {num_quantizers}."
            )
        acoustic = quantizer.acoustic_residual_vector_quantizer
        del acoustic.layers[self.num_codebooks - semantic :]
        self.encoder, self.quantizer, self.decoder = model.encoder, quantizer, model.decoder
        self.sample_rate = config.sampling_rate
        self.num_channels = config.audio_channels
        self.codebook_size = config.codebook_size
        self.downsampling_ratio = math.prod(config.upsampling_ratios) * config.latent_stride
        self.assets = describe(config, self.num_codebooks)
        self.receptive_field = receptive_field(_layers(self.decoder))

    @classmethod
    def from_fields(cls, fields: MimiFields) -> Self:
        """Load pretrained weights."""
        model = load_pretrained(MimiModel, fields.model_path)
        return cls(model, num_quantizers=fields.num_quantizers)

    @classmethod
    def from_assets(cls, assets: Mapping[str, bytes]) -> Self:
        """Build without weights."""
        config, num_quantizers = read_description(assets)
        return cls(MimiModel(MimiConfig(**config)), num_quantizers=num_quantizers)

    def _encode(self, audio: Tensor) -> Tensor:
        latents = self.encoder(audio).latents
        return self.quantizer.encode(latents, self.num_codebooks).transpose(0, 1)

    def _decode(self, codes: Tensor) -> Tensor:
        return self.decoder(self.quantizer.decode(codes)).audio_values

    def _load_from_state_dict(self, *args: Any) -> None:
        self._forget_codebooks()
        super()._load_from_state_dict(*args)

    def _apply(self, fn, recurse: bool = True) -> Self:
        self._forget_codebooks()
        return super()._apply(fn, recurse)

    def _forget_codebooks(self) -> None:
        """`transformers` keeps computed codebooks as plain attributes, which never follow."""
        for module in self.modules():
            if isinstance(module, MimiEuclideanCodebook):
                module._embed = None


def _layers(decoder: nn.Module) -> list[Reach | Upsampling]:
    """The layers of Mimi's decoder: upsampling, transformer, SEANet."""
    layers: list[Reach | Upsampling] = []
    for module in decoder.modules():
        if isinstance(module, MimiConv1d):
            reflect = module.pad_mode == "reflect"
            layers.append(conv_reach(module.conv, causal=module.causal, reflect=reflect))
        elif isinstance(module, MimiConvTranspose1d):
            conv = module.conv
            layers.append(Upsampling(conv.kernel_size[0], conv.stride[0], module.padding_left))
        elif isinstance(module, MimiTransformerModel):
            window = module.config.sliding_window - 1
            layers.append(Reach(window * module.config.num_hidden_layers, 0))
    return layers
