"""From the `model` section to codec, conditioners and AudioLM."""

from collections.abc import Mapping
from typing import Any

from whalesong.core.instantiate import naming
from whalesong.models.audiolm.config import AudioLMConfig
from whalesong.models.audiolm.model import AudioLM
from whalesong.models.audiolm.wrapper import AudioLMWrapper
from whalesong.modules.codec.build import build_codec
from whalesong.modules.codec.codec import Codec
from whalesong.modules.conditioning.build import build_multi_conditioner
from whalesong.modules.conditioning.section import ConditionerSection
from whalesong.sound.assets import CODEC_ASSETS, CONDITIONER_ASSETS, assets_of
from whalesong.sound.conditions import RECORDING_TYPES

NAMES = {"d_model": "d_model", "num_heads": "nhead", "num_layers": "num_layers"}
"""Keys of the section, and arguments of `AudioLM`."""
SAME_NAMES = (
    "num_quantizers",
    "codebook_size",
    "ff_mult",
    "activation",
    "norm",
    "dropout",
    "positions",
    "position_mode",
    "prompt_attention",
    "ar_quantizers",
    "ar_pattern",
    "ar_group",
)


def build_wrapper(
    config: AudioLMConfig, section: Mapping[str, Any], *, assets: Mapping[str, bytes] | None
) -> AudioLMWrapper:
    """Build all parts of the model.

    Args:
        config: the checked section.
        section: the section as plain containers.
        assets: content of the files of an archive; then nothing pretrained is loaded, for the
            weights follow.

    Raises:
        ValueError: what does not fit together.
    """
    check_sizes(config)
    with naming("model.pretransform"):
        codec = build_codec(
            section["pretransform"],
            assets=assets_of(assets, CODEC_ASSETS),
            sample_rate=config.sample_rate,
        )
    check_codec(config, codec)
    conditioner = None
    if conditions_of(config):
        conditioner = build_multi_conditioner(
            section["conditioning"],
            default_dim=config.d_model,
            codec=codec,
            assets=assets_of(assets, CONDITIONER_ASSETS),
        )
    width = None if conditioner is None else sum(conditioner.output_dims.values())
    lm = AudioLM(
        **{ours: getattr(config, key) for key, ours in NAMES.items()},
        **{key: getattr(config, key) for key in SAME_NAMES},
        nar={NAMES.get(key, key): value for key, value in config.nar if value is not None},
        predict_eos=config.predict_eos != "never",
        condition_dim=width,
    )
    return AudioLMWrapper(
        pretransform=codec,
        lm=lm,
        conditioner=conditioner,
        needs_prompt=not config.prompt.modes.get("none"),
    )


def conditions_of(config: AudioLMConfig) -> list[ConditionerSection]:
    """The conditions of the model."""
    return [] if config.conditioning is None else config.conditioning.configs


def check_sizes(config: AudioLMConfig) -> None:
    """Refuse sizes that do not fit together, before anything is built.

    Raises:
        ValueError: the first that does not.
    """
    heads = {"num_heads": (config.d_model, config.num_heads)}
    width = config.nar.d_model or config.d_model
    heads["nar.num_heads"] = (width, config.nar.num_heads or config.num_heads)
    for name, (d_model, count) in heads.items():
        if d_model % count:
            raise ValueError(f"`{name}` must divide the width ({d_model}), but is {count}.")
    if config.train_stage == 2 and config.ar_quantizers == config.num_quantizers:
        raise ValueError(
            "`train_stage` must be 0 or 1 where `ar_quantizers` is all of `num_quantizers`, "
            "but is 2."
        )
    for item in conditions_of(config):
        if item.type in RECORDING_TYPES:
            raise ValueError(
                f"`conditioning` must hold no recordings, but '{item.id}' is of type "
                f"'{item.type}'; the prompt is the recording."
            )


def check_codec(config: AudioLMConfig, codec: Codec) -> None:
    """Refuse a codec whose codes are not those of the section.

    Raises:
        ValueError: with both values.
    """
    sizes = config.codebook_size
    smallest = sizes if isinstance(sizes, int) else min(sizes)
    for name, ours, theirs in (
        ("sample_rate", config.sample_rate, codec.sample_rate),
        ("num_quantizers", config.num_quantizers, codec.num_codebooks),
    ):
        if ours != theirs:
            raise ValueError(f"`{name}` must be that of the codec ({theirs}), but is {ours}.")
    if isinstance(sizes, int) and smallest != codec.codebook_size:
        raise ValueError(f"`codebook_size` must be that of the codec ({codec.codebook_size}), but "
                         f"is {smallest}.")  # fmt: skip
    if not isinstance(sizes, int) and max(sizes) > codec.codebook_size:
        raise ValueError(f"`codebook_size` must be at most that of the codec "
                         f"({codec.codebook_size}), but is {sizes}.")  # fmt: skip
