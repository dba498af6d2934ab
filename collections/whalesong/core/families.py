"""The built-in families, by name only: nothing of a family is imported before it is used."""

import difflib
import importlib
from dataclasses import dataclass
from typing import Any

from whalesong.core.errors import ConfigError


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: public name, as in `whalesong.SALM`.
        target: dotted name of the `LanguageModelPT` subclass, as in `model.target` and archives.
        schema: dotted name of the schema of its `model` section; light to import.
        aliases: other names of it, in lower case, which a config may write in any case.
        sections: dotted name of a function that makes the sections `model` and `data` of those
            that a job of this family has, if these are others; see `assembled`.
        own_schemas: dotted names of the schemas of these sections, by section; the one that only
            this family has comes first.
    """

    name: str
    target: str
    schema: str
    aliases: tuple[str, ...] = ()
    sections: str | None = None
    own_schemas: tuple[tuple[str, str], ...] = ()

    def load_class(self) -> Any:
        """Import the model class; this imports torch and NeMo."""
        return _import(self.target)

    def load_schema(self) -> Any:
        """Import the schema of the `model` section."""
        return _import(self.schema)


FAMILIES = (
    Family("SALM", "whalesong.models.salm.salm.SALM", "whalesong.models.salm.config.SALMConfig"),
    Family(
        "CodecLMModel",
        "whalesong.models.codec_lm.codec_lm.CodecLMModel",
        "whalesong.models.codec_lm.config.CodecLMConfig",
    ),
    Family(
        "AudioLMModel",
        "whalesong.models.audiolm.audiolm.AudioLMModel",
        "whalesong.models.audiolm.config.AudioLMConfig",
        aliases=("audio-lm", "audiolm"),
    ),
    Family(
        "DuplexS2SModel",
        "whalesong.models.duplex_s2s.duplex_s2s.DuplexS2SModel",
        "whalesong.models.duplex_s2s.config.DuplexS2SConfig",
    ),
    Family(
        "DuplexS2SSpeechDecoderModel",
        "whalesong.models.duplex_s2s_speech_decoder.duplex_s2s_speech_decoder."
        "DuplexS2SSpeechDecoderModel",
        "whalesong.models.duplex_s2s_speech_decoder.config.DuplexS2SSpeechDecoderConfig",
    ),
    Family(
        "TextLMModel",
        "whalesong.textlm.textlm_model.TextLMModel",
        "whalesong.textlm.config.TextLMConfig",
        sections="whalesong.textlm.assemble.assembled",
        own_schemas=(
            ("model_type", "whalesong.textlm.config.ModelTypeConfig"),
            ("model", "whalesong.core.config.model.TargetConfig"),
            ("datamodule", "whalesong.textlm.config.DatamoduleConfig"),
        ),
    ),
)


def family_of(target: str) -> Family:
    """The family whose class is called `target`, by dotted or public name or by an alias.

    Raises:
        ConfigError: there is none; the nearest name is given.
    """
    if not isinstance(target, str):
        raise ConfigError(f"`model.target` must name a model class, but is {target!r:.60}.")
    for family in FAMILIES:
        if target in (family.target, family.name) or target.lower() in family.aliases:
            return family
    names = [name for family in FAMILIES for name in (family.name, family.target, *family.aliases)]
    near = difflib.get_close_matches(str(target), names, n=1, cutoff=0.0)
    raise ConfigError(
        f"`model.target` must name a model class, but is '{target}'; did you mean '{near[0]}'?"
    )


def assembled(cfg: Any) -> Any:
    """A composed job with the sections `model` and `data`, whatever sections its family has.

    Raises:
        ConfigError: naming the YAML path.
    """
    for family in FAMILIES:
        if family.sections is not None:
            cfg = _import(family.sections)(cfg)
    return cfg


def schemas_of(cfg: Any) -> dict[str, Any]:
    """Schemas of the sections of a composed job that its family checks, as far as it is known.

    Raises:
        ConfigError: `model.target` names no family.
    """
    for family in FAMILIES:
        if family.own_schemas and cfg.get(family.own_schemas[0][0]):
            return {section: _import(schema) for section, schema in family.own_schemas}
    target = (cfg.get("model") or {}).get("target")
    return {} if target is None else {"model": family_of(target).load_schema()}


def _import(dotted: str) -> Any:
    module, name = dotted.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)
