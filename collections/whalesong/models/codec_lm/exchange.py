"""The codec language model from other formats: folders of Musicgen, state dicts of audiocraft."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from whalesong.core.archive import check_state_keys
from whalesong.core.errors import ConfigError
from whalesong.models.codec_lm.factory import build_audio_lm, check_audio_lm_config
from whalesong.models.codec_lm.model import AudioLanguageModel
from whalesong.models.codec_lm.wrapper import AudioLanguageModelWrapper
from whalesong.sound.assets import CODEC_ASSETS, CONDITIONER_ASSETS

if TYPE_CHECKING:
    from whalesong.models.codec_lm.codec_lm import CodecLMModel

TEXT = "text"
"""Id of the condition."""
WINDOW_SECONDS = 30.0
"""What Musicgen was trained on."""

LAYER_FROM_MUSICGEN: dict[str, list[str]] = {
    "attention_norm": ["self_attn_layer_norm"],
    "attention.qkv_proj": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attention.out_proj": ["self_attn.out_proj"],
    "memory_norm": ["encoder_attn_layer_norm"],
    "memory_attention.query_proj": ["encoder_attn.q_proj"],
    "memory_attention.memory_proj": ["encoder_attn.k_proj", "encoder_attn.v_proj"],
    "memory_attention.out_proj": ["encoder_attn.out_proj"],
    "ff_norm": ["final_layer_norm"],
    "feed_forward.up_proj": ["fc1"],
    "feed_forward.down_proj": ["fc2"],
}
"""Modules of a block here, and those of Musicgen that make up each, joined along the outputs."""

LAYER_FROM_AUDIOCRAFT: dict[str, str] = {
    "norm1": "self_attn_layer_norm",
    "self_attn.out_proj": "self_attn.out_proj",
    "norm_cross": "encoder_attn_layer_norm",
    "cross_attention.out_proj": "encoder_attn.out_proj",
    "norm2": "final_layer_norm",
    "linear1": "fc1",
    "linear2": "fc2",
}
IN_PROJECTIONS = {"self_attn": "self_attn", "cross_attention": "encoder_attn"}
"""Attentions of audiocraft, whose queries, keys and values are in one matrix, and of Musicgen."""


@dataclass(frozen=True)
class ImportedMusicgen:
    """A `MusicgenForConditionalGeneration` in our terms."""

    section: dict[str, Any]
    """The `model` section."""
    assets: dict[str, bytes]
    """Configurations of codec and text encoder, and the tokenizer."""
    state: dict[str, Tensor]
    """Weights of an `AudioLanguageModelWrapper`."""


def import_from_musicgen(cls: "type[CodecLMModel]", folder: str | Path) -> "CodecLMModel":
    """Read a Musicgen of transformers; its `.nemo` then needs the folder no more.

    Args:
        cls: the `CodecLMModel` class.
        folder: of a `MusicgenForConditionalGeneration` with its tokenizer, or its name on the hub.

    Raises:
        ConfigError: there is none, or it does something that has no place here.
        ArchiveError: weights are missing or left over.
    """
    imported = read_musicgen(folder)
    model = cls(imported.section, assets=imported.assets)
    _fill(model.model, imported, folder)
    return model.eval()


def load_musicgen(folder: str | Path) -> AudioLanguageModelWrapper:
    """The same as a plain module; arguments and errors are those of `import_from_musicgen`."""
    imported = read_musicgen(folder)
    section = {key: imported.section[key] for key in ("lm", "pretransform", "conditioning")}
    config = {"model": section, "sample_rate": imported.section["sample_rate"]}
    model = build_audio_lm(check_audio_lm_config(config), assets=imported.assets)
    _fill(model, imported, folder)
    return model.eval()


def load_audiocraft(lm: AudioLanguageModel, state: Mapping[str, Tensor]) -> None:
    """Fill a model with the weights of audiocraft's `LMModel`.

    Args:
        lm: of the same shape: sinusoidal positions, no rotary ones, no biases but in norms.
        state: its state dict; conditioners in it are left alone.

    Raises:
        ArchiveError: weights are missing, left over, or of another shape.
    """
    state = {name: tensor for name, tensor in state.items() if not name.startswith("condition_")}
    own = lm_state(musicgen_names(state), num_layers=_count(state, "transformer.layers."))
    check_state_keys(lm.state_dict(), own, path="audiocraft's state")
    lm.load_state_dict(own)


def read_musicgen(folder: str | Path) -> ImportedMusicgen:
    """Translate configuration, assets and weights; see `import_from_musicgen`."""
    from transformers import EncodecModel, T5EncoderModel
    from transformers.models.musicgen import MusicgenForConditionalGeneration

    from whalesong.modules.codec.encodec import EncodecCodec
    from whalesong.modules.conditioning.pretrained import load_model, load_tokenizer, saved_files

    try:
        musicgen = load_model(MusicgenForConditionalGeneration, str(folder))
        tokenizer = load_tokenizer(str(folder))
        for part, kind in (("text_encoder", T5EncoderModel), ("audio_encoder", EncodecModel)):
            if not isinstance(getattr(musicgen, part), kind):
                raise ValueError(f"the {part} of '{folder}' must be of the class {kind.__name__}, "
                                 f"but is a {type(getattr(musicgen, part)).__name__}.")  # fmt: skip
        decoder = musicgen.config.decoder
        codec = EncodecCodec(musicgen.audio_encoder, num_quantizers=decoder.num_codebooks)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    section = _section(decoder, codec.sample_rate, projects=hasattr(musicgen, "enc_to_dec_proj"))
    assets = {CODEC_ASSETS + name: data for name, data in codec.assets.items()}
    text_assets = saved_files(musicgen.text_encoder.config, tokenizer)
    assets |= {f"{CONDITIONER_ASSETS}{TEXT}.{name}": data for name, data in text_assets.items()}
    return ImportedMusicgen(section, assets, _wrapper_state(musicgen, codec.state_dict()))


def lm_state(musicgen: Mapping[str, Tensor], *, num_layers: int) -> dict[str, Tensor]:
    """Weights of an `AudioLanguageModel` from those of Musicgen's decoder.

    Args:
        musicgen: state dict of a `MusicgenForCausalLM`.
        num_layers: L.

    Raises:
        ArchiveError: weights are missing or left over.
    """
    sources = _sources(musicgen, num_layers)
    expected = [name for names in sources.values() for name in names]
    check_state_keys(expected, musicgen, path="Musicgen's decoder")
    return {own: torch.cat([musicgen[name] for name in names]) for own, names in sources.items()}


def musicgen_names(audiocraft: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of audiocraft's `LMModel` under the names of a `MusicgenForCausalLM`.

    What has no place there keeps its name.
    """
    given: dict[str, Tensor] = {}
    for name, tensor in audiocraft.items():
        module, _, kind = name.rpartition(".")
        if not module.startswith("transformer.layers."):
            given[f"{_outer_name(module)}.{kind}"] = tensor
            continue
        number, inner = module.removeprefix("transformer.layers.").split(".", 1)
        layer = f"model.decoder.layers.{number}."
        if kind == "in_proj_weight" and inner in IN_PROJECTIONS:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                given[f"{layer}{IN_PROJECTIONS[inner]}.{letter}_proj.weight"] = part
        else:
            given[f"{layer}{LAYER_FROM_AUDIOCRAFT.get(inner, inner)}.{kind}"] = tensor
    return given


def _outer_name(module: str) -> str:
    """The name in Musicgen of a module of audiocraft outside of the layers."""
    kind, _, number = module.partition(".")
    if kind == "emb":
        return f"model.decoder.embed_tokens.{number}"
    if kind == "linears":
        return f"lm_heads.{number}"
    return "model.decoder.layer_norm" if module == "out_norm" else module


def _sources(musicgen: Mapping[str, Tensor], num_layers: int) -> dict[str, list[str]]:
    """For each weight here the ones of Musicgen that it is joined from."""
    codebooks = range(_count(musicgen, "lm_heads."))
    sources = {
        "embedding.weight": [f"model.decoder.embed_tokens.{k}.weight" for k in codebooks],
        "heads.weight": [f"lm_heads.{k}.weight" for k in codebooks],
    }
    for kind in ("weight", "bias"):
        sources[f"backbone.transformer.norm.{kind}"] = [f"model.decoder.layer_norm.{kind}"]
    for number in range(num_layers):
        own, theirs = f"backbone.transformer.layers.{number}.", f"model.decoder.layers.{number}."
        for module, parts in LAYER_FROM_MUSICGEN.items():
            for kind in ("weight", "bias") if module.endswith("norm") else ("weight",):
                sources[f"{own}{module}.{kind}"] = [f"{theirs}{part}.{kind}" for part in parts]
    return sources


def _section(decoder: Any, sample_rate: int, *, projects: bool) -> dict[str, Any]:
    """The `model` section for the configuration of Musicgen's decoder."""
    refused: Sequence[tuple[str, Any, tuple[Any, ...]]] = (
        ("audio_channels", decoder.audio_channels, (1,)),
        ("activation_function", decoder.activation_function, ("gelu", "relu", "silu")),
        ("cross_attention_hidden_size", decoder.cross_attention_hidden_size, (None,)),
    )
    for name, value, allowed in refused:
        if value not in allowed:
            choice = " or ".join(map(repr, allowed))
            raise ConfigError(f"`decoder.{name}` must be {choice}, but is {value!r}.")
    backbone = {
        "embed_dim": decoder.hidden_size,
        "depth": decoder.num_hidden_layers,
        "dim_heads": decoder.hidden_size // decoder.num_attention_heads,
        "rotary_pos_emb": False,
        "use_sinusoidal_emb": True,
        "activation": decoder.activation_function,
        "ff_kwargs": {
            "mult": decoder.ffn_dim / decoder.hidden_size,
            "glu": False,
            "no_bias": True,
        },
        "norm_kwargs": {"bias": True},
        "dropout": decoder.dropout,
        "zero_init_branch_outputs": False,
    }
    text = {"max_length": 512, "project_out": projects}
    return {
        "sample_rate": sample_rate,
        "lm": {
            "type": "continuous_transformer",
            "config": backbone,
            "codebook_pattern": "delay",
            "cross_attention_cond_ids": [TEXT],
        },
        "pretransform": {
            "type": "encodec",
            "config": {"num_quantizers": decoder.num_codebooks},
        },
        "conditioning": {
            "cond_dim": decoder.hidden_size,
            "configs": [{"id": TEXT, "type": "t5", "config": text}],
        },
        "window_seconds": WINDOW_SECONDS,
        "generation": {"guidance_scale": 3.0},
    }


def _wrapper_state(musicgen: Any, codec: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of all parts."""
    decoder = musicgen.config.decoder
    lm = lm_state(musicgen.decoder.state_dict(), num_layers=decoder.num_hidden_layers)
    if decoder.scale_embedding:
        lm["embedding.weight"] = lm["embedding.weight"] * decoder.hidden_size**0.5
    conditioner = f"conditioner.conditioners.{TEXT}."
    parts = {
        "lm.": lm,
        "pretransform.": codec,
        f"{conditioner}model.module.": musicgen.text_encoder.state_dict(),
    }
    if hasattr(musicgen, "enc_to_dec_proj"):
        parts[f"{conditioner}proj_out."] = musicgen.enc_to_dec_proj.state_dict()
    return {prefix + name: t for prefix, state in parts.items() for name, t in state.items()}


def _fill(model: AudioLanguageModelWrapper, imported: ImportedMusicgen, folder: Any) -> None:
    check_state_keys(model.state_dict(), imported.state, path=folder)
    model.load_state_dict(imported.state)


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Number of the modules `<prefix><number>.` in a state dict."""
    return len(
        {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
    )
