"""Hugging Face causal LMs as a part of a speech LM: loading, hidden states, logits where needed.

Everything that depends on the layout of an LLM goes through `transformers`' own accessors, so that
Llama, Qwen, GPT-2 and tied embeddings need no code of ours.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from whalesong.modules.attention import window_mask


def load_llm(
    name_or_path: str,
    *,
    pretrained_weights: bool = True,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal LM from a folder or a hub name.

    Args:
        name_or_path: a local folder, or a name on the hub.
        pretrained_weights: False builds the same architecture with random weights.
        dtype: of the parameters.
        trust_remote_code: run code that comes with the model; only ever by the caller's word.

    Raises:
        ValueError: it is neither a local folder nor reachable on the hub.
    """
    try:
        if pretrained_weights:
            return AutoModelForCausalLM.from_pretrained(
                name_or_path, dtype=dtype, trust_remote_code=trust_remote_code
            )
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise ValueError(describe_missing(name_or_path, error)) from error
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def describe_missing(name_or_path: str, error: Exception) -> str:
    """One sentence on why a pretrained folder or hub name could not be read."""
    cause = str(error).strip().splitlines()[0]
    if Path(name_or_path).is_dir():
        return f"the folder '{name_or_path}' holds no complete pretrained model: {cause}"
    return f"'{name_or_path}' is neither a local folder nor a model that can be reached: {cause}"


def llm_from_config(config: dict, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Build a causal LM from the content of its `config.json`, without weights or a hub."""
    fields = dict(config)
    architecture = AutoConfig.for_model(fields.pop("model_type"), **fields)
    return AutoModelForCausalLM.from_config(architecture, dtype=dtype)


def hidden_states(
    llm: PreTrainedModel,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    *,
    window: int | None = None,
) -> Tensor:
    """Run the LLM without its head.

    Args:
        llm: the causal LM.
        inputs_embeds: (B, T, D).
        attention_mask: (B, T), True = keep; padding may stand on either side.
        window: a position sees itself and what is less than this before it; then padding stands on
            the right.

    Returns:
        Final hidden states (B, T, D).
    """
    windowed = window is not None and window < inputs_embeds.shape[1]
    return llm.base_model(
        inputs_embeds=inputs_embeds,
        attention_mask=_band(inputs_embeds, window) if windowed else attention_mask.long(),
        position_ids=positions(attention_mask),
        use_cache=False,
    ).last_hidden_state


def _band(inputs_embeds: Tensor, window: int) -> Tensor:
    """What is added to the scores of attention within a window: (1, 1, T, T)."""
    seen = window_mask(inputs_embeds.shape[1], window, device=inputs_embeds.device)
    hidden = torch.finfo(inputs_embeds.dtype).min
    return torch.zeros_like(seen, dtype=inputs_embeds.dtype).masked_fill(~seen, hidden)[None, None]


def init_cache(llm: PreTrainedModel, *, window: int | None = None) -> Cache:
    """An empty cache; with a window it holds no more than that many positions."""
    count = llm.config.get_text_config().num_hidden_layers
    if window is None:
        return Cache(layers=[DynamicLayer() for _ in range(count)])
    return Cache(layers=[DynamicSlidingWindowLayer(window) for _ in range(count)])


def next_hidden_states(llm: PreTrainedModel, inputs_embeds: Tensor, cache: Cache) -> Tensor:
    """Final hidden states (B, 1, D) of the next position, given its input (B, 1, D)."""
    position = cache.get_seq_length()
    return llm.base_model(
        inputs_embeds=inputs_embeds,
        position_ids=torch.full((1, 1), position, device=inputs_embeds.device),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state


def max_positions(llm: PreTrainedModel, *, window: int | None) -> int | None:
    """How long a sequence may become; None where attention is relative and has a window."""
    is_relative = any("rotary" in name for name, _ in llm.named_modules())
    return None if is_relative and window is not None else context_length(llm)


def positions(attention_mask: Tensor) -> Tensor:
    """Position of each token among the kept ones: (B, T) -> (B, T), 0 at padding on the left."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp_min(0)


def head_logits(llm: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Apply the LM head to hidden states of any leading shape: (*, D) -> (*, V).

    The scalings that some families apply after the head are read from their configuration.
    """
    logits = llm.get_output_embeddings()(hidden)
    config = llm.config.get_text_config()
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if scaling := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scaling
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = torch.tanh(logits / cap) * cap
    return logits


def context_length(llm: PreTrainedModel) -> int | None:
    """The longest sequence the LLM has positions for, or None where it knows no limit."""
    config = llm.config.get_text_config()
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def generation_defaults(
    llm: PreTrainedModel, *, stop_ids: list[int], pad_id: int, max_new_tokens: int
) -> GenerationConfig:
    """The LLM's own `GenerationConfig` with the stops of the prompt format added.

    Args:
        llm: the causal LM; its configuration is copied, not changed.
        stop_ids: token ids that end an answer besides the LLM's own.
        pad_id: filler after the end of a row.
        max_new_tokens: used where the LLM's own configuration gives no length.
    """
    config = GenerationConfig.from_dict(llm.generation_config.to_dict())
    own = config.eos_token_id
    own = [] if own is None else [own] if isinstance(own, int) else list(own)
    config.eos_token_id = sorted({*own, *stop_ids})
    config.pad_token_id = pad_id
    if config.max_new_tokens is None:
        config.max_new_tokens = max_new_tokens
    return config


def decoder_layers(llm: PreTrainedModel) -> list[nn.Module]:
    """The transformer blocks of the LLM, its largest `ModuleList`, to shard and checkpoint."""
    lists = [module for module in llm.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters())))
