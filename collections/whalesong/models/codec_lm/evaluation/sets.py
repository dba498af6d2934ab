"""What generated clips are compared with: held-out clips and a reference of real audio."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse.cut import Cut, MixedCut
from torch import Tensor
from tqdm import tqdm

from whalesong.core.errors import DataError
from whalesong.data.clips import as_cut
from whalesong.data.codes import without_codes
from whalesong.data.conversation import Conversation, origin
from whalesong.data.datamodule import build_loader
from whalesong.data.loader import BatchLoader
from whalesong.metrics.embeddings import Embedder, embedding_rows
from whalesong.models.codec_lm.collator import CodecLMCollator
from whalesong.models.codec_lm.wrapper import AudioLanguageModelWrapper

LEAST_CLIPS = 3
"""Of fewer a Frechet distance cannot be extrapolated."""


@dataclass(frozen=True)
class RealClip:
    """A clip of the held-out set or of the reference."""

    id: str
    conditions: dict[str, Any]
    seconds: float
    """Length of what is generated for it."""
    audio: Tensor | None
    """(C, N); None if only codes were kept."""


@dataclass(frozen=True)
class Reference:
    """Embedded real audio."""

    rows: np.ndarray
    """(N, D) of all clips."""
    round_trip: list[np.ndarray]
    """(n, D) of each clip that was encoded and decoded; as many clips as are generated."""
    num_clips: int


class ClipReader:
    """Collator of a `BatchLoader` that reads both the conditions and the audio of clips.

    Args:
        collator: of the model; its clips have either codes or audio.
        seconds: length to crop clips to; None for that of the collator.
        with_conditions: False reads the audio alone.
    """

    def __init__(
        self, collator: CodecLMCollator, *, seconds: float | None, with_conditions: bool = True
    ) -> None:
        self.codec = collator.codec
        self.seconds = seconds
        self._whole = copy.copy(collator)
        if seconds is not None:
            self._whole.max_frames = collator.codec.num_frames(seconds)
        self._audio = copy.copy(self._whole)
        self._audio.condition_keys, self._audio.audio_prompt_ids = {}, ()
        if not with_conditions:
            self._whole = self._audio

    def load(self, example: Cut | Conversation) -> RealClip:
        """Read one clip; the errors are those of `CodecLMCollator.load`."""
        cut = as_cut(example, CodecLMCollator.family)
        clip = self._whole.load(cut)
        audio = clip.audio
        if audio is None and _has_recording(cut):
            audio = self._audio.load(without_codes(cut)).audio
        seconds = self.seconds or self._whole.measure_tokens(cut) / self.codec.frame_rate
        return RealClip(clip.id, clip.values, seconds, audio)

    def __call__(self, clips: Sequence[RealClip]) -> list[RealClip]:
        """The clips as they are."""
        return list(clips)


def open_shar(folder: Path, collator: Any, *, batch_size: int = 8) -> BatchLoader:
    """Every clip of a shar folder once, in order; an error says now that there is no such shar."""
    section = {"shar_path": str(folder), "batch_size": batch_size, "shuffle": False}
    return build_loader(section, collator, path="data.test_ds")


def read_clips(folder: Path, reader: ClipReader) -> Iterator[RealClip]:
    """The clips of a shar folder, one by one."""
    for batch in open_shar(folder, reader):
        yield from batch


def read_held_out(
    folder: Path, reader: ClipReader, *, num_clips: int, needs_audio: bool
) -> list[RealClip]:
    """The first clips of the held-out set.

    Args:
        folder: shar.
        reader: of conditions and audio.
        num_clips: at most.
        needs_audio: whether they are the reference, too.

    Raises:
        DataError: there are too few, or they have no recordings but need them.
    """
    clips = list(islice(read_clips(folder, reader), num_clips))
    _check_count(len(clips), folder)
    if needs_audio:
        for clip in clips:
            _check_audio(clip, folder)
    return clips


def embed_reference(
    clips: Iterable[RealClip],
    folder: Path,
    model: AudioLanguageModelWrapper,
    embedder: Embedder,
    *,
    num_decoded: int,
) -> Reference:
    """Embed real audio, and what the codec makes of the first clips of it.

    Args:
        clips: all of the reference.
        folder: where they are from.
        model: whose codec is used.
        embedder: of waveforms.
        num_decoded: clips to encode and decode: as many as are generated, since distances depend
            on the number.

    Raises:
        DataError: there are too few clips, or one has no recording.
    """
    rows, round_trip = [], []
    for clip in tqdm(clips, desc="reference", unit="clip"):
        _check_audio(clip, folder)
        rows.append(embed(clip.audio, model.sample_rate, embedder))
        if len(round_trip) < num_decoded:
            decoded = through_codec(clip.audio, model)
            round_trip.append(embed(decoded, model.sample_rate, embedder))
    _check_count(len(rows), folder)
    return Reference(np.concatenate(rows), round_trip, len(rows))


def embed(audio: Tensor, sample_rate: int, embedder: Embedder) -> np.ndarray:
    """The rows (n, D) of one waveform (C, N)."""
    return embedding_rows(embedder(audio, sample_rate), name="embedder", least=1)


@torch.no_grad()
def through_codec(audio: Tensor, model: AudioLanguageModelWrapper) -> Tensor:
    """Audio (C, N) encoded and decoded, on the CPU."""
    codes, _ = model.pretransform.encode(audio[None].to(model.device))
    return model.pretransform.decode(codes)[0, :, : audio.shape[1]].cpu()


def _has_recording(cut: Cut) -> bool:
    """Where only codes were kept, the manifest of the recording names no source."""
    recording = getattr(cut, "recording", None)
    return isinstance(cut, MixedCut) or (recording is not None and bool(origin(cut)))


def _check_audio(clip: RealClip, folder: Path) -> None:
    if clip.audio is None:
        raise DataError(
            f"{folder}, cut {clip.id}: has no recording to compare with; name a shar with "
            "recordings as `reference`."
        )


def _check_count(count: int, folder: Path) -> None:
    if count < LEAST_CLIPS:
        raise DataError(f"{folder}: must hold at least {LEAST_CLIPS} clips, but holds {count}.")
