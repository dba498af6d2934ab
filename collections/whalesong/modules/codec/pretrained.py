"""Loading codecs of `transformers`, and describing them so that they can be built without weights.

The asset of such a codec is one JSON file: `{"config": ..., "num_quantizers": ...}`.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import PreTrainedConfig, PreTrainedModel

from whalesong.modules.llm import describe_missing

ASSET = "codec.json"
"""Name of the file that describes a codec."""


def load_pretrained(model_class: type[PreTrainedModel], name_or_path: str) -> PreTrainedModel:
    """Load a complete model in fp32 from a folder or a hub name.

    Raises:
        ValueError: it cannot be found, is another kind of model, or lacks weights.
    """
    expected = model_class.config_class.model_type
    try:
        fields, _ = model_class.config_class.get_config_dict(name_or_path)
        if (found := fields.get("model_type")) not in (None, expected):
            raise ValueError(
                f"'{name_or_path}' must hold a model of type '{expected}', but holds '{found}'."
            )
        model, report = model_class.from_pretrained(
            name_or_path, dtype=torch.float32, output_loading_info=True
        )
    except OSError as error:
        raise ValueError(describe_missing(name_or_path, error)) from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"'{name_or_path}' lacks {len(missing)} weights, first '{missing[0]}'.")
    return model


def describe(config: PreTrainedConfig, num_quantizers: int) -> dict[str, bytes]:
    """The assets from which `read_description` gives the same configuration again."""
    fields = json.loads(config.to_json_string(use_diff=False))
    content = {"config": fields, "num_quantizers": num_quantizers}
    return {ASSET: json.dumps(content, indent=1, sort_keys=True).encode()}


def read_description(assets: Mapping[str, bytes]) -> tuple[dict[str, Any], int]:
    """The configuration and the number of codebooks behind `describe`.

    Raises:
        ValueError: it is no such description.
    """
    content = json.loads(assets[ASSET])
    if set(content) != {"config", "num_quantizers"}:
        raise ValueError(f"`{ASSET}` must have the keys `config` and `num_quantizers` only.")
    return content["config"], content["num_quantizers"]


def codebooks_used(num_quantizers: int | None, available: int) -> int:
    """Number of codebooks to keep.

    Raises:
        ValueError: more are wanted than there are.
    """
    if num_quantizers is not None and num_quantizers > available:
        raise ValueError(
            f"`num_quantizers` must be at most {available}, the codebooks of the codec, "
            f"but is {num_quantizers}."
        )
    return num_quantizers or available


def fold_parametrizations(model: nn.Module) -> None:
    """Replace weight norm by the weights that it gives, in place.

    Frozen weights need none; with it, a module cannot go to another process.
    """
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
            module._load_state_dict_pre_hooks.clear()  # weight norm leaves one, a local function
