"""Weights of the original descript-audio-codec under the names of `transformers`' `DacModel`."""

import pickle
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DacConfig, DacModel

_WEIGHT_NORM = (
    ("weight_g", "weight_v", "weight"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1", "weight"),
)
_FOLDED = tuple(name for names in _WEIGHT_NORM for name in names[:2])
_UNIT = ("snake1", "conv1", "snake2", "conv2")


def load_descript(path: str) -> DacModel:
    """Load a `.pth` file of descript-audio-codec; no code from the file runs.

    Raises:
        ValueError: it is not such a file, or of an architecture that `DacModel` does not have.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        config = _config(content["metadata"]["kwargs"])
        weights = fold_weight_norm(content["state_dict"])
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError) as error:
        cause = str(error).strip().splitlines()[0]
        raise ValueError(f"'{path}' must be a `.pth` file of DAC, but is not: {cause}") from error
    model = DacModel(config)
    count = len(config.downsampling_ratios)
    try:
        model.load_state_dict({transformers_name(k, count): v for k, v in weights.items()})
    except RuntimeError as error:
        cause = str(error).strip().splitlines()[1].strip()
        raise ValueError(f"'{path}' holds weights that do not fit its metadata: {cause}") from error
    return model


def _config(kwargs: Mapping[str, Any]) -> DacConfig:
    """Translate the arguments of the original model."""
    rates = list(kwargs.get("encoder_rates", [2, 4, 8, 8]))
    if list(kwargs.get("decoder_rates", rates[::-1])) != rates[::-1]:
        raise ValueError(
            f"`decoder_rates` of a DAC file must be {rates[::-1]}, `encoder_rates` reversed, but "
            f"are {kwargs['decoder_rates']}."
        )
    return DacConfig(
        encoder_hidden_size=kwargs.get("encoder_dim", 64),
        downsampling_ratios=rates,
        decoder_hidden_size=kwargs.get("decoder_dim", 1536),
        n_codebooks=kwargs.get("n_codebooks", 9),
        codebook_size=kwargs.get("codebook_size", 1024),
        codebook_dim=kwargs.get("codebook_dim", 8),
        sampling_rate=kwargs.get("sample_rate", 44100),
    )


def fold_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace the magnitude and direction of each weight-normed layer by its `weight`.

    Knows the names of both forms of weight norm in torch.
    """
    folded = {}
    for name, tensor in state.items():
        for magnitude, direction, merged in _WEIGHT_NORM:
            if name.endswith(direction):
                norm = state[name.removesuffix(direction) + magnitude].float()
                weight = torch._weight_norm(tensor.float(), norm, 0)
                folded[name.removesuffix(direction) + merged] = weight
        if not name.endswith(_FOLDED):
            folded[name] = tensor
    return folded


def transformers_name(name: str, num_blocks: int) -> str:
    """The name in `DacModel` of a parameter of the original encoder, quantizer or decoder.

    Args:
        name: such as `encoder.block.1.block.0.block.1.weight`.
        num_blocks: strided blocks of the encoder, and of the decoder.
    """
    match = re.fullmatch(r"(encoder|decoder)\.(?:block|model)\.(\d+)\.(.+)", name)
    if match is None:
        return name
    part, index, rest = match[1], int(match[2]), match[3]
    if 1 <= index <= num_blocks:
        return f"{part}.block.{index - 1}.{_inside_block(part, rest)}"
    layer = {0: "conv1", num_blocks + 1: "snake1", num_blocks + 2: "conv2"}.get(index, str(index))
    return f"{part}.{layer}.{rest}"


def _inside_block(part: str, name: str) -> str:
    _, position, rest = name.split(".", 2)
    layers = ["snake1", "conv_t1"] if part == "decoder" else []
    layers += ["res_unit1", "res_unit2", "res_unit3"]
    layers += [] if part == "decoder" else ["snake1", "conv1"]
    layer = layers[int(position)]
    if not layer.startswith("res_unit"):
        return f"{layer}.{rest}"
    _, inner, rest = rest.split(".", 2)
    return f"{layer}.{_UNIT[int(inner)]}.{rest}"
