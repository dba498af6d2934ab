"""The parts of a duplex model from its configuration, or from the files of an archive."""

from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from whalesong.core.errors import ConfigError
from whalesong.data.text_channel import TextIds
from whalesong.duplex.config import DuplexConfig, SpecialTokens
from whalesong.modules.codec.build import build_codec
from whalesong.modules.codec.codec import Codec
from whalesong.sound.assets import CODEC_ASSETS, assets_of
from whalesong.sound.find_codec import find_codec
from whalesong.speech.names import canonical_names


def build_audio_codec(cfg: DictConfig, assets: Mapping[str, bytes] | None) -> Codec:
    """The codec that `pretrained_audio_codec` names, or that of an archive without its weights.

    Args:
        cfg: the model's own copy of the `model` section; `audio_codec` is filled in.
        assets: files of an archive; None loads the codec.

    Raises:
        ConfigError: it cannot be read, or has more than one channel.
    """
    try:
        if assets is None:
            with open_dict(cfg):
                cfg.audio_codec = find_codec(cfg.pretrained_audio_codec)
        section = OmegaConf.to_container(cfg.audio_codec)
        codec = build_codec(section, assets=assets_of(assets, CODEC_ASSETS))
    except (AssertionError, NotImplementedError, ValueError, OSError, ConfigError) as error:
        raise ConfigError(f"`model.pretrained_audio_codec`: {error}") from error
    if codec.num_channels != 1:
        raise ConfigError(
            "`model.pretrained_audio_codec` must be a codec of one channel, but has "
            f"{codec.num_channels}."
        )
    return codec


def text_ids(tokenizer: Any, tokens: SpecialTokens) -> TextIds:
    """The control tokens of the text channel.

    Args:
        tokenizer: NeMo's `AutoTokenizer`.
        tokens: those that the YAML names.

    Raises:
        ConfigError: the tokenizer has no token for begin or end, or none for padding that is
            neither.
    """
    inner = tokenizer.tokenizer
    bos = _token_id(inner, tokens.bos, inner.bos_token_id, key="bos")
    eos = _token_id(inner, tokens.eos, inner.eos_token_id, key="eos")
    own = (item for item in (inner.pad_token_id, inner.unk_token_id) if item not in (bos, eos))
    pad = _token_id(inner, tokens.pad, next(own, None), key="pad")
    if pad in (bos, eos):
        raise ConfigError(
            "`model.special_tokens.pad` must differ from the tokens that begin and end a turn, "
            f"but is '{tokens.pad}', too."
        )
    return TextIds(bos=bos, eos=eos, pad=pad)


def freezable_names(llm: nn.Module) -> Callable[[str], list[str]]:
    """Real parameter name -> names for `freeze_params`: those of SALM, and NeMo's of duplex models.

    NeMo takes the LLM apart: `llm.layers...`, `embed_tokens`, `lm_head`.
    """
    plain = canonical_names(llm)
    base = f"llm.{llm.base_model_prefix}."

    def names_of(name: str) -> list[str]:
        names = plain(name)
        for known in tuple(names):
            if known.startswith(base):
                names.append("llm." + known.removeprefix(base))
            elif known.startswith("llm."):
                names.append(known.removeprefix("llm."))
        return names

    return names_of


def check_codebooks(config: DuplexConfig, codec: Codec) -> None:
    """Refuse another number of weights than there are codebooks.

    Raises:
        ConfigError: with both numbers.
    """
    weights = config.codebook_loss_weights
    if weights is not None and len(weights) != codec.num_codebooks:
        raise ConfigError(
            "`model.codebook_loss_weights` must have one value for each of the "
            f"{codec.num_codebooks} codebooks, but has {len(weights)}."
        )


def _token_id(tokenizer: Any, token: str | None, default: int | None, *, key: str) -> int:
    if token is None:
        if default is None:
            raise ConfigError(
                f"the tokenizer of `model.pretrained_llm` must have a {key.upper()} token, but has "
                f"none; name one of its tokens as `model.special_tokens.{key}`."
            )
        return default
    if token not in tokenizer.get_vocab():
        raise ConfigError(
            f"`model.special_tokens.{key}` must be a token of the LLM's tokenizer, "
            f"but is '{token}'."
        )
    return tokenizer.convert_tokens_to_ids(token)
