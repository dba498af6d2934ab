"""Text-only examples as conversations: lines, JSON lines, and line-aligned pairs."""

import json
import random
from collections.abc import Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from whalesong.data.conversation import Conversation, make_conversation
from whalesong.data.faults import Faults, cause
from whalesong.data.input_schema import TextPairItem
from whalesong.data.manifest_source import existing
from whalesong.data.manifests import expand_paths, read_lines
from whalesong.data.sources import Shard


def text_shards(paths: Any, *, text_field: str | None, language: str | None) -> list[Shard]:
    """The shards of `txt`, or of `txt_jsonl` if a field is named."""
    read = partial(read_text, text_field=text_field, language=language)
    files = [existing(path) for path in expand_paths(paths, key="paths")]
    return [Shard(file, partial(read, file)) for file in files]


def read_text(
    path: str, rng: random.Random, faults: Faults, *, text_field: str | None, language: str | None
) -> Iterator[Conversation]:
    """Yield each line, or the field of each JSON line, as what an assistant says."""
    for number, line in read_lines(path, faults):
        text: Any = line
        if text_field is not None:
            try:
                text = json.loads(line).get(text_field)
            except (ValueError, AttributeError) as error:
                faults.report(f"{path}, line {number}: is not a JSON object ({cause(error)}).")
                continue
        if not isinstance(text, str) or not text:
            faults.report(f"{path}, line {number}: has no text in `{text_field}`.")
            continue
        custom = {"language": language} if language else {}
        yield make_conversation(_line_id(path, number), [("assistant", text)], custom=custom)


def pair_shards(item: TextPairItem) -> list[Shard]:
    """The shards of `txt_pair`."""
    sources = [existing(path) for path in expand_paths(item.source_paths, key="source_paths")]
    targets = [existing(path) for path in expand_paths(item.target_paths, key="target_paths")]
    if len(sources) != len(targets):
        Faults().report(f"{sources[0]}: {len(sources)} source files have {len(targets)} targets.")
    if item.questions_path is not None:
        existing(item.questions_path)
    languages = {"source_lang": item.source_language, "target_lang": item.target_language}
    custom = {key: value for key, value in languages.items() if value is not None}
    read = partial(read_pairs, questions_path=item.questions_path, custom=custom)
    return [
        Shard(source, partial(read, source, target))
        for source, target in zip(sources, targets, strict=True)
    ]


def read_pairs(
    source: str,
    target: str,
    rng: random.Random,
    faults: Faults,
    *,
    questions_path: str | None,
    custom: dict[str, Any],
) -> Iterator[Conversation]:
    """Yield user = (question and) source line, assistant = target line."""
    questions = [line for _, line in read_lines(questions_path, faults)] if questions_path else []
    pairs = zip_longest(_numbered(source, faults), _numbered(target, faults))
    for number, (asked, answer) in enumerate(pairs, start=1):
        if asked is None or answer is None:
            shorter = source if asked is None else target
            faults.report(f"{shorter}: ends before line {number}, unlike the file it goes with.")
            return
        # Drawn for every line, so that a bad one does not shift the questions after it.
        question = rng.choice(questions) if questions else ""
        if not asked or not answer:
            empty = target if asked else source
            faults.report(f"{empty}, line {number}: is empty.")
            continue
        parts = [("user", f"{question} {asked}".strip()), ("assistant", answer)]
        yield make_conversation(_line_id(source, number), parts, custom=dict(custom))


def _numbered(path: str, faults: Faults) -> Iterator[str]:
    """Every line of a file, "" for blank ones, so that pairs stay aligned."""
    expected = 1
    for number, line in read_lines(path, faults):
        yield from [""] * (number - expected)
        yield line
        expected = number + 1


def _line_id(path: str, number: int) -> str:
    return f"{Path(path).name}:{number}"
