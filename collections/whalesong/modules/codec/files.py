"""Our own codecs in one file: weights as safetensors, type and sizes in its metadata."""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

from pydantic import ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from whalesong.modules.codec.codec import Codec
from whalesong.modules.codec.config import CodecFields, ConvNextISTFTFields, MelRVQFields
from whalesong.modules.codec.quantizer import ResidualVectorQuantizer

ASSET = "codec.json"
"""The one asset of our own codecs: `{"type", "config"}`."""


class CodecSizes(CodecFields):
    """Base of what our own codecs are built from."""

    model_config = ConfigDict(frozen=True)

    sample_rate: int = Field(16000, gt=0)
    hop_length: int = Field(320, gt=0)
    """Samples of a frame."""
    num_codebooks: int = Field(4, gt=0)
    codebook_size: int = Field(512, gt=0)


class OwnCodec(Codec):
    """A codec that is made here, has a residual quantizer, and is kept in one file.

    Attributes:
        type_name: its name among the pretransforms.
        sizes_class: schema of its sizes.
    """

    type_name: ClassVar[str]
    sizes_class: ClassVar[type[CodecSizes]]
    quantizer: ResidualVectorQuantizer

    def __init__(self, sizes: CodecSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.sample_rate = sizes.sample_rate
        self.downsampling_ratio = sizes.hop_length
        self.num_codebooks = sizes.num_codebooks
        self.codebook_size = sizes.codebook_size
        description = {"type": self.type_name, "config": sizes.model_dump()}
        self.assets = {ASSET: json.dumps(description).encode()}

    @classmethod
    def from_fields(cls, fields: MelRVQFields | ConvNextISTFTFields) -> Self:
        """Load the file that a pretransform section names.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds something else, or fewer codebooks than asked for.
        """
        codec = cls._checked(load_codec(fields.model_path), fields.model_path)
        return codec.truncated(fields.num_quantizers)

    @classmethod
    def from_assets(cls, assets: Mapping[str, bytes]) -> Self:
        """The codec with empty weights; they come later from a state dict."""
        return cls._checked(codec_from_assets(assets), ASSET)

    def truncated(self, num_codebooks: int | None) -> Self:
        """The codec with its first codebooks only; itself if None.

        Raises:
            ValueError: there are fewer.
        """
        if num_codebooks is None:
            return self
        if not 0 < num_codebooks <= self.num_codebooks:
            raise ValueError(
                f"`num_quantizers` must be from 1 to {self.num_codebooks}, the codebooks of the "
                f"codec, but is {num_codebooks}."
            )
        codec = type(self)(self.sizes.model_copy(update={"num_codebooks": num_codebooks}))
        state = self.state_dict()
        state["quantizer.codebooks"] = state["quantizer.codebooks"][:num_codebooks]
        codec.load_state_dict(state)
        return codec.to(self.quantizer.codebooks.device)

    @classmethod
    def _checked(cls, codec: "OwnCodec", source: str) -> Self:
        if not isinstance(codec, cls):
            raise ValueError(
                f"{source}: must hold a codec of type {cls.type_name!r}, "
                f"but holds {codec.type_name!r}."
            )
        return codec


def save_codec(codec: OwnCodec, path: str | Path) -> None:
    """Write a codec as one `.safetensors` file; an old file stays whole until the new one is."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"type": codec.type_name, "config": codec.sizes.model_dump_json()}
    state = {name: tensor.contiguous() for name, tensor in codec.state_dict().items()}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.writing")
    try:
        save_file(state, temporary, metadata=metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_codec(path: str | Path) -> OwnCodec:
    """Read a codec that `save_codec` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such codec file.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        codec = _empty(metadata["type"], json.loads(metadata["config"]))
        codec.load_state_dict(state)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: is not a whole file of `save_codec`.") from error
    return codec


def codec_from_assets(assets: Mapping[str, bytes]) -> OwnCodec:
    """Build a codec from its `assets`, with empty weights.

    Raises:
        ValueError: they describe no codec of ours.
    """
    try:
        description = json.loads(assets[ASSET])
        if set(description) != {"type", "config"}:
            raise ValueError("unknown keys")
        return _empty(description["type"], description["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"`assets` must hold {ASSET!r} of one of our own codecs.") from error


def _empty(type_name: str, sizes: Mapping[str, object]) -> OwnCodec:
    codec_class = _codec_classes()[type_name]
    return codec_class(codec_class.sizes_class.model_validate(sizes))


def _codec_classes() -> dict[str, type[OwnCodec]]:
    # Imported here, because both are subclasses of `OwnCodec`.
    from whalesong.modules.codec.convnext_istft import ConvNextISTFTCodec
    from whalesong.modules.codec.mel_rvq import MelRVQCodec

    return {kind.type_name: kind for kind in (ConvNextISTFTCodec, MelRVQCodec)}
