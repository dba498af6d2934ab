"""JSON lines with a prompt and a text, or with the token ids of them."""

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from whalesong.core.errors import DataError
from whalesong.data.faults import Faults
from whalesong.data.manifest_source import existing
from whalesong.data.manifests import expand_paths, read_jsonl
from whalesong.data.sources import Shard
from whalesong.data.text_example import TextExample, TextFields, text_example


def text_pairs_shards(paths: Any, *, fields: TextFields) -> list[Shard]:
    """The shards of `text_pairs`, one for each file."""
    files = [existing(path) for path in expand_paths(paths, key="paths")]
    return [Shard(file, partial(read_text_pairs, file, fields)) for file in files]


def read_text_pairs(
    path: str, fields: TextFields, rng: random.Random, faults: Faults
) -> Iterator[TextExample]:
    """Yield the example of each line."""
    for number, row in read_jsonl(path, faults):
        try:
            example = text_example(row, fields=fields, name=f"{Path(path).name}:{number}")
        except DataError as error:
            faults.report(f"{path}, line {number}: {error}.")
        else:
            yield example
