"""`build_codec`: from a pretransform section to a `Codec`."""

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from whalesong.modules.codec.codec import Codec
from whalesong.modules.codec.config import (
    CONTINUOUS,
    PRETRANSFORMS,
    CodecFields,
    PretransformSection,
    parse_fields,
    refuse_unknown,
)
from whalesong.modules.precision import default_dtype

logger = logging.getLogger(__name__)

_CLASSES = {
    "audiocraft_pretrained": "encodec.EncodecCodec",
    "autoencoder": "autoencoder.AutoencoderCodec",
    "convnext_istft": "convnext_istft.ConvNextISTFTCodec",
    "dac_pretrained": "dac.DacCodec",
    "encodec": "encodec.EncodecCodec",
    "mel_rvq": "mel_rvq.MelRVQCodec",
    "mimi": "mimi.MimiCodec",
    "nemo_codec": "nemo_codec.NemoCodec",
}
_FILES = (".nemo", ".pth", ".ckpt", ".safetensors")


def build_codec(
    section: Mapping[str, Any],
    *,
    assets: Mapping[str, bytes] | None = None,
    sample_rate: int | None = None,
) -> Codec:
    """Build a frozen codec in fp32.

    Args:
        section: `{type, config, ...}`; `config` holds the fields of `PRETRANSFORMS[type]`.
        assets: None loads the pretrained parts; those of a codec built from the same section
            build it again without weights, which come from a state dict.
        sample_rate: of an `autoencoder` whose section does not tell; others know theirs.

    Raises:
        AssertionError: no type, or a pretransform without codes.
        NotImplementedError: unknown type.
        ValueError: unknown field, wrong value, or pretrained parts that cannot be read.
        FileNotFoundError: a file or folder that does not exist.
    """
    fields = parse_section(section)
    if "sample_rate" in type(fields).model_fields and fields.sample_rate is None:
        fields = fields.model_copy(update={"sample_rate": sample_rate})
    if assets is None:
        _check_path(fields)
    module, name = _CLASSES[section["type"]].split(".")
    codec_class = getattr(importlib.import_module(f"{__package__}.{module}"), name)
    with default_dtype(torch.float32):
        if assets is None:
            codec = codec_class.from_fields(fields)
        else:
            codec = codec_class.from_assets(assets)
    return codec.requires_grad_(False).eval()


def parse_section(section: Mapping[str, Any]) -> CodecFields:
    """Check a pretransform section without loading anything; errors as in `build_codec`."""
    kind = section.get("type")
    if kind is None:
        raise AssertionError("type must be specified in pretransform config")
    if str(kind) in CONTINUOUS:
        raise AssertionError("Pretransform must be discrete")
    if str(kind) not in PRETRANSFORMS:
        raise NotImplementedError(f"Unknown pretransform type: {kind}")
    _check_options(section)
    owner = f"`config` of a pretransform of type '{kind}'"
    return parse_fields(PRETRANSFORMS[kind], section.get("config") or {}, owner)


def _check_options(section: Mapping[str, Any]) -> None:
    """Check what stands beside `type` and `config`; warn where it is set, but without effect."""
    known = PretransformSection.model_fields
    owner = f"a pretransform of type '{section['type']}'"
    refuse_unknown(section, ("type", "config", *known), owner)
    options = {key: value for key, value in section.items() if key in known}
    if options.get("enable_grad"):
        raise ValueError("`enable_grad` must be false, since codecs are frozen, but is true.")
    ignored = [key for key, value in options.items() if value != known[key].default]
    if ignored:
        logger.warning("Fields of the pretransform without effect on codes: %s.", ignored)


def _check_path(fields: CodecFields) -> None:
    """Refuse a path to nothing before anything heavy is imported; hub names are no paths."""
    for name in ("model_path", "autoencoder_ckpt"):
        path = Path(getattr(fields, name, None) or ".")
        if (path.is_absolute() or path.suffix in _FILES) and not path.exists():
            raise FileNotFoundError(f"`{name}` of the pretransform is '{path}': no such file.")
