"""Description and weights of autoencoders in the files of stable-audio-tools."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from whalesong.modules.codec.dac_weights import fold_weight_norm, transformers_name

_PREFIXES = ("autoencoder_ema.ema_model.", "autoencoder.", "pretransform.model.", "")
_SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt")


def read_model_config(path: str) -> dict[str, Any]:
    """The content of `model_config.json` that belongs to a checkpoint.

    Args:
        path: a folder that holds it, a file beside it, or a `.ckpt` in which training put it.

    Raises:
        ValueError: there is none.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    if (file := folder / "model_config.json").is_file():
        return json.loads(file.read_text())
    weights = find_weights(path)
    content = {} if weights.suffix == ".safetensors" else _load(weights)
    if "model_config" not in content:
        raise ValueError(
            f"'{path}' does not tell how the autoencoder is built; put its `model_config.json` "
            f"beside the weights, or give `encoder`, `decoder` and `bottleneck`."
        )
    return content["model_config"]


def find_weights(path: str) -> Path:
    """The file with the weights: the path itself, or the only such file of a folder.

    Raises:
        ValueError: there is none, or more than one.
    """
    if Path(path).is_file():
        return Path(path)
    if not Path(path).is_dir():
        raise ValueError(f"`autoencoder_ckpt` must be a file or a folder, but '{path}' is not one.")
    files = sorted(file for file in Path(path).iterdir() if file.suffix in _SUFFIXES)
    if len(files) != 1:
        raise ValueError(f"'{path}' must hold one file of weights, but holds {len(files)}.")
    return files[0]


def read_weights(path: str) -> dict[str, Tensor]:
    """Read the autoencoder's own weights under their published names, weight norm folded.

    A checkpoint of training gives the averaged weights where it has them. No code from the file
    runs.
    """
    file = find_weights(path)
    content = _load(file)
    state = content.get("state_dict", content)
    for prefix in _PREFIXES:
        if any(name.startswith(prefix + "decoder.") for name in state):
            break
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    parts = ("encoder.", "decoder.", "bottleneck.")
    return fold_weight_norm({k: v for k, v in own.items() if k.startswith(parts)})


def _load(file: Path) -> dict[str, Any]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        cause = str(error).strip().splitlines()[0]
        raise ValueError(f"'{file}' holds no weights that can be read: {cause}") from error


def rename_weights(
    state: Mapping[str, Tensor], *, encoder: str, decoder: str, bottleneck: str
) -> dict[str, Tensor]:
    """Published names to those of `AutoencoderCodec`.

    Args:
        state: what `read_weights` gives.
        encoder: its type; likewise the others.
    """
    kinds = {"encoder": encoder, "decoder": decoder}
    blocks = {part: _count_dac_blocks(state, part) for part in kinds}
    renamed, codebooks = {}, {}
    for name, tensor in state.items():
        part, rest = name.split(".", 1)
        if part != "bottleneck":
            rest = _rename(rest, kinds[part], blocks[part])
        elif "._codebook." in rest:
            if rest.endswith(".embed"):
                codebooks[int(rest.split(".")[2])] = tensor.squeeze(0)
            continue
        elif bottleneck.endswith("_vae"):
            rest = f"inner.{rest}"
        renamed[f"{part}.{rest}"] = tensor
    if codebooks:
        prefix = "bottleneck.inner" if bottleneck.endswith("_vae") else "bottleneck"
        renamed[f"{prefix}.codebooks"] = torch.stack([codebooks[i] for i in sorted(codebooks)])
    return renamed


def _rename(name: str, kind: str, num_blocks: int) -> str:
    if kind == "dac":
        return transformers_name(name, num_blocks)
    if kind == "seanet":
        name = name.replace("convtr.convtr.", "conv.").replace("conv.conv.", "conv.")
        return "layers." + name.removeprefix("model.")
    return name


def _count_dac_blocks(state: Mapping[str, Tensor], part: str) -> int:
    """Strided blocks of a DAC half: its last layer has the number of blocks plus two."""
    names = ("block", "model")
    prefixes = tuple(f"{part}.{part}.{name}." for name in names)
    indices = [int(name.split(".")[3]) for name in state if name.startswith(prefixes)]
    return max(indices, default=2) - 2
