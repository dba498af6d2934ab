"""Conditions of a model of sound: where data has their values, and what a request says of them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from whalesong.core.config.job import PredictConfig
from whalesong.core.errors import ConfigError
from whalesong.data.clips import TEXT
from whalesong.modules.codec.codec import Codec
from whalesong.modules.conditioning.section import ConditionerSection
from whalesong.sound.rows import read_clips, spread

PROMPT_SECONDS = 3.0
RECORDING_TYPES = ("audio_prompt", "clap_audio", "pretransform")
TEXT_TYPES = ("causal_lm", "clap_text", "lut", "phoneme", "t5", "t5gemma", "text", "tokenizer_lut")


class Conditioned(Protocol):
    """A model with conditions."""

    @property
    def condition_ids(self) -> list[str]:
        """Ids of all conditions."""

    @property
    def text_ids(self) -> list[str]:
        """Ids of the conditions that are texts."""

    @property
    def recording_ids(self) -> list[str]:
        """Ids of the conditions that are recordings."""


def ids_of(conditions: Sequence[ConditionerSection], types: Sequence[str]) -> list[str]:
    """Ids of the conditions of some types."""
    return [item.id for item in conditions if item.type in types]


def condition_sources(
    conditions: Sequence[ConditionerSection], default_keys: Mapping[str, str]
) -> dict[str, Any]:
    """Where a collator finds the value of each condition: arguments of `ClipCollator`.

    `default_keys` tells the attribute of a cut. Else the only text condition, or the one called
    "text", is the text of the supervisions; a recording is the clip's own audio prompt; and any
    other condition is the attribute of its id.
    """
    recordings = [item for item in conditions if item.type in RECORDING_TYPES]
    texts = ids_of(conditions, TEXT_TYPES)
    own_text = texts if len(texts) == 1 else ["text"]
    seconds = [item.config.get("max_seconds") or PROMPT_SECONDS for item in recordings]
    return {
        "condition_keys": {
            item.id: default_keys.get(item.id, TEXT if item.id in own_text else item.id)
            for item in conditions
            if item not in recordings
        },
        "audio_prompt_ids": [item.id for item in recordings],
        "prompt_seconds": max(seconds, default=PROMPT_SECONDS),
    }


def row_conditions(
    model: Conditioned, request: PredictConfig, *, rows: int, codec: Codec
) -> list[dict[str, Any]]:
    """Conditions of each row: those of the request, with prompts and audio at their ids.

    A recording is the path of its file in the request, and is read here.

    Raises:
        ConfigError: the request does not fit the model.
        DataError: an audio file cannot be read.
    """
    nothing = dict.fromkeys(model.condition_ids)
    given = spread(request.conditions or [{}], rows, key="conditions")
    found = [{**nothing, **row} for row in given]
    if request.prompts:
        text_id = _id_of(model.text_ids, "prompts", "text")
        for row, text in zip(found, spread(request.prompts, rows, key="prompts"), strict=True):
            row[text_id] = text
    if request.audio:
        audio_id = _id_of(model.recording_ids, "audio", "audio prompt")
        clips = read_clips(request.audio, rows, key="audio", codec=codec)
        for row, clip in zip(found, clips, strict=True):
            row[audio_id] = clip
    for row in found:
        if unknown := [name for name in row if name not in nothing]:
            known = ", ".join(nothing) or "none"
            raise ConfigError(
                f"`predict.conditions` names '{unknown[0]}', but the model's conditions are: "
                f"{known}."
            )
        for name in model.recording_ids:
            if isinstance(row[name], str):
                (row[name],) = read_clips([row[name]], 1, key="conditions", codec=codec)
    return found


def text_of(model: Conditioned, row: Mapping[str, Any]) -> str:
    """The first text condition of a row; empty without any."""
    return str(row.get(model.text_ids[0]) or "") if model.text_ids else ""


def printable(row: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions that are no tensors."""
    return {name: value for name, value in row.items() if not isinstance(value, Tensor)}


def _id_of(ids: Sequence[str], key: str, kind: str) -> str:
    if not ids:
        raise ConfigError(f"`predict.{key}` needs a model with a condition of type {kind}, "
                          "but this one has none.")  # fmt: skip
    return ids[0]
