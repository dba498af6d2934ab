"""Fields of the pretransforms; light to import.

A pretransform section is `{type, config, ...}`; `PRETRANSFORMS` maps each type to the model of its
`config`. Names and defaults are those of stable-audio-tools where it has the type.
"""

import difflib
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator


class CodecFields(BaseModel):
    """Base: unknown fields are refused."""

    model_config = ConfigDict(
        extra="forbid", protected_namespaces=(), use_attribute_docstrings=True, allow_inf_nan=False
    )


Fields = TypeVar("Fields", bound=CodecFields)


def parse_fields(model: type[Fields], config: Mapping[str, Any], owner: str) -> Fields:
    """Check a mapping against its model.

    Args:
        model: the fields.
        config: names and values.
        owner: what the fields belong to, for the error.

    Raises:
        ValueError: the first thing that is wrong, in one sentence.
    """
    try:
        return model.model_validate(dict(config))
    except ValidationError as error:
        first = error.errors()[0]
    name, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        raise ValueError(_describe_unknown(name, model.model_fields, owner))
    if first["type"] == "missing":
        raise ValueError(f"{owner} must give `{name}`, but does not.")
    if not name:
        raise ValueError(f"{owner} {message}.")
    raise ValueError(f"`{name}` of {owner}: {message}, but is {first['input']!r}.")


def refuse_unknown(section: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Refuse names that are not known.

    Raises:
        ValueError: the first one, and the nearest that exists.
    """
    for name in section:
        if name not in known:
            raise ValueError(_describe_unknown(name, known, owner))


def _describe_unknown(name: str, known: Iterable[str], owner: str) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"it knows {', '.join(known)}."
    return f"`{name}` is not a field of {owner}; {hint}"


class EncodecFields(CodecFields):
    """EnCodec through transformers; also `audiocraft_pretrained`."""

    model_path: str | None = None
    """Folder of an `EncodecModel`; null takes `model_type` from the hub."""
    model_type: str = "facebook/encodec_32khz"
    """Name on the hub."""
    num_quantizers: int | None = Field(None, gt=0)
    """Codebooks used; null takes all of the largest bandwidth."""
    scale: Literal[1.0] = 1.0
    quantize_on_decode: Literal[True] = True


class DacFields(CodecFields):
    """Descript audio codec through transformers."""

    model_path: str | None = None
    """Folder of a `DacModel`, or a `.pth` file of descript-audio-codec; null takes the hub."""
    model_type: Literal["44khz", "24khz", "16khz"] = "44khz"
    model_bitrate: Literal["8kbps", "16kbps"] = "8kbps"
    num_quantizers: int | None = Field(None, gt=0)
    """Codebooks used; null takes all."""
    scale: Literal[1.0] = 1.0
    quantize_on_decode: Literal[True] = True
    chunked: bool = True


class MimiFields(CodecFields):
    """Mimi through transformers."""

    model_path: str = "kyutai/mimi"
    """Folder of a `MimiModel`, or its name on the hub."""
    num_quantizers: int | None = Field(None, gt=0)
    """Codebooks used; null takes all."""


class NemoCodecFields(CodecFields):
    """NeMo's `AudioCodecModel`."""

    model_path: str
    """A `.nemo` file, or its published name."""
    num_quantizers: int | None = Field(None, gt=0)
    """Codebooks used; null takes all. Only residual quantizers can be cut."""


class MelRVQFields(CodecFields):
    """Residual k-means on log-mel frames with Griffin-Lim: `whalesong.modules.codec.mel_rvq`."""

    model_path: str
    """A `.safetensors` file that `save_codec` wrote after `fit_mel_rvq`."""
    num_quantizers: int | None = Field(None, gt=0)
    """Codebooks used; null takes all."""


class ConvNextISTFTFields(CodecFields):
    """A small neural codec trained here; see `examples/codec_lm/train_codec.py`."""

    model_path: str
    """A `.safetensors` file that `save_codec` wrote."""
    num_quantizers: int | None = Field(None, gt=0)
    """Codebooks used; null takes all."""


class AutoencoderFields(CodecFields):
    """A convolutional autoencoder with a quantizing bottleneck, in stable-audio-tools' terms."""

    encoder: dict[str, Any] | None = None
    """`{type: oobleck | seanet | dac, config, requires_grad}`"""
    decoder: dict[str, Any] | None = None
    bottleneck: dict[str, Any] | None = None
    """`{type: rvq | rvq_vae | dac_rvq | dac_rvq_vae | fsq | dithered_fsq, config}`"""
    latent_dim: int | None = None
    downsampling_ratio: int | None = None
    io_channels: int | None = None
    in_channels: int | None = None
    out_channels: int | None = None
    pretransform: dict[str, Any] | None = None
    sample_rate: int | None = None
    """Null takes that of the language model."""
    autoencoder_ckpt: str | None = None
    """Its weights: `.ckpt`, `.safetensors`, or a folder. Where `encoder` is not given, the folder
    or the neighbours of the file hold `model_config.json`, or the `.ckpt` its content."""

    @model_validator(mode="after")
    def _described(self) -> "AutoencoderFields":
        if self.encoder is None and self.autoencoder_ckpt is None:
            raise ValueError("must describe `encoder`, `decoder` and `bottleneck`, or name "
                             "`autoencoder_ckpt`, but does neither")  # fmt: skip
        return self


PRETRANSFORMS: dict[str, type[CodecFields]] = {
    "audiocraft_pretrained": EncodecFields,
    "autoencoder": AutoencoderFields,
    "convnext_istft": ConvNextISTFTFields,
    "dac_pretrained": DacFields,
    "encodec": EncodecFields,
    "mel_rvq": MelRVQFields,
    "mimi": MimiFields,
    "nemo_codec": NemoCodecFields,
}
"""Discrete pretransforms by type."""

CONTINUOUS = ("wavelet", "pqmf", "patched")
"""Pretransforms of stable-audio-tools that give no codes."""


class PretransformSection(CodecFields):
    """What may stand beside `type` and `config`; none of it changes a code."""

    enable_grad: Literal[False] = False
    """Codecs are frozen."""
    scale: float = 1.0
    model_half: bool = False
    iterate_batch: bool = False
    chunked: bool = False


def pretransform_union() -> Any:
    """All pretransform sections as one type, told apart by `type`."""
    sections = [
        create_model(
            fields.__name__.removesuffix("Fields") + "Pretransform",
            __base__=PretransformSection,
            type=(Literal[name], ...),
            config=(fields, Field(default_factory=fields) if _all_optional(fields) else ...),
        )
        for name, fields in PRETRANSFORMS.items()
    ]
    return Annotated[reduce(or_, sections), Field(discriminator="type")]


def _all_optional(fields: type[BaseModel]) -> bool:
    return not any(field.is_required() for field in fields.model_fields.values())
