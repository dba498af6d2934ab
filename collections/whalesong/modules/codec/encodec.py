"""EnCodec (Defossez et al., 2022, arXiv:2210.13438) through `transformers`."""

from collections.abc import Mapping
from typing import Self

from torch import Tensor
from transformers import EncodecConfig, EncodecModel

from whalesong.modules.codec.codec import Codec
from whalesong.modules.codec.config import EncodecFields
from whalesong.modules.codec.pretrained import (
    codebooks_used,
    describe,
    fold_parametrizations,
    load_pretrained,
    read_description,
)
from whalesong.modules.codec.receptive_field import receptive_field
from whalesong.modules.codec.seanet import SeanetStreamingDecoder, seanet_layers


class EncodecCodec(Codec):
    """EnCodec without loudness normalization or overlapping chunks (all but the 48 kHz model).

    Args:
        model: the whole model; quantizers behind `num_quantizers` are dropped from it.
        num_quantizers: codebooks to keep; None keeps all.

    Raises:
        ValueError: the model needs more than codes to decode, or has fewer codebooks.
    """

    def __init__(self, model: EncodecModel, *, num_quantizers: int | None = None) -> None:
        super().__init__()
        _check_plain(model.config)
        quantizer = model.quantizer
        self.num_codebooks = codebooks_used(num_quantizers, len(quantizer.layers))
        del quantizer.layers[self.num_codebooks :]
        quantizer.num_quantizers = self.num_codebooks
        self.encoder, self.quantizer, self.decoder = model.encoder, quantizer, model.decoder
        fold_parametrizations(self)
        config = model.config
        self.sample_rate = config.sampling_rate
        self.num_channels = config.audio_channels
        self.codebook_size = config.codebook_size
        self.downsampling_ratio = config.hop_length
        self.assets = describe(config, self.num_codebooks)
        _, right = receptive_field(seanet_layers(self.decoder))
        self.receptive_field = (None, right)  # its LSTM remembers all that came before

    @classmethod
    def from_fields(cls, fields: EncodecFields) -> Self:
        """Load pretrained weights."""
        model = load_pretrained(EncodecModel, fields.model_path or fields.model_type)
        return cls(model, num_quantizers=fields.num_quantizers)

    @classmethod
    def from_assets(cls, assets: Mapping[str, bytes]) -> Self:
        """Build without weights."""
        config, num_quantizers = read_description(assets)
        return cls(EncodecModel(EncodecConfig(**config)), num_quantizers=num_quantizers)

    def streaming_decoder(self) -> SeanetStreamingDecoder:
        """A decoder that takes codes piece by piece."""
        return SeanetStreamingDecoder(
            self,
            latents=lambda codes: self.quantizer.decode(codes.transpose(0, 1)),
            layers=list(self.decoder.layers),
        )

    def _encode(self, audio: Tensor) -> Tensor:
        return self.quantizer.encode(self.encoder(audio)).transpose(0, 1)

    def _decode(self, codes: Tensor) -> Tensor:
        return self.decoder(self.quantizer.decode(codes.transpose(0, 1)))


def _check_plain(config: EncodecConfig) -> None:
    """Refuse what codes alone cannot describe, and what mixes all frames."""
    for name, plain in (("normalize", False), ("chunk_length_s", None)):
        if (value := getattr(config, name)) != plain:
            raise ValueError(
                f"EnCodec must have `{name}: {plain}`, so that codes alone describe its audio, "
                f"but has {value}."
            )
    if config.norm_type != "weight_norm":
        raise ValueError(
            f"EnCodec must have `norm_type: weight_norm`, so that a frame depends on its "
            f"neighbours only, but has '{config.norm_type}'."
        )
