"""Reading the audio of a cut, in a worker: bytes, header, decoding, resampling, checks."""

import io
import shutil
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import soundfile
import torch
from lhotse import MonoCut, Recording
from lhotse.augmentation import get_or_create_resampler
from lhotse.cut import Cut, MixedCut
from lhotse.utils import fastcopy

from whalesong.core.errors import DataError
from whalesong.data.conversation import origin
from whalesong.data.faults import cause
from whalesong.data.shar_source import materialize

UNPROBED = "_unprobed"
"""Custom attribute of a cut whose manifest does not tell the sample rate of the file."""

LENGTH_TOLERANCE = 0.025
"""Seconds by which a file may differ from what lhotse's manifest says of it."""

ROUGH_TOLERANCE = 0.1
"""The same where lengths are rounded: NeMo's manifests, and formats that store no exact length."""

EXACT_FORMATS = ("WAV", "WAVEX", "FLAC")

PEAK_LIMIT = 65536.0
"""Greatest magnitude taken for audio; float files hold -1..1, some -32768..32767."""

ChannelSelector = int | Literal["average"] | None


def load_audio(
    cut: Cut, *, sample_rate: int, channel_selector: ChannelSelector = None
) -> np.ndarray:
    """Read the audio of a cut as finite float32 samples, (N,), at least one.

    Args:
        cut: from a batch plan, or any lhotse cut.
        sample_rate: rate in Hz of the result; the audio is resampled once if it has another one.
        channel_selector: which channel to take of several, or "average".

    Raises:
        DataError: "file, cut id: cause" for whatever keeps the audio from being read.
    """
    return read_audio(cut, sample_rate=sample_rate, channel_selector=channel_selector)[0]


def read_audio(
    cut: Cut, *, sample_rate: int | None = None, channel_selector: ChannelSelector = None
) -> tuple[np.ndarray, int]:
    """Read the audio of a cut, see `load_audio`, and its rate in Hz.

    Args:
        sample_rate: None keeps that of the file.

    Raises:
        DataError: "file, cut id: cause" for whatever keeps the audio from being read.
    """
    place = f"{origin(cut)}, cut {cut.id}"
    try:
        cut = _probe(materialize(cut))
        _check_headers(cut)
        samples = torch.from_numpy(np.atleast_2d(_decode(cut)))  # (C, N)
        samples = _select_channel(samples, channel_selector)
        rate = sample_rate or cut.sampling_rate
        if samples.numel() and cut.sampling_rate != rate:
            samples = get_or_create_resampler(cut.sampling_rate, rate)(samples[None])[0]
    except DataError as error:
        raise DataError(f"{place}: {error}.") from error
    except Exception as error:
        # Decoders raise whatever they like; its first line goes behind the file and the cut.
        raise DataError(f"{place}: cannot be decoded ({cause(error)}).") from error
    audio = samples.numpy()
    if problem := _problem(audio):
        raise DataError(f"{place}: {problem}.")
    return audio, rate


def _decode(cut: Cut) -> np.ndarray:
    if isinstance(cut, MixedCut):
        return cut.load_audio(mono_downmix=True)
    if not cut.has_recording:
        raise DataError("has no recording")
    return cut.load_audio()


def _select_channel(samples: torch.Tensor, selector: ChannelSelector) -> torch.Tensor:
    """(C, N) -> (N,)"""
    channels = samples.shape[0]
    if selector == "average":
        return samples.mean(dim=0)
    if selector is not None and channels > 1:
        if not 0 <= selector < channels:
            raise DataError(f"has {channels} channels, but channel_selector is {selector}")
        return samples[selector]
    if channels > 1:
        raise DataError(f"has {channels} channels; set `channel_selector` to a channel or average")
    return samples[0]


def _problem(audio: np.ndarray) -> str | None:
    """What is wrong with decoded samples."""
    if audio.size == 0:
        return "holds no samples"
    peak = float(np.abs(audio).max())
    if not np.isfinite(peak):
        return "holds samples that are not finite"
    return f"holds samples of magnitude {peak:.3g}" if peak > PEAK_LIMIT else None


def _check_headers(cut: Cut) -> None:
    """Compare each file with what its manifest says of it."""
    if isinstance(cut, MixedCut):
        for track in cut.tracks:
            _check_headers(track.cut)
        return
    recording = getattr(cut, "recording", None)
    for source in recording.sources if recording is not None else ():
        if source.type not in ("file", "memory"):
            continue
        header = read_header(source.source)
        if header is None or recording.transforms:
            continue
        _compare(header, recording, channels=len(source.channels))


def _compare(header: Any, recording: Recording, *, channels: int) -> None:
    if header.channels != channels:
        raise DataError(f"has {header.channels} channels, but its manifest says {channels}")
    # Opus is decoded at any rate, whatever its header says.
    if header.samplerate != recording.sampling_rate and header.subtype != "OPUS":
        raise DataError(
            f"has a sample rate of {header.samplerate} Hz, "
            f"but its manifest says {recording.sampling_rate} Hz"
        )
    tolerance = LENGTH_TOLERANCE if header.format in EXACT_FORMATS else ROUGH_TOLERANCE
    if abs(header.duration - recording.duration) > tolerance:
        raise DataError(
            f"holds {header.duration:.2f} s of audio, "
            f"but its manifest says {recording.duration:.2f} s"
        )


def read_header(source: str | bytes) -> Any:
    """soundfile's header of a file or of bytes; None for a format that it does not know.

    Raises:
        DataError: the file is missing or empty, or its data are damaged.
    """
    data = source
    if isinstance(source, bytes):
        if not source:
            raise DataError("is an empty file")
        data = io.BytesIO(source)
    try:
        return soundfile.info(data)
    except soundfile.LibsndfileError as error:
        if isinstance(source, str):
            _check_file(source)
        known = _magic(source) in (b"RIFF", b"fLaC", b"OggS")
        if known or not _has_other_decoder():
            raise DataError(f"cannot be decoded ({cause(error)})") from error
        return None


def _check_file(path: str) -> None:
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise DataError("is an empty file")
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})") from error


def _magic(source: str | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:4]
    with open(source, "rb") as file:
        return file.read(4)


@lru_cache(maxsize=1)
def _has_other_decoder() -> bool:
    return shutil.which("ffmpeg") is not None


def _probe(cut: Cut) -> Cut:
    """Fill in rate and channels from the file where the manifest did not tell them."""
    if not isinstance(cut, MonoCut) or not (cut.custom or {}).get(UNPROBED):
        return cut
    source = cut.recording.sources[0]
    header = read_header(source.source)
    if header is None:
        raise DataError("is of a format whose header cannot be read")
    said, whole = cut.recording.duration, cut.custom[UNPROBED] == "whole"
    short = said - header.duration
    if short > ROUGH_TOLERANCE or (whole and -short > ROUGH_TOLERANCE):
        raise DataError(
            f"holds {header.duration:.2f} s of audio, but its manifest says {said:.2f} s"
        )
    recording = Recording(
        id=cut.recording.id,
        sources=[fastcopy(source, channels=list(range(header.channels)))],
        sampling_rate=header.samplerate,
        num_samples=header.frames,
        duration=header.frames / header.samplerate,
    )
    probed = recording.to_cut()
    duration = min(cut.duration, probed.duration - cut.start)
    return probed.truncate(offset=cut.start, duration=duration)
