"""Writing lhotse shar: whole or not at all, and never with audio that cannot be trained on."""

import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import soundfile
from lhotse import MonoCut, Recording
from lhotse.cut import Cut
from lhotse.shar import SharWriter
from lhotse.utils import fastcopy
from tqdm import tqdm

from whalesong.core.atomic import atomic_folder
from whalesong.core.errors import DataError
from whalesong.data.audio import read_audio
from whalesong.data.conversation import transcript
from whalesong.data.faults import Faults, OnBadCut
from whalesong.data.manifest_source import FileAudio, existing, nemo_cut
from whalesong.data.manifests import count_lines, read_jsonl


@dataclass(frozen=True, slots=True)
class SharSummary:
    """What was written."""

    folder: Path
    num_cuts: int
    seconds: float
    """Of audio."""
    left_out: int = 0
    """Lines that could not be used, with `on_bad_cut="skip"`."""


def write_shar(
    cuts: Iterable[Cut],
    folder: str | os.PathLike[str],
    *,
    fields: Mapping[str, str] | None = None,
    shard_size: int = 1000,
    total: int | None = None,
) -> SharSummary:
    """Write cuts and their data into a new shar folder.

    The folder appears when all is written; a killed run leaves a hidden folder beside it,
    which the next run replaces.

    Args:
        fields: field -> format, for example `{"recording": "flac", "target_audio": "wav"}`; the
            default is flac for the recording.
        total: number of cuts, for the progress bar.

    Raises:
        DataError: the folder exists, or there are no cuts.
    """
    target = Path(folder)
    count, seconds = 0, 0.0
    with atomic_folder(target) as unfinished:
        writer = SharWriter(
            str(unfinished), fields=dict(fields or {"recording": "flac"}), shard_size=shard_size
        )
        with writer:
            for cut in tqdm(cuts, total=total, desc=f"Writing {target.name}", unit="cut"):
                writer.write(cut)
                count, seconds = count + 1, seconds + cut.duration
        if not count:
            raise DataError(f"{target}: there are no cuts to write.")
    return SharSummary(target, count, seconds)


def manifest_to_shar(
    manifest: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    shard_size: int = 1000,
    audio_format: str = "flac",
    sample_rate: int | None = None,
    text_field: str = "text",
    lang_field: str = "lang",
    on_bad_cut: OnBadCut = "raise",
) -> SharSummary:
    """Pack recordings and their transcripts into shar.

    Args:
        manifest: one JSON object a line: `audio_filepath` (relative to the manifest, or absolute),
            `text`, and optionally `duration`, `offset`, `lang` and further attributes.
        sample_rate: resample to this rate in Hz; as recorded when None.

    Returns:
        What was written; every cut has an id of its own, also when file names repeat.

    Raises:
        DataError: a line is broken, or its audio is missing, empty, not finite or not mono; with
            `skip` such lines are left out, logged and counted.
    """
    path, faults = existing(str(manifest)), Faults(on_bad_cut)
    fields = {"text_field": text_field, "lang_field": lang_field}
    cuts = _decoded_cuts(path, faults, sample_rate=sample_rate, **fields)
    total = count_lines(path)
    summary = write_shar(
        cuts, folder, fields={"recording": audio_format}, shard_size=shard_size, total=total
    )
    faults.log_total(path)
    return SharSummary(summary.folder, summary.num_cuts, summary.seconds, faults.total)


def _decoded_cuts(
    path: str, faults: Faults, *, sample_rate: int | None, text_field: str, lang_field: str
) -> Iterator[Cut]:
    """Yield the manifest's cuts with their checked audio in memory."""
    audio, ids = FileAudio(path), UniqueIds()
    for number, data in read_jsonl(path, faults):
        try:
            source, name = audio.locate(data)
            cut = nemo_cut(data, source, name, text_field=text_field, lang_field=lang_field)
            transcript(cut)
            cut = _in_memory(cut, sample_rate)
            yield _renamed(cut, ids.make(Path(name).stem))
        except DataError as error:
            faults.report(f"{path}, line {number}: {str(error).rstrip('.')}.")


class UniqueIds:
    """Makes ids of names that may repeat: `utt`, `utt-2`, `utt-3`."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next: Counter[str] = Counter()

    def make(self, name: str) -> str:
        """The name, or the name with the first number that is free."""
        id = name
        while id in self._taken:
            self._next[name] += 1
            id = f"{name}-{self._next[name] + 1}"
        self._taken.add(id)
        return id


def _in_memory(cut: MonoCut, sample_rate: int | None) -> MonoCut:
    """The cut with its audio decoded and checked, as a whole recording."""
    samples, rate = read_audio(cut, sample_rate=sample_rate)
    data = io.BytesIO()
    soundfile.write(data, samples, rate, format="WAV", subtype="FLOAT")
    whole = Recording.from_bytes(data.getvalue(), recording_id=cut.id).to_cut()
    segments = [fastcopy(segment, duration=whole.duration) for segment in cut.supervisions]
    custom = {key: value for key, value in cut.custom.items() if not key.startswith("_")}
    return fastcopy(whole, supervisions=segments, custom=custom or None)


def _renamed(cut: MonoCut, id: str) -> MonoCut:
    segments = [fastcopy(segment, id=id, recording_id=id) for segment in cut.supervisions]
    recording = fastcopy(cut.recording, id=id)
    return fastcopy(cut, id=id, recording=recording, supervisions=segments)
