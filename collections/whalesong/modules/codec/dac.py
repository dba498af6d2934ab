"""Descript audio codec (Kumar et al., 2023, arXiv:2306.06546) through `transformers`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from torch import Tensor, nn
from transformers import DacConfig, DacModel

from whalesong.modules.codec.codec import Codec
from whalesong.modules.codec.config import DacFields
from whalesong.modules.codec.dac_weights import load_descript
from whalesong.modules.codec.pretrained import (
    codebooks_used,
    describe,
    load_pretrained,
    read_description,
)
from whalesong.modules.codec.receptive_field import decoder_layers, receptive_field


class DacCodec(Codec):
    """DAC; the few samples by which its audio is short of the last frame are silence.

    Args:
        model: the whole model; quantizers behind `num_quantizers` are dropped from it.
        num_quantizers: codebooks to keep; None keeps all.

    Raises:
        ValueError: the model has fewer codebooks.
    """

    def __init__(self, model: DacModel, *, num_quantizers: int | None = None) -> None:
        super().__init__()
        quantizer = model.quantizer
        self.num_codebooks = codebooks_used(num_quantizers, len(quantizer.quantizers))
        del quantizer.quantizers[self.num_codebooks :]
        quantizer.n_codebooks = self.num_codebooks
        self.encoder, self.quantizer, self.decoder = model.encoder, quantizer, model.decoder
        config = model.config
        self.sample_rate = config.sampling_rate
        self.codebook_size = config.codebook_size
        self.downsampling_ratio = config.hop_length
        self.assets = describe(config, self.num_codebooks)
        self.receptive_field = receptive_field(decoder_layers(self.decoder))

    @classmethod
    def from_fields(cls, fields: DacFields) -> Self:
        """Load pretrained weights from a folder, a `.pth` file of descript-audio-codec, or the hub.

        Raises:
            ValueError: the hub has no model of this bitrate.
        """
        path = fields.model_path
        if path is not None and Path(path).is_file():
            return cls(load_descript(path), num_quantizers=fields.num_quantizers)
        if path is None and fields.model_bitrate != "8kbps":
            raise ValueError(
                f"`model_bitrate: {fields.model_bitrate}` is not on the hub; give `model_path`, "
                f"the `.pth` file of descript-audio-codec."
            )
        model = load_pretrained(DacModel, path or f"descript/dac_{fields.model_type}")
        return cls(model, num_quantizers=fields.num_quantizers)

    @classmethod
    def from_assets(cls, assets: Mapping[str, bytes]) -> Self:
        """Build without weights."""
        config, num_quantizers = read_description(assets)
        return cls(DacModel(DacConfig(**config)), num_quantizers=num_quantizers)

    def _encode(self, audio: Tensor) -> Tensor:
        return self.quantizer(self.encoder(audio))[1]

    def _decode(self, codes: Tensor) -> Tensor:
        audio = self.decoder(self.quantizer.from_codes(codes)[0])
        missing = codes.shape[2] * self.downsampling_ratio - audio.shape[2]
        return nn.functional.pad(audio, (0, missing))
