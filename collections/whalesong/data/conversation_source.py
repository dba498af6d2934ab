"""Conversations from JSONL files: NeMo's multimodal format, ShareGPT and NeMo's SFT chat."""

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lhotse import AudioSource

from whalesong.core.errors import DataError
from whalesong.data.conversation import Conversation, Part, make_conversation
from whalesong.data.faults import Faults
from whalesong.data.input_schema import MultimodalConversationItem, ShareGptItem
from whalesong.data.manifest_source import audio_cut, existing, resolve_path
from whalesong.data.manifests import check_text, expand_paths, read_jsonl
from whalesong.data.sources import Shard
from whalesong.data.tar_index import index_tar

ASSISTANT_ROLES = ("gpt", "assistant", "model", "bot")
PLACEHOLDERS = ("<sound>", "<speech>")


def conversation_shards(item: MultimodalConversationItem) -> list[Shard]:
    """The shards of `multimodal_conversation`."""
    return _shards(item, parse_multimodal)


def share_gpt_shards(item: ShareGptItem) -> list[Shard]:
    """The shards of `share_gpt`."""
    given = item.audio_placeholders or PLACEHOLDERS
    placeholders = (given,) if isinstance(given, str) else tuple(given)
    return _shards(item, partial(parse_share_gpt, placeholders=placeholders))


def sft_shards(paths: Any) -> list[Shard]:
    """The shards of `nemo_sft_jsonl`."""
    files = [existing(path) for path in expand_paths(paths, key="paths")]
    return [Shard(file, partial(read_conversations, file, parse=parse_sft)) for file in files]


def _shards(item: MultimodalConversationItem, parse: Any) -> list[Shard]:
    manifests = expand_paths(item.manifest_filepath, key="manifest_filepath")
    paths = [existing(path) for path in manifests]
    if item.tarred_audio_filepaths is None:
        tars: list[str | None] = [None] * len(paths)
    else:
        key = "tarred_audio_filepaths"
        tars = [existing(path) for path in expand_paths(item.tarred_audio_filepaths, key=key)]
        if len(tars) != len(paths):
            raise DataError(f"{paths[0]}: {len(paths)} manifests have {len(tars)} tar files.")
    read = partial(read_conversations, parse=parse)
    return [
        Shard(path, partial(read, path, tar=tar, root=item.audio_root))
        for path, tar in zip(paths, tars, strict=True)
    ]


def read_conversations(
    path: str,
    rng: random.Random,
    faults: Faults,
    *,
    parse: Any,
    tar: str | None = None,
    root: str | None = None,
) -> Iterator[Conversation]:
    """Yield the conversations of a file; `parse` makes one of a line's object."""
    try:
        audio = TarTurns(tar) if tar else FileTurns(Path(root) if root else Path(path).parent)
    except DataError as error:
        faults.report(f"{error} Its manifest {path} is lost.")
        return
    for number, data in read_jsonl(path, faults):
        name = str(data.get("id", f"{Path(path).name}:{number}"))
        try:
            parts = [part for part in parse(data, audio) if part[1] != ""]
            if not parts:
                raise DataError("has no turns")
            for text in (part for _, part in parts if isinstance(part, str)):
                check_text(text, name=name)
        except DataError as error:
            faults.report(f"{path}, line {number}, conversation {name}: {error}.")
            continue
        custom = data.get("custom") or {}
        if not custom.get("_skipme"):
            place = f"{path}, line {number}"
            yield make_conversation(name, parts, custom=custom, source=place)


class FileTurns:
    """Audio turns whose value is a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def cut(self, turn: dict[str, Any]) -> Any:
        """The cut of an audio turn."""
        source = AudioSource("file", channels=[0], source=resolve_path(turn["value"], self.folder))
        return _turn_cut(turn, source)


class TarTurns:
    """Audio turns whose value is a member of a tar file, in the order of the file or by name."""

    def __init__(self, path: str) -> None:
        self.index, self.next = index_tar(path), 0

    def cut(self, turn: dict[str, Any]) -> Any:
        """The cut of an audio turn; call it for every turn of the manifest in order."""
        name, position = turn["value"], self.next
        self.next += 1
        if position >= len(self.index) or self.index.names[position] != name:
            found = self.index.positions.get(name)
            if found is None:
                raise DataError(f"{self.index.path} has no member {name} in its place")
            position = found
        source = AudioSource("shar", channels=[0], source=self.index.reference(position))
        return _turn_cut(turn, source)


def _turn_cut(turn: dict[str, Any], source: AudioSource) -> Any:
    offset = turn.get("offset") or None
    rate = turn.get("sampling_rate")
    return audio_cut(
        source, turn["value"], duration=turn.get("duration"), offset=offset, sample_rate=rate
    )


def parse_multimodal(
    data: dict[str, Any], audio: FileTurns | TarTurns
) -> Iterator[tuple[str, Part]]:
    """`{"conversations": [{"from", "type": "text"|"audio", "value", "duration"?}, ...]}`"""
    for turn in _turns(data):
        kind, role = turn.get("type", "text"), str(turn["from"]).lower()
        if kind not in ("text", "audio"):
            raise DataError(f"has a turn of type {kind!r}; it must be text or audio")
        yield role, audio.cut(turn) if kind == "audio" else turn["value"]


def parse_share_gpt(
    data: dict[str, Any], audio: FileTurns | TarTurns, *, placeholders: tuple[str, ...]
) -> Iterator[tuple[str, Part]]:
    """`{"sound", "conversations": [{"from": "human"|"gpt", "value": "... <sound> ..."}, ...]}`"""
    sound = data.get("sound") or data.get("ori_sound")
    for turn in _turns(data):
        role = "assistant" if str(turn["from"]).lower() in ASSISTANT_ROLES else "user"
        tag = next((tag for tag in placeholders if tag in turn["value"]), None)
        if tag is None:
            yield role, turn["value"]
            continue
        if not sound:
            raise DataError(f"has the placeholder {tag}, but no `sound`")
        before, *after = turn["value"].split(tag)
        yield role, before.strip()
        for text in after:
            yield role, audio.cut({**turn, "value": sound})
            yield role, text.strip()


def parse_sft(data: dict[str, Any], audio: FileTurns | TarTurns) -> Iterator[tuple[str, Part]]:
    """`{"system", "conversations": [{"from": "User"|"Assistant", "value"}, ...]}`"""
    if data.get("system"):
        yield "system", data["system"]
    for turn in _turns(data):
        yield ("user" if str(turn["from"]).lower() == "user" else "assistant"), turn["value"]


def _turns(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The turns of a line, each with "from" and a text in "value"."""
    turns = data.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise DataError("has no `conversations`")
    for turn in turns:
        whole = isinstance(turn, dict) and isinstance(turn.get("value"), str) and "from" in turn
        if not whole:
            raise DataError("has a turn without `from` or without a text in `value`")
    return turns
