"""Lhotse shar with random access: line k of `cuts.NNNNNN.jsonl.gz` belongs to item k of each tar.

Cuts come with references into the tar files; `materialize` puts the bytes in their place.
"""

import json
import os
import random
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lhotse import AudioSource, Features, MonoCut, MultiCut, Recording
from lhotse.array import Array, TemporalArray
from lhotse.cut import Cut, MixedCut
from lhotse.serialization import deserialize_item
from lhotse.utils import fastcopy

from whalesong.core.errors import DataError
from whalesong.data.faults import Faults, cause
from whalesong.data.manifests import count_lines, expand_paths, parse_cut, read_jsonl
from whalesong.data.sources import Shard
from whalesong.data.tar_index import index_tar, is_reference, read_reference

SHARD_FILE = re.compile(r"(?P<field>[^.]+)\.(?P<number>\d+)\.(tar|jsonl)(\.gz)?$")
Manifest = Recording | Features | Array | TemporalArray


def shar_shards(path: str | Mapping[str, Any], faults: Faults | None = None) -> list[Shard]:
    """The shards of a shar folder, or of a mapping field -> paths.

    Args:
        faults: takes a shard of a folder that lacks a file.

    Raises:
        DataError: the folder is missing or holds no cuts, or a named file is missing.
    """
    faults = faults or Faults()
    fields = _fields_of(path) if isinstance(path, Mapping) else _fields_in(Path(path), faults)
    cuts = fields.pop("cuts", [])
    if not cuts:
        raise DataError(f"{path}: holds no cuts (cuts.000000.jsonl.gz and so on).")
    for field, files in fields.items():
        if len(files) != len(cuts):
            raise DataError(
                f"{path}: has {len(files)} files of the field {field}, but {len(cuts)} of cuts."
            )
    return [
        Shard(cuts_path, partial(read_shard, cuts_path, {f: fields[f][k] for f in sorted(fields)}))
        for k, cuts_path in enumerate(cuts)
    ]


def _fields_of(mapping: Mapping[str, Any]) -> dict[str, list[str]]:
    fields = {name: expand_paths(paths, key="shar_path") for name, paths in mapping.items()}
    for file in (file for files in fields.values() for file in files):
        if not os.path.isfile(file):
            raise DataError(f"{file}: no such file.")
    return fields


def _fields_in(folder: Path, faults: Faults) -> dict[str, list[str]]:
    """Find `field.number.extension` files; a shard that lacks one of its fields is left out."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such shar folder.")
    found: dict[str, dict[str, str]] = {}
    for file in sorted(folder.iterdir()):
        if name := SHARD_FILE.match(file.name):
            found.setdefault(name["field"], {})[name["number"]] = str(file)
    whole = []
    for number in sorted(set().union(*found.values())):
        if missing := next((field for field in found if number not in found[field]), None):
            cuts = found.get("cuts", {}).get(number)
            faults.report(
                f"{folder}: has no file {missing}.{number}.* of shard {number}.",
                lost=1 if cuts is None else count_lines(cuts),
            )
        else:
            whole.append(number)
    return {field: [files[number] for number in whole] for field, files in found.items()}


def read_shard(
    cuts_path: str, fields: Mapping[str, str], rng: random.Random, faults: Faults
) -> Iterator[Cut]:
    """Yield the cuts of a shard with references to their data."""
    columns = []
    for field, path in fields.items():
        try:
            columns.append(_TarColumn(field, path) if ".tar" in path else _JsonColumn(field, path))
        except DataError as error:
            lost = count_lines(cuts_path)
            faults.report(f"{error} Its shard {cuts_path} is lost.", lost=lost)
            return
    for number, data in read_jsonl(cuts_path, faults):
        try:
            cut = parse_cut(data)
        except DataError as error:
            faults.report(f"{cuts_path}, line {number}: {error}.")
            continue
        try:
            for column in columns:
                column.attach(cut, number - 1, faults)
        except DataError as error:
            faults.report(str(error))
            continue
        yield cut
    for column in columns:
        column.check_length(count_lines(cuts_path), cuts_path, faults)


class _TarColumn:
    """One field of a shard: pairs (data, metadata) of members of a tar file."""

    def __init__(self, field: str, path: str) -> None:
        self.field = field
        self.index = index_tar(path)

    def attach(self, cut: Cut, position: int, faults: Faults) -> None:
        """Give the cut a reference to its item; a DataError says why there is none."""
        pair = self._find(cut.id, position, faults)
        manifest = self._manifest(cut, pair)
        if manifest is not None:
            setattr(cut, self.field, manifest)

    def _find(self, id: str, position: int, faults: Faults) -> int:
        items, place = self.index.items, f"{self.index.path}, cut {id}"
        if position < len(items) and items[position] == id:
            return position
        if (elsewhere := self.index.item_positions.get(id)) is not None:
            faults.report(f"{place}: its item is out of order; found by its name.", lost=0)
            return elsewhere
        if position < len(items):
            raise DataError(f"{place}: the item in its place is of cut {items[position]}.")
        reason = self.index.damage or "fewer than there are cuts"
        raise DataError(f"{place}: has no audio in the file of {len(items)} items ({reason}).")

    def _manifest(self, cut: Cut, pair: int) -> Manifest | None:
        name = self.index.names[2 * pair]
        if name.endswith(".nodata"):
            return None
        manifest = getattr(cut, self.field, None)
        if not isinstance(manifest, Manifest):  # a field that was written after the cuts
            manifest = _read_manifest(self.index.reference(2 * pair + 1))
        return _refer(manifest, self.index.reference(2 * pair), name)

    def check_length(self, count: int, cuts_path: str, faults: Faults) -> None:
        """Report items that no cut asks for."""
        items = self.index.items
        if len(items) > count:
            faults.report(
                f"{self.index.path}: holds {len(items)} items, but {cuts_path} has {count} cuts; "
                f"the first item without a cut is {items[count]}.",
                lost=0,
            )


class _JsonColumn:
    """One field of a shard in a JSONL file: a value for each cut."""

    def __init__(self, field: str, path: str) -> None:
        self.field, self.path = field, path
        self.rows = dict(read_jsonl(path, Faults("raise")))

    def attach(self, cut: Cut, position: int, faults: Faults) -> None:
        """Set the value of the cut's line."""
        row = self.rows.get(position + 1)
        if row is None or row.get("cut_id") != cut.id:
            found = "missing" if row is None else f"of {row.get('cut_id')}"
            raise DataError(f"{self.path}, cut {cut.id}: line {position + 1} is {found}.")
        if self.field in row:
            setattr(cut, self.field, row[self.field])

    def check_length(self, count: int, cuts_path: str, faults: Faults) -> None:
        """Report values that no cut asks for."""
        if len(self.rows) > count:
            faults.report(
                f"{self.path}: holds {len(self.rows)} lines, but {cuts_path} {count}.", lost=0
            )


def _read_manifest(reference: str) -> Manifest:
    try:
        return deserialize_item(json.loads(read_reference(reference)))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{reference}: is no lhotse manifest ({cause(error)}).") from error


def _refer(manifest: Manifest, reference: str, name: str) -> Manifest:
    """Point a manifest at bytes in a tar file."""
    if isinstance(manifest, Recording):
        source = AudioSource("shar", channels=manifest.channel_ids, source=reference)
        return fastcopy(manifest, sources=[source])
    kind = "memory_lilcom" if name.endswith(".llc") else "memory_npy"
    if isinstance(manifest, TemporalArray):
        return fastcopy(manifest, array=_refer(manifest.array, reference, name))
    return fastcopy(manifest, storage_type=kind, storage_path="", storage_key=reference)


def materialize(cut: Cut) -> Cut:
    """A copy of the cut whose references are replaced by the bytes they point to.

    All of lhotse's methods work on it: `load_audio`, `load_target_audio`, `load_features`, ...

    Raises:
        DataError: a tar file cannot be read.
    """
    if isinstance(cut, MixedCut):
        tracks = [fastcopy(track, cut=materialize(track.cut)) for track in cut.tracks]
        return fastcopy(cut, tracks=tracks)
    if not isinstance(cut, MonoCut | MultiCut):
        return cut
    fields = {"recording": _resolve(cut.recording), "features": _resolve(cut.features)}
    if cut.custom:
        fields["custom"] = {key: _resolve(value) for key, value in cut.custom.items()}
    return fastcopy(cut, **fields)


def _resolve(value: Any) -> Any:
    """Read what a manifest refers to; any other value passes through."""
    if isinstance(value, Recording):
        if not any(is_reference(source.source) for source in value.sources):
            return value
        sources = [
            fastcopy(source, type="memory", source=read_reference(source.source))
            if is_reference(source.source)
            else source
            for source in value.sources
        ]
        return fastcopy(value, sources=sources)
    if isinstance(value, TemporalArray):
        return fastcopy(value, array=_resolve(value.array))
    if isinstance(value, Features | Array) and is_reference(value.storage_key):
        return fastcopy(value, storage_key=read_reference(value.storage_key))
    return value
