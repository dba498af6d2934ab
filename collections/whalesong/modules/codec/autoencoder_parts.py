"""Encoders and decoders of autoencoders, by their types in stable-audio-tools."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from transformers import EncodecConfig
from transformers.models.dac.modeling_dac import DacDecoder, DacEncoder
from transformers.models.encodec.modeling_encodec import EncodecDecoder, EncodecEncoder

from whalesong.modules.codec.autoencoder_config import (
    DECODERS,
    ENCODERS,
    OTHER_CODERS,
    DacDecoderFields,
    DacEncoderFields,
    SeanetDecoderFields,
    SeanetEncoderFields,
    SeanetFields,
)
from whalesong.modules.codec.config import CodecFields, parse_fields, refuse_unknown
from whalesong.modules.codec.oobleck import OobleckDecoder, OobleckEncoder
from whalesong.modules.codec.pretrained import fold_parametrizations


def build_encoder(section: Mapping[str, Any]) -> nn.Module:
    """Build `{type, config}`: audio (B, C, N) to latents (B, D, F).

    Raises:
        AssertionError: no type.
        NotImplementedError: a type of stable-audio-tools that is not here.
        ValueError: unknown type or field, or a wrong value.
    """
    fields = _parse(section, "Encoder", ENCODERS)
    if section["type"] == "seanet":
        return _seanet_encoder(fields)
    if section["type"] == "dac":
        return DacEncoderPart(fields)
    return OobleckEncoder(**fields.model_dump(exclude={"antialias_activation"}))


def build_decoder(section: Mapping[str, Any]) -> nn.Module:
    """Build `{type, config}`: latents (B, D, F) to audio (B, C, N); errors as `build_encoder`."""
    fields = _parse(section, "Decoder", DECODERS)
    if section["type"] == "seanet":
        return _seanet_decoder(fields)
    if section["type"] == "dac":
        return DacDecoderPart(fields)
    return OobleckDecoder(**fields.model_dump(exclude={"antialias_activation"}))


def _parse(
    section: Mapping[str, Any], part: str, models: Mapping[str, type[CodecFields]]
) -> CodecFields:
    refuse_unknown(section, ("type", "config", "requires_grad", "soft_clip"), f"`{part.lower()}`")
    kind = section.get("type")
    if kind is None:
        raise AssertionError(f"{part} type must be specified")
    if kind in OTHER_CODERS:
        raise NotImplementedError(
            f"{part}s of type '{kind}' are not implemented; there are {', '.join(models)}."
        )
    if kind not in models:
        raise ValueError(f"Unknown {part.lower()} type {kind}; there are {', '.join(models)}.")
    owner = f"`{part.lower()}.config` of type '{kind}'"
    fields = parse_fields(models[kind], section.get("config") or {}, owner)
    if (mults := getattr(fields, "c_mults", [])) and len(mults) != len(fields.strides):
        raise ValueError(
            f"`c_mults` of {owner} must have {len(fields.strides)} values, one for each of "
            f"`strides`, but has {len(mults)}."
        )
    return fields


def _seanet_encoder(fields: SeanetEncoderFields) -> nn.Module:
    encoder = EncodecEncoder(_seanet_config(fields, fields.ratios[::-1]))
    fold_parametrizations(encoder)
    return encoder


def _seanet_decoder(fields: SeanetDecoderFields) -> nn.Module:
    config = _seanet_config(fields, fields.ratios, trim_right_ratio=fields.trim_right_ratio)
    decoder = EncodecDecoder(config)
    fold_parametrizations(decoder)
    if fields.final_activation is not None:
        decoder.layers.append(nn.Tanh())
    return decoder


def _seanet_config(fields: SeanetFields, ratios: list[int], **others: Any) -> EncodecConfig:
    """The names of `transformers` for the same things."""
    return EncodecConfig(
        audio_channels=fields.channels,
        hidden_size=fields.dimension,
        num_filters=fields.n_filters,
        num_residual_layers=fields.n_residual_layers,
        upsampling_ratios=ratios,
        kernel_size=fields.kernel_size,
        last_kernel_size=fields.last_kernel_size,
        residual_kernel_size=fields.residual_kernel_size,
        dilation_growth_rate=fields.dilation_base,
        use_causal_conv=fields.causal,
        pad_mode=fields.pad_mode,
        use_conv_shortcut=not fields.true_skip,
        compress=fields.compress,
        num_lstm_layers=fields.lstm,
        **others,
    )


class DacEncoderPart(nn.Module):
    """Encoder of the Descript audio codec with a projection to the width of the latents."""

    def __init__(self, fields: DacEncoderFields) -> None:
        super().__init__()
        width = fields.d_model * 2 ** len(fields.strides)
        config = SimpleNamespace(
            encoder_hidden_size=fields.d_model,
            downsampling_ratios=fields.strides,
            hidden_size=width,
        )
        self.encoder = DacEncoder(config)
        if fields.in_channels != 1:
            self.encoder.conv1 = nn.Conv1d(fields.in_channels, fields.d_model, 7, padding=3)
        self.proj_out: nn.Module = nn.Identity()
        if fields.latent_dim is not None:
            self.proj_out = nn.Conv1d(width, fields.latent_dim, 1)

    def forward(self, audio: Tensor) -> Tensor:
        """(B, C, N) -> (B, D, F)."""
        return self.proj_out(self.encoder(audio))


class DacDecoderPart(nn.Module):
    """Decoder of the Descript audio codec for any number of channels."""

    def __init__(self, fields: DacDecoderFields) -> None:
        super().__init__()
        config = SimpleNamespace(
            hidden_size=fields.latent_dim,
            decoder_hidden_size=fields.channels,
            upsampling_ratios=fields.rates,
        )
        self.decoder = DacDecoder(config)
        if fields.out_channels != 1:
            width = fields.channels // 2 ** len(fields.rates)
            self.decoder.conv2 = nn.Conv1d(width, fields.out_channels, 7, padding=3)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, D, F) -> (B, C, N)."""
        return self.decoder(latents)
