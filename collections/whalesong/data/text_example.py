"""Examples of text alone: what is to be said, and what it answers, if anything."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from whalesong.core.errors import DataError
from whalesong.data.faults import cause


@dataclass(frozen=True, slots=True)
class TextExample:
    """A text, or the token ids of one, and perhaps the prompt that it answers."""

    id: str
    text: str = ""
    """What is to be said; empty if there are `input_ids`."""
    prompt: str | None = None
    """What it answers."""
    input_ids: list[int] | None = None
    """Token ids of the text, without special tokens."""
    prompt_ids: list[int] | None = None
    """Token ids of the prompt, without special tokens."""
    custom: dict[str, Any] = field(default_factory=dict)
    """Attributes that came with the example or from `tags`."""

    @property
    def duration(self) -> float:
        """Seconds of audio: none."""
        return 0.0

    @property
    def texts(self) -> list[str]:
        """Prompt and text, as far as they are given as text."""
        return [part for part in self.parts if isinstance(part, str)]

    @property
    def parts(self) -> list[str | list[int]]:
        """Prompt and text in the forms in which they are given."""
        parts = (self.prompt, self.prompt_ids, self.text, self.input_ids)
        return [part for part in parts if part]


@dataclass(frozen=True)
class TextFields:
    """Under which names a row has its text or token ids; None where it has none."""

    text: str | None = None
    prompt: str | None = None
    input_ids: str | None = None
    prompt_ids: str | None = None

    @property
    def names(self) -> list[str]:
        """The fields that a row must have."""
        fields = (self.text, self.prompt, self.input_ids, self.prompt_ids)
        return [name for name in fields if name is not None]


def fields_of(row: Mapping[str, Any]) -> TextFields:
    """The fields by which a row calls itself an example: `text` or `input_ids`, and a prompt.

    Raises:
        DataError: it has neither, or both.
    """
    given = [name for name in ("text", "input_ids") if row.get(name) is not None]
    if len(given) != 1:
        has = "has both" if given else f"has neither, but {_listed(row)}"
        raise DataError(f"must have either `text` or `input_ids`, but {has}")
    found = {name: name for name in ("prompt", "prompt_ids") if row.get(name) is not None}
    return TextFields(**{given[0]: given[0]}, **found)


def text_example(row: Mapping[str, Any], *, fields: TextFields, name: str) -> TextExample:
    """Make the example of a row.

    Args:
        row: an `id` of its own is kept; what is no field of the example becomes `custom`.
        fields: where text and prompt are.
        name: its id where it brings none.

    Raises:
        DataError: a field is missing, empty, or of another kind; the caller names the row.
    """
    own_id = row.get("id")
    taken = {"id", *fields.names}
    return TextExample(
        name if own_id is None else str(own_id),
        text="" if fields.text is None else _text(row, fields.text),
        prompt=None if fields.prompt is None else _text(row, fields.prompt),
        input_ids=None if fields.input_ids is None else _ids(row, fields.input_ids),
        prompt_ids=None if fields.prompt_ids is None else _ids(row, fields.prompt_ids),
        custom={key: value for key, value in row.items() if key not in taken},
    )


def missing_field(name: str, known: Iterable[str]) -> str:
    """The part of a sentence about a field that is not there, with the nearest one that is."""
    known = list(known)
    if near := difflib.get_close_matches(name, known, n=1):
        return f"has no field `{name}`; did you mean `{near[0]}`?"
    return f"has no field `{name}`, but {_listed(known)}"


def _text(row: Mapping[str, Any], name: str) -> str:
    value = _value(row, name)
    if not isinstance(value, str):
        raise DataError(f"its `{name}` must be a string, but is {value!r:.60}")
    if not value.strip():
        raise DataError(f"its `{name}` is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"its `{name}` is no valid Unicode ({cause(error)})") from error
    return value


def _ids(row: Mapping[str, Any], name: str) -> list[int]:
    value = _value(row, name)
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, list | tuple):
        raise DataError(f"its `{name}` must be a list of token ids, but is {value!r:.60}")
    if not value:
        raise DataError(f"its `{name}` are empty")
    wrong = [item for item in value if type(item) is not int or item < 0]
    if wrong:
        raise DataError(f"its `{name}` must be integers of at least 0, but hold {wrong[0]!r:.60}")
    return list(value)


def _value(row: Mapping[str, Any], name: str) -> Any:
    if row.get(name) is None:
        raise DataError(missing_field(name, [key for key in row if row[key] is not None]))
    return row[name]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "no other either"
