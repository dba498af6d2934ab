"""Cuts manifests of lhotse and manifests of NeMo, with audio in files or in tar files."""

import os
import random
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lhotse import AudioSource, Features, MonoCut, Recording, SupervisionSegment
from lhotse.array import Array, TemporalArray
from lhotse.cut import Cut, MixedCut
from lhotse.utils import compute_num_samples

from whalesong.core.errors import DataError
from whalesong.data.audio import UNPROBED, read_header
from whalesong.data.faults import Faults
from whalesong.data.manifests import check_text, expand_paths, parse_cut, read_jsonl
from whalesong.data.sources import Shard
from whalesong.data.tar_index import index_tar, read_reference

SEGMENT = re.compile(r"^(?P<stem>.+)-sub\d+(?P<extension>\.\w+)?$")
"""Name of a segment in a tarred NeMo manifest: several lines share one member."""


def cuts_shards(path: str) -> list[Shard]:
    """A lhotse cuts manifest as one shard."""
    return [Shard(existing(path), partial(read_cuts, path))]


def read_cuts(path: str, rng: random.Random, faults: Faults) -> Iterator[Cut]:
    """Yield the cuts of a manifest; relative audio paths start at its folder if they lie there."""
    folder = Path(path).parent
    for number, data in read_jsonl(path, faults):
        try:
            cut = parse_cut(data)
        except DataError as error:
            faults.report(f"{path}, line {number}: {error}.")
            continue
        _resolve_paths(cut, folder)
        yield cut


def nemo_shards(
    manifests: Any, tars: Any = None, *, text_field: str, lang_field: str, skip_missing: bool
) -> list[Shard]:
    """The shards of a NeMo manifest.

    Args:
        manifests: path or paths, in NeMo's sharded notation too.
        tars: the same of tar files: one for each manifest, or several for one manifest whose
            lines have a `shard_id`.

    Raises:
        DataError: a file is missing, or the numbers of files do not fit.
    """
    paths = [existing(path) for path in expand_paths(manifests, key="manifest_filepath")]
    fields = {"text_field": text_field, "lang_field": lang_field}
    if tars is None:
        return [
            Shard(path, partial(read_nemo, path, audio=FileAudio(path), **fields)) for path in paths
        ]
    tar_paths = [existing(path) for path in expand_paths(tars, key="tarred_audio_filepaths")]
    if len(paths) == 1:
        groups = [tar_paths]
    elif len(paths) == len(tar_paths):
        groups = [[path] for path in tar_paths]
    else:
        raise DataError(f"{paths[0]}: {len(paths)} manifests have {len(tar_paths)} tar files.")
    return [
        Shard(path, partial(read_nemo, path, audio=TarAudio(path, group, skip_missing), **fields))
        for path, group in zip(paths, groups, strict=True)
    ]


def read_nemo(
    path: str,
    rng: random.Random,
    faults: Faults,
    *,
    audio: "FileAudio | TarAudio",
    text_field: str,
    lang_field: str,
) -> Iterator[Cut]:
    """Yield a cut for each line of a NeMo manifest; further keys become attributes of the cut."""
    for number, data in read_jsonl(path, faults):
        if data.get("_skipme"):
            continue
        try:
            source, name = audio.locate(data)
            yield nemo_cut(data, source, name, text_field=text_field, lang_field=lang_field)
        except DataError as error:
            faults.report(f"{path}, line {number}: {error}.")
    audio.finish(faults)


class FileAudio:
    """Audio in files of their own, relative to the manifest's folder or to `root`."""

    def __init__(self, manifest: str, root: str | None = None) -> None:
        self.folder = Path(root) if root else Path(manifest).parent

    def locate(self, data: dict[str, Any]) -> tuple[AudioSource, str]:
        """The source of a line's audio and a name that is unique in the manifest."""
        name = data.get("audio_filepath")
        if not isinstance(name, str) or not name:
            raise DataError("has no audio_filepath")
        return AudioSource("file", channels=[0], source=resolve_path(name, self.folder)), name

    def finish(self, faults: Faults) -> None:
        """Nothing is left to check."""


class TarAudio:
    """Audio in one or several tar files, found by name."""

    def __init__(self, manifest: str, tars: list[str], skip_missing: bool = True) -> None:
        self.manifest, self.tars, self.skip_missing = manifest, tars, skip_missing
        self._used: set[str] = set()

    def locate(self, data: dict[str, Any]) -> tuple[AudioSource, str]:
        """The source of a line's audio and a name that is unique in the manifest."""
        name = data.get("audio_filepath")
        if not isinstance(name, str) or not name:
            raise DataError("has no audio_filepath")
        segment = SEGMENT.match(name)
        member = segment["stem"] + (segment["extension"] or "") if segment else name
        index = index_tar(self._tar_of(data))
        position = index.positions.get(member)
        if position is None:
            reason = f"; the file {index.damage}" if index.damage else ""
            count = index.names.count(member)
            raise DataError(f"{index.path} has {count or 'no'} members {member}{reason}")
        self._used.add(member)
        return AudioSource("shar", channels=[0], source=index.reference(position)), name

    def _tar_of(self, data: dict[str, Any]) -> str:
        if len(self.tars) == 1:
            return self.tars[0]
        wanted = data.get("shard_id")
        for path in self.tars:
            number = re.search(r"_(\d+)[^/]*\.tar$", path)
            if number and wanted is not None and int(number[1]) == int(wanted):
                return path
        raise DataError(f"has shard_id {wanted}, but no tar file has this number")

    def finish(self, faults: Faults) -> None:
        """Report members that no line names."""
        if self.skip_missing:
            return
        for path in self.tars:
            unnamed = [name for name in index_tar(path).names if name not in self._used]
            if unnamed:
                faults.report(
                    f"{path}: {len(unnamed)} members are not named in {self.manifest}, first "
                    f"{unnamed[0]} (`skip_missing_manifest_entries` leaves them out).",
                    lost=0,
                )


def nemo_cut(
    data: dict[str, Any], source: AudioSource, name: str, *, text_field: str, lang_field: str
) -> MonoCut:
    """Build the cut of a manifest line without opening its audio, if the line has a duration."""
    taken = ("audio_filepath", "duration", text_field)
    custom = {key: value for key, value in data.items() if key not in taken}
    check_text(data.get(text_field), name=name)
    cut = audio_cut(
        source,
        name,
        duration=data.get("duration"),
        offset=custom.pop("offset", None),
        sample_rate=custom.pop("sampling_rate", None) or custom.pop("sample_rate", None),
    )
    segment = SupervisionSegment(
        id=cut.id,
        recording_id=name,
        start=0,
        duration=cut.duration,
        text=data.get(text_field),
        language=data.get(lang_field),
    )
    cut.supervisions = [segment]
    cut.custom = {**custom, **(cut.custom or {})}
    return cut


def audio_cut(
    source: AudioSource,
    name: str,
    *,
    duration: float | None = None,
    offset: float | None = None,
    sample_rate: int | None = None,
) -> MonoCut:
    """A cut of a file whose header is read later, or now if `duration` is not given.

    Args:
        name: unique name of the audio, for ids; the segment is added to it.
        duration: seconds; of the segment if `offset` is given, of the file if not.
    """
    start = offset or 0.0
    if duration is None:
        duration = _probe_duration(source, name) - start
    _check_times(name, duration, start)
    rate = int(sample_rate or 16000)
    recording = Recording(
        id=name,
        sources=[source],
        sampling_rate=rate,
        num_samples=compute_num_samples(start + duration, rate),
        duration=start + duration,
    )
    return MonoCut(
        id=name if offset is None else f"{name}-{start:.3f}-{duration:.3f}",
        start=start,
        duration=duration,
        channel=0,
        recording=recording,
        custom={UNPROBED: "whole" if offset is None else "segment"},
    )


def _probe_duration(source: AudioSource, name: str) -> float:
    try:
        data = read_reference(source.source) if source.type == "shar" else source.source
        header = read_header(data)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    if header is None:
        raise DataError(f"{name}: has no duration, and its header cannot be read")
    if not header.frames:
        raise DataError(f"{name}: holds no samples")
    return header.duration


def _check_times(name: str, duration: Any, start: Any) -> None:
    for key, value, least in (("duration", duration, 1e-6), ("offset", start, 0.0)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
            raise DataError(f"{name}: its {key} is {value!r}")
        if value == float("inf"):
            raise DataError(f"{name}: its {key} is {value!r}")


def resolve_path(path: str, folder: Path) -> str:
    """A relative path starts at the folder, or at the working directory if only that exists."""
    if os.path.isabs(path):
        return path
    beside = folder / path
    return path if not beside.exists() and os.path.exists(path) else str(beside)


def _resolve_paths(cut: Cut, folder: Path) -> None:
    """Resolve the files of audio and codes of a cut that was just read."""
    if isinstance(cut, MixedCut):
        for track in cut.tracks:
            _resolve_paths(track.cut, folder)
        return
    owned = [getattr(cut, name, None) for name in ("recording", "features")]
    for value in (*owned, *(getattr(cut, "custom", None) or {}).values()):
        if isinstance(value, Recording):
            for source in value.sources:
                if source.type == "file":
                    source.source = resolve_path(source.source, folder)
        stored = value.array if isinstance(value, TemporalArray) else value
        if isinstance(stored, Array | Features) and _is_path(stored.storage_path):
            stored.storage_path = resolve_path(stored.storage_path, folder)


def _is_path(storage: str | None) -> bool:
    """Whether it is a file or folder, not a URL, and not in memory."""
    return bool(storage) and "://" not in storage


def existing(path: str) -> str:
    """The path, if it is that of a file; a DataError if not."""
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such file.")
    return path
