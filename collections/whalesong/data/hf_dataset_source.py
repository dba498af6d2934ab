"""Data sets of the library `datasets` that were written with `save_to_disk`.

They are memory-mapped: rows are read in pieces, and only the columns that are used.
"""

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from whalesong.core.errors import ConfigError, DataError
from whalesong.data.faults import Faults, cause
from whalesong.data.generated_source import row_ranges
from whalesong.data.input_schema import HfDatasetItem
from whalesong.data.sources import Shard
from whalesong.data.text_example import TextExample, TextFields, missing_field, text_example


def hf_dataset_shards(item: HfDatasetItem, *, fields: TextFields, path: str) -> list[Shard]:
    """The shards of `hf_dataset`.

    Args:
        fields: the columns.
        path: where the item stands in the YAML.

    Raises:
        ConfigError: `split` is missing, unknown, or given for a data set without splits.
        DataError: the folder holds no data set or an empty one, or a column is missing.
    """
    dataset = _split(load_dataset(item.path), item, path)
    for name in fields.names:
        if name not in dataset.column_names:
            raise DataError(f"{item.path}: {missing_field(name, dataset.column_names)}.")
    used = [name for name in dataset.column_names if name in ("id", *fields.names)]
    dataset = dataset.select_columns(used).with_format(None)
    return [
        Shard(item.path, partial(read_rows, dataset, rows, fields, item.path), count=len(rows))
        for rows in row_ranges(len(dataset))
    ]


def load_dataset(folder: str) -> Any:
    """Open the `Dataset` or `DatasetDict` of a folder.

    Raises:
        DataError: there is none.
    """
    place = Path(folder)
    if not place.is_dir():
        raise DataError(f"{folder}: is no folder; a data set is written by its `save_to_disk`.")
    if not any((place / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise DataError(f"{folder}: holds no data set that `save_to_disk` has written.")
    from datasets import load_from_disk

    try:
        return load_from_disk(folder)
    except Exception as error:
        raise DataError(f"{folder}: cannot be read as a data set ({cause(error)}).") from error


def read_rows(
    dataset: Any, rows: range, fields: TextFields, path: str, rng: random.Random, faults: Faults
) -> Iterator[TextExample]:
    """Yield the examples of some rows."""
    try:
        columns = dataset[rows.start : rows.stop]
    except Exception as error:
        named = f"rows {rows.start} to {rows.stop - 1}"
        faults.report(f"{path}: {named} cannot be read ({cause(error)}).", lost=len(rows))
        return
    for offset, index in enumerate(rows):
        row = {name: values[offset] for name, values in columns.items()}
        try:
            example = text_example(row, fields=fields, name=f"{Path(path).name}:{index}")
        except DataError as error:
            faults.report(f"{path}, row {index}: {error}.")
        else:
            yield example


def _split(loaded: Any, item: HfDatasetItem, path: str) -> Any:
    """The data set itself, or the one of its splits that the item names."""
    if not isinstance(loaded, dict):
        if item.split is None:
            return loaded
        raise ConfigError(f"`{path}.split`: {item.path} has no splits; leave it out.")
    names = ", ".join(loaded)
    if item.split is None:
        raise ConfigError(f"`{path}.split` is missing: {item.path} has {names}.")
    if item.split not in loaded:
        raise ConfigError(f"`{path}.split` must be one of {names}, but is '{item.split}'.")
    return loaded[item.split]
