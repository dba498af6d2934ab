"""NeMo's `AudioCodecModel`: encoder, quantizer and decoder out of a `.nemo` file.

Discriminators and losses stay behind, and the file is read without running code from it.
"""

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch
from nemo.collections.tts.modules.audio_codec_modules import (
    CausalConv1dNorm,
    CausalConvTranspose1dNorm,
    Conv1dNorm,
    ConvTranspose1dNorm,
    HiFiGANResLayer,
)
from nemo.collections.tts.modules.encodec_modules import ResidualVectorQuantizer
from nemo.core.classes.common import safe_instantiate
from torch import Tensor, nn

from whalesong.modules.codec.codec import Codec
from whalesong.modules.codec.config import NemoCodecFields
from whalesong.modules.codec.dac_weights import fold_weight_norm
from whalesong.modules.codec.pretrained import (
    ASSET,
    codebooks_used,
    fold_parametrizations,
    read_description,
)
from whalesong.modules.codec.receptive_field import (
    Reach,
    Upsampling,
    conv_reach,
    receptive_field,
)
from whalesong.modules.llm import describe_missing
from whalesong.modules.nemo_file import check_classes, read_nemo

_PARTS = ("audio_encoder", "vector_quantizer", "audio_decoder")
_MODULES = "nemo.collections.tts.modules."
_CLASSES = frozenset(
    [
        *(
            f"{_MODULES}audio_codec_modules.{name}"
            for name in (
                "CausalHiFiGANDecoder",
                "CausalHiFiGANEncoder",
                "FiniteScalarQuantizer",
                "FullBandMelEncoder",
                "GroupFiniteScalarQuantizer",
                "HiFiGANDecoder",
                "HiFiGANEncoder",
                "MelSpectrogramProcessor",
                "MultiBandMelEncoder",
                "MultiResolutionSTFTEncoder",
                "ResNetDecoder",
                "ResNetEncoder",
                "STFTProcessor",
            )
        ),
        *(
            f"{_MODULES}encodec_modules.{name}"
            for name in (
                "GroupResidualVectorQuantizer",
                "ResidualVectorQuantizer",
                "SEANetDecoder",
                "SEANetEncoder",
            )
        ),
    ]
)
"""Parts of a codec; NeMo's own list names whole packages with all their functions."""


class NemoCodec(Codec):
    """The three parts of an `AudioCodecModel` that inference needs.

    Args:
        config: its `model_config.yaml`.
        num_quantizers: codebooks to keep, of a residual quantizer; None keeps all.

    Raises:
        ValueError: it has no quantizer, a second codec inside, or another output rate; or the
            codebooks cannot be cut.
    """

    def __init__(self, config: Mapping[str, Any], *, num_quantizers: int | None = None) -> None:
        super().__init__()
        _check_config(config)
        self.audio_encoder = safe_instantiate(dict(config["audio_encoder"]))
        self.vector_quantizer = safe_instantiate(dict(config["vector_quantizer"]))
        self.audio_decoder = safe_instantiate(dict(config["audio_decoder"]))
        fold_parametrizations(self)
        self.sample_rate = config["sample_rate"]
        self.downsampling_ratio = config["samples_per_frame"]
        self.num_codebooks = _cut(self.vector_quantizer, num_quantizers)
        self.codebook_size = int(self.vector_quantizer.codebook_size)
        kept = {key: config[key] for key in (*_PARTS, "sample_rate", "samples_per_frame")}
        content = {"config": kept, "num_quantizers": num_quantizers}
        self.assets = {ASSET: json.dumps(content, indent=1, sort_keys=True).encode()}
        left, right = receptive_field(_decoder_layers(self.audio_decoder))
        has_memory = any(isinstance(m, nn.RNNBase) for m in self.audio_decoder.modules())
        self.receptive_field = (None if has_memory else left, right)
        self._min_encoded = _min_frames(self.audio_encoder, self.downsampling_ratio)

    @classmethod
    def from_fields(cls, fields: NemoCodecFields) -> Self:
        """Load a `.nemo` file.

        Raises:
            ValueError: it cannot be found, or is no audio codec.
        """
        config, weights = read_nemo(_find(fields.model_path))
        codec = cls(config, num_quantizers=fields.num_quantizers)
        weights = fold_weight_norm(weights)
        own = codec.state_dict().keys()
        if missing := sorted(own - weights.keys()):
            raise ValueError(
                f"'{fields.model_path}' lacks {len(missing)} weights, first '{missing[0]}'."
            )
        codec.load_state_dict({name: weights[name] for name in own})
        return codec

    @classmethod
    def from_assets(cls, assets: Mapping[str, bytes]) -> Self:
        """Build without weights."""
        config, num_quantizers = read_description(assets)
        return cls(config, num_quantizers=num_quantizers)

    def _encode(self, audio: Tensor) -> Tensor:
        num_frames = audio.shape[2] // self.downsampling_ratio
        # Reflection needs something to reflect: very short audio is followed by silence.
        short = max(self._min_encoded - num_frames, 0) * self.downsampling_ratio
        audio = nn.functional.pad(audio[:, 0], (0, short))
        encoded, lens = self.audio_encoder(audio=audio, audio_len=_lens(audio))
        codes = self.vector_quantizer.encode(inputs=encoded, input_len=lens)
        return codes.transpose(0, 1)[:, :, :num_frames].long()

    def _decode(self, codes: Tensor) -> Tensor:
        num_frames = codes.shape[2]
        short = max(self.receptive_field[1] + 1 - num_frames, 0)
        codes = torch.cat([codes, codes[:, :, -1:].expand(-1, -1, short)], dim=2)
        lens = _lens(codes)
        latents = self.vector_quantizer.decode(indices=codes.transpose(0, 1), input_len=lens)
        audio, _ = self.audio_decoder(inputs=latents, input_len=lens)
        return audio[:, None, : num_frames * self.downsampling_ratio]


def _lens(rows: Tensor) -> Tensor:
    return torch.full((len(rows),), rows.shape[-1], device=rows.device)


def _check_config(config: Mapping[str, Any]) -> None:
    for key in (*_PARTS, "sample_rate", "samples_per_frame"):
        if config.get(key) is None:
            raise ValueError(f"a NeMo audio codec must have `{key}`, but this one has none.")
    for key in _PARTS:
        check_classes(config[key], _CLASSES, path=key)
    for key in ("semantic_codec", "semantic_codec_path"):
        if config.get(key):
            raise ValueError(f"NeMo audio codecs with a `{key}` are not supported.")
    if (rate := config.get("output_sample_rate", config["sample_rate"])) != config["sample_rate"]:
        raise ValueError(
            f"`output_sample_rate` of a NeMo audio codec must be its `sample_rate` "
            f"({config['sample_rate']}), but is {rate}."
        )


def _cut(quantizer: nn.Module, num_quantizers: int | None) -> int:
    """Drop codebooks in place; return how many are left."""
    count = codebooks_used(num_quantizers, quantizer.num_codebooks)
    if count == quantizer.num_codebooks:
        return count
    if not isinstance(quantizer, ResidualVectorQuantizer):
        raise ValueError(
            f"`num_quantizers` must be {quantizer.num_codebooks} or null, since the codebooks of "
            f"{type(quantizer).__name__} do not refine each other, but is {num_quantizers}."
        )
    del quantizer.codebooks[count:]
    return count


def _find(model_path: str) -> Path:
    """The file itself, or that of a published name."""
    if Path(model_path).is_file():
        return Path(model_path)
    from nemo.collections.tts.models import AudioCodecModel  # slow; files do without

    try:
        return Path(AudioCodecModel.from_pretrained(model_path, return_model_file=True))
    except (OSError, ValueError) as error:
        raise ValueError(describe_missing(model_path, error)) from error


def _decoder_layers(decoder: nn.Module) -> list[Reach | Upsampling]:
    """The convolutions of a NeMo decoder, in the order in which they run."""
    upsampling = getattr(decoder, "up_sample_conv_layers", None)
    residual = getattr(decoder, "res_layers", None) or getattr(decoder, "res_blocks", None)
    if upsampling is None or residual is None:
        # An order that is not known: at the rate of frames, every layer reaches farthest.
        return sorted(_layers(decoder), key=lambda layer: isinstance(layer, Upsampling))
    middle = chain.from_iterable(zip(upsampling, residual, strict=True))
    stages = [decoder.pre_conv, *middle, decoder.post_conv]
    return list(chain.from_iterable(map(_layers, stages)))


def _layers(module: nn.Module) -> Iterator[Reach | Upsampling]:
    if isinstance(module, HiFiGANResLayer):
        branches = [list(_layers(block)) for block in module.res_blocks]
        left = max(sum(layer.left for layer in branch) for branch in branches)
        yield Reach(left, max(sum(layer.right for layer in branch) for branch in branches))
    elif isinstance(module, CausalConv1dNorm):
        yield conv_reach(module.conv, causal=True, reflect=module.extra_pad_mode == "reflect")
    elif isinstance(module, Conv1dNorm):
        yield conv_reach(module.conv, reflect=module.conv.padding_mode == "reflect")
    elif isinstance(module, CausalConvTranspose1dNorm):
        conv = module.conv
        yield Upsampling(conv.kernel_size[0], conv.stride[0], module.padding_left)
    elif isinstance(module, ConvTranspose1dNorm):
        conv = module.conv
        yield Upsampling(conv.kernel_size[0], conv.stride[0], conv.padding[0])
    else:
        for child in module.children():
            yield from _layers(child)


def _min_frames(encoder: nn.Module, samples_per_frame: int) -> int:
    """Frames of the shortest audio whose edges all convolutions can reflect."""
    downsampling = getattr(encoder, "down_sample_conv_layers", None)
    if downsampling is None:
        return 1 + max(map(_reflected, encoder.modules()))
    rate, needed = 1, 1
    middle = chain.from_iterable(zip(encoder.res_layers, downsampling, strict=True))
    for stage in (encoder.pre_conv, *middle, encoder.post_conv):
        needed = max(needed, rate * (1 + max(map(_reflected, stage.modules()))))
        rate *= stage.conv.stride[0] if isinstance(stage, Conv1dNorm | CausalConv1dNorm) else 1
    return -(-needed // samples_per_frame)


def _reflected(module: nn.Module) -> int:
    """Samples that a convolution mirrors at each edge."""
    is_reflecting = isinstance(module, nn.Conv1d) and module.padding_mode == "reflect"
    return module.padding[0] if is_reflecting else 0
