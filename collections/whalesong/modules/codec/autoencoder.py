"""Convolutional autoencoders with a quantizing bottleneck, in stable-audio-tools' terms."""

import json
import logging
import math
from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn

from whalesong.modules.codec.autoencoder_files import (
    read_model_config,
    read_weights,
    rename_weights,
)
from whalesong.modules.codec.autoencoder_parts import build_decoder, build_encoder
from whalesong.modules.codec.bottleneck import build_bottleneck
from whalesong.modules.codec.codec import Codec, StreamingDecoder
from whalesong.modules.codec.config import AutoencoderFields
from whalesong.modules.codec.pretrained import ASSET
from whalesong.modules.codec.receptive_field import (
    Upsampling,
    decoder_layers,
    receptive_field,
)
from whalesong.modules.codec.seanet import SeanetStreamingDecoder, seanet_layers

logger = logging.getLogger(__name__)

_REQUIRED = ("latent_dim", "downsampling_ratio", "io_channels")


class AutoencoderCodec(Codec):
    """An autoencoder of stable-audio-tools whose bottleneck quantizes.

    Args:
        description: the `model` section of its configuration.
        sample_rate: of the audio.

    Raises:
        AssertionError: something mandatory is missing, or the bottleneck does not quantize.
        NotImplementedError: a type that is unknown or not here.
        ValueError: parts that do not fit each other.
    """

    def __init__(self, description: Mapping[str, Any], *, sample_rate: int) -> None:
        super().__init__()
        _check_description(description)
        self.encoder = build_encoder(description["encoder"])
        self.decoder = build_decoder(description["decoder"])
        self.bottleneck = build_bottleneck(description.get("bottleneck"))
        self.soft_clip = bool(description["decoder"].get("soft_clip", False))
        self.sample_rate = sample_rate
        self.num_channels = description["io_channels"]
        self.num_codebooks = self.bottleneck.num_codebooks
        self.codebook_size = self.bottleneck.codebook_size
        self.downsampling_ratio = description["downsampling_ratio"]
        content = {"model": dict(description), "sample_rate": sample_rate}
        self.assets = {ASSET: json.dumps(content, indent=1, sort_keys=True).encode()}
        is_seanet = description["decoder"]["type"] == "seanet"
        layers = seanet_layers(self.decoder) if is_seanet else decoder_layers(self.decoder)
        left, right = receptive_field(layers)
        self.receptive_field = (None if is_seanet else left, right)
        strides = [layer.stride for layer in layers if isinstance(layer, Upsampling)]
        self._check_parts(description, math.prod(strides))

    @classmethod
    def from_fields(cls, fields: AutoencoderFields) -> Self:
        """Build from a section or from what lies beside the weights, and load these.

        Raises:
            ValueError: files that cannot be read or do not fit; others as in the constructor.
        """
        path = fields.autoencoder_ckpt
        description = fields.model_dump(exclude={"sample_rate", "autoencoder_ckpt"})
        sample_rate = fields.sample_rate
        if fields.encoder is None:
            config = read_model_config(path)
            description = config.get("model", config)
            sample_rate = config.get("sample_rate", sample_rate)
        if sample_rate is None:
            raise AssertionError("sample_rate must be specified in model config")
        codec = cls(description, sample_rate=sample_rate)
        if path is None:
            logger.warning("The autoencoder has random weights: `autoencoder_ckpt` is not given.")
            return codec
        kinds = {part: description[part]["type"] for part in ("encoder", "decoder", "bottleneck")}
        try:
            codec.load_state_dict(rename_weights(read_weights(path), **kinds))
        except RuntimeError as error:
            cause = str(error).strip().splitlines()[1].strip()
            raise ValueError(f"the weights in '{path}' do not fit its layers: {cause}") from error
        return codec

    @classmethod
    def from_assets(cls, assets: Mapping[str, bytes]) -> Self:
        """Build without weights."""
        content = json.loads(assets[ASSET])
        if set(content) != {"model", "sample_rate"}:
            raise ValueError(f"`{ASSET}` must have the keys `model` and `sample_rate` only.")
        return cls(content["model"], sample_rate=content["sample_rate"])

    def streaming_decoder(self) -> StreamingDecoder:
        """A decoder that takes codes piece by piece."""
        if self.receptive_field[0] is not None:
            return StreamingDecoder(self)
        layers = [*self.decoder.layers, nn.Tanh() if self.soft_clip else nn.Identity()]
        return SeanetStreamingDecoder(self, latents=self.bottleneck.decode, layers=layers)

    def _encode(self, audio: Tensor) -> Tensor:
        num_frames = audio.shape[2] // self.downsampling_ratio
        return self.bottleneck.encode(self.encoder(audio)[:, :, :num_frames])

    def _decode(self, codes: Tensor) -> Tensor:
        audio = self.decoder(self.bottleneck.decode(codes))
        if self.soft_clip:
            audio = audio.tanh()
        missing = codes.shape[2] * self.downsampling_ratio - audio.shape[2]
        return nn.functional.pad(audio, (0, missing))

    def _check_parts(self, description: Mapping[str, Any], upsampling: int) -> None:
        convs = [module for module in self.encoder.modules() if isinstance(module, nn.Conv1d)]
        downsampling = math.prod(conv.stride[0] for conv in convs)
        for name, ratio in (("encoder", downsampling), ("decoder", upsampling)):
            if ratio != self.downsampling_ratio:
                raise ValueError(
                    f"the strides of `{name}` must multiply to `downsampling_ratio` "
                    f"({self.downsampling_ratio}), but give {ratio}."
                )
        if description["latent_dim"] != self.bottleneck.dim:
            raise ValueError(
                f"the bottleneck must be as wide as `latent_dim` ({description['latent_dim']}), "
                f"but is {self.bottleneck.dim} wide."
            )


def _check_description(description: Mapping[str, Any]) -> None:
    """The checks that need no layers; texts are those of stable-audio-tools where it has them."""
    for part in ("encoder", "decoder"):
        if description.get(part) is None:
            raise ValueError(f"an autoencoder must have a section `{part}`, but has none.")
    for key in _REQUIRED:
        if description.get(key) is None:
            raise AssertionError(f"{key} must be specified in model config")
    if description.get("pretransform") is not None:
        raise NotImplementedError("An autoencoder behind another `pretransform` is not implemented")
    channels = description["io_channels"]
    for key in ("in_channels", "out_channels"):
        if description.get(key) not in (None, channels):
            raise ValueError(
                f"`{key}` must be `io_channels` ({channels}), but is {description[key]}."
            )
