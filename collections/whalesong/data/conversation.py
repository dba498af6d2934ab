"""What a batch plan is made of: lhotse cuts, conversations of text and audio, and texts.

All hold metadata only and are cheap to pickle: audio is read later, in a worker, by
`whalesong.data.audio.load_audio`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lhotse.cut import Cut

from whalesong.core.errors import DataError
from whalesong.data.tar_index import is_reference
from whalesong.data.text_example import TextExample

Part = str | Cut
"""A piece of a turn: text, or audio."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says before the other one speaks."""

    role: str
    """Who speaks: "system", "user" or "assistant"."""
    parts: tuple[Part, ...]
    """Text and audio in reading order."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A dialogue of text and audio; no two neighbouring turns have the same role."""

    id: str
    turns: tuple[Turn, ...]
    custom: dict[str, Any] = field(default_factory=dict)
    """Attributes that came with the example or from `tags`."""
    source: str = ""
    """Where it was read, for messages."""

    @property
    def audios(self) -> list[Cut]:
        """The audio parts of all turns in reading order."""
        return [part for turn in self.turns for part in turn.parts if not isinstance(part, str)]

    @property
    def texts(self) -> list[str]:
        """The text parts of all turns in reading order."""
        return [part for turn in self.turns for part in turn.parts if isinstance(part, str)]

    @property
    def duration(self) -> float:
        """Seconds of audio in all turns."""
        return sum(cut.duration for cut in self.audios)


Example = Cut | Conversation | TextExample
"""One item of a batch plan."""


def make_conversation(
    id: str,
    parts: Iterable[tuple[str, Part]],
    *,
    custom: dict[str, Any] | None = None,
    source: str = "",
) -> Conversation:
    """Build a conversation of (role, part) pairs; neighbours of the same role become one turn."""
    turns: list[Turn] = []
    for role, part in parts:
        if turns and turns[-1].role == role:
            turns[-1] = Turn(role, (*turns[-1].parts, part))
        else:
            turns.append(Turn(role, (part,)))
    return Conversation(id, tuple(turns), custom or {}, source)


def as_conversation(cut: Cut, *, default_context: str | None = None) -> Conversation:
    """Ask for the transcript of a cut: user = [context, audio], assistant = its text.

    The context is the first that is given of `cut.context`, `cut.question`,
    `cut.default_context` and the argument; a `cut.system_prompt` comes before it.

    Raises:
        DataError: the cut has no transcript, or an empty one.
    """
    given = getattr(cut, "custom", None) or {}
    custom = {key: value for key, value in given.items() if not key.startswith("_")}
    contexts = (custom.get(key) for key in ("context", "question", "default_context"))
    context = next((text for text in contexts if text is not None), default_context)
    parts: list[tuple[str, Part]] = []
    if custom.get("system_prompt"):
        parts.append(("system", custom["system_prompt"]))
    if context:
        parts.append(("user", context))
    parts += [("user", cut), ("assistant", transcript(cut))]
    return make_conversation(cut.id, parts, custom=custom)


def with_tags(example: Example, tags: Mapping[str, Any]) -> Example:
    """Put attributes on an example.

    In a conversation, a `context` also becomes text before the audio that it opens with, and a
    `system_prompt` its first turn if it has no system turn.
    """
    if isinstance(example, TextExample):
        return replace(example, custom={**example.custom, **tags})
    if not isinstance(example, Conversation):
        for key, value in tags.items():
            setattr(example, key, value)
        return example
    parts = [(turn.role, part) for turn in example.turns for part in turn.parts]
    role, first = parts[0] if parts else ("", "")
    if tags.get("context") and role == "user" and not isinstance(first, str):
        parts = [("user", tags["context"]), *parts]
    if tags.get("system_prompt") and role != "system":
        parts = [("system", tags["system_prompt"]), *parts]
    custom = {**example.custom, **tags}
    return make_conversation(example.id, parts, custom=custom, source=example.source)


def transcript(cut: Cut) -> str:
    """The texts of a cut's supervisions, joined; a DataError names the cut that has none."""
    texts = [segment.text for segment in cut.supervisions]
    if not texts or any(text is None for text in texts):
        raise DataError(f"{origin(cut)}, cut {cut.id}: has no text in its supervision.")
    text = " ".join(texts).strip()
    if not text:
        raise DataError(f"{origin(cut)}, cut {cut.id}: has an empty text.")
    return text


def origin(cut: Cut) -> str:
    """The file that a cut's audio lies in, for messages."""
    recording = getattr(cut, "recording", None)
    if recording is None or not recording.sources:
        return "no file"
    source = recording.sources[0].source
    if not isinstance(source, str):
        return "audio in memory"
    return source.rsplit("#", 1)[0] if is_reference(source) else source


def located(error: DataError, example: Example) -> DataError:
    """The error with the place of the example in front, if it does not name it yet."""
    place, message = _place(example), str(error)
    return error if place in message else DataError(f"{place}: {message}")


def _place(example: Example) -> str:
    """The file of an example; its id where that says where it is from."""
    if isinstance(example, TextExample):
        return example.id
    if not isinstance(example, Conversation):
        return origin(example)
    return example.source or next(map(origin, example.audios), example.id)


def conversation_from_nemo(example: Any) -> Conversation:
    """Turn a `NeMoMultimodalConversation` into a conversation.

    Args:
        example: has `id`, `turns` (each with `role`, and `cut` or `value`) and `custom`.
    """
    parts = [
        (turn.role, turn.cut if hasattr(turn, "cut") else turn.value) for turn in example.turns
    ]
    return make_conversation(example.id, parts, custom=dict(example.custom or {}))


def text_of(example: Example) -> TextExample:
    """An example as text alone: what the assistant says answers what the user says.

    Raises:
        DataError: it has audio.
    """
    if isinstance(example, TextExample):
        return example
    if not isinstance(example, Conversation) or example.audios:
        raise DataError(f"example {example.id}: must be text for a text model, but has audio.")
    texts = {turn.role: " ".join(map(str, turn.parts)) for turn in example.turns}
    text, prompt = texts.get("assistant", ""), texts.get("user")
    return TextExample(example.id, text, prompt=prompt, custom=example.custom)
