"""Data sets that are classes: anything with `__len__` and `__getitem__`, made or read on demand."""

import random
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Protocol

from whalesong.core.errors import ConfigError, DataError, UserError
from whalesong.core.instantiate import instantiate
from whalesong.data.faults import Faults, cause
from whalesong.data.input_schema import GeneratedItem
from whalesong.data.sources import Shard
from whalesong.data.text_example import TextExample, fields_of, text_example

SHARD_ROWS = 1000
"""Examples that are shuffled as one piece."""


class MapDataset(Protocol):
    """What an item of type `generated` names."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """`text` and perhaps `prompt`, or `input_ids` and perhaps `prompt_ids`; perhaps `id`.

        Equal indices give equal examples, in any process.
        """
        ...


def build_dataset(item: GeneratedItem, *, path: str) -> MapDataset:
    """Build the data set of an item.

    Args:
        path: where the item stands in the YAML.

    Raises:
        ConfigError: its class is not allowed, does not take these arguments, or is no data set.
    """
    try:
        dataset = instantiate({"_target_": item.target, **item.arguments})
    except UserError as error:
        raise ConfigError(f"`{path}`: {error}") from error
    except Exception as error:
        what = f"{item.target} cannot be built ({type(error).__name__}: {cause(error)})"
        raise ConfigError(f"`{path}`: {what}.") from error
    for method in ("__len__", "__getitem__"):
        if not hasattr(dataset, method):
            raise ConfigError(f"`{path}._target_`: {item.target} has no `{method}`: no data set.")
    if len(dataset) == 0:
        raise DataError(f"`{path}`: {item.target} has no examples.")
    return dataset


def generated_shards(item: GeneratedItem, *, path: str) -> list[Shard]:
    """The shards of `generated`."""
    dataset = build_dataset(item, path=path)
    name = item.target.rpartition(".")[2]
    return [
        Shard(item.target, partial(read_generated, dataset, rows, name), count=len(rows))
        for rows in row_ranges(len(dataset))
    ]


def row_ranges(count: int) -> list[range]:
    """The rows of each shard."""
    return [range(first, min(first + SHARD_ROWS, count)) for first in range(0, count, SHARD_ROWS)]


def read_generated(
    dataset: MapDataset, rows: range, name: str, rng: random.Random, faults: Faults
) -> Iterator[TextExample]:
    """Yield the examples of some rows of a data set."""
    for index in rows:
        try:
            example = _example(dataset[index], f"{name}:{index}")
        except DataError as error:
            faults.report(f"{name}, example {index}: {error}.")
        except Exception as error:
            what = f"{type(error).__name__}: {cause(error)}"
            faults.report(f"{name}, example {index}: cannot be made ({what}).")
        else:
            yield example


def _example(row: Any, name: str) -> TextExample:
    if not isinstance(row, Mapping):
        raise DataError(f"must be a mapping with `text` or `input_ids`, but is {row!r:.60}")
    return text_example(row, fields=fields_of(row), name=name)
