"""LoRA on a pretrained LLM through PEFT; parameter names are the same with and without it."""

from collections.abc import Mapping
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

ADAPTER = "default"


def add_lora(llm: nn.Module, settings: dict) -> nn.Module:
    """Inject LoRA layers into `llm` in place, freeze all else in it, and return it.

    The class of the LLM, its `generate` and the names of its other parameters stay as they are;
    a wrapped weight is only renamed from `x.weight` to `x.base_layer.weight`.

    Args:
        llm: a Hugging Face causal LM.
        settings: fields of `peft.LoraConfig`.

    Raises:
        ValueError: no module matches `target_modules`, with PEFT's explanation.
    """
    return inject_adapter_in_model(LoraConfig(**settings), llm, adapter_name=ADAPTER)


def layer_settings(settings: Mapping[str, Any], network: nn.Module) -> dict[str, Any]:
    """Settings for a network that is no LLM: its linear layers are the targets if none are named.

    Args:
        settings: fields of `peft.LoraConfig`.
        network: whatever the LoRA layers go into.
    """
    targets = settings.get("target_modules")
    if targets is None or targets == "all-linear":
        modules = network.named_modules()
        targets = [name for name, module in modules if isinstance(module, nn.Linear)]
    return {**settings, "target_modules": targets, "task_type": None}


def canonical_name(name: str) -> str:
    """The name that a parameter would have without LoRA, or without `PeftModel` around it."""
    return name.replace("base_model.model.", "", 1).replace(".base_layer.", ".")


def is_lora(name: str) -> bool:
    """True for the parameters that LoRA adds."""
    return ".lora_" in name


def merged_state_dict(llm: nn.Module) -> dict[str, Tensor]:
    """The weights of the LLM with LoRA added in, under the names of the plain LLM.

    The model itself is left as it is. Merging is done in fp32 and cast back.
    """
    layers = {name: module for name, module in llm.named_modules() if isinstance(module, LoraLayer)}
    state = {
        canonical_name(name): tensor.detach()
        for name, tensor in llm.state_dict().items()
        if not is_lora(name)
    }
    for name, layer in layers.items():
        key = canonical_name(f"{name}.weight")
        delta = layer.get_delta_weight(ADAPTER)
        state[key] = (state[key].float() + delta.float()).to(state[key].dtype)
    return state
