"""Samples that were made on the spot, as recordings and cuts of lhotse."""

import io

import numpy as np
import soundfile
from lhotse import MonoCut, Recording, SupervisionSegment


def recording_in_memory(waveform: np.ndarray, recording_id: str, sample_rate: int) -> Recording:
    """Samples (N,) from -1 to 1 as a recording that keeps them in 16 bits."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sample_rate, format="WAV", subtype="PCM_16")
    return Recording.from_bytes(buffer.getvalue(), recording_id=recording_id)


def as_cut(
    cut_id: str,
    audio: np.ndarray,
    sample_rate: int,
    *,
    text: str,
    attributes: dict[str, object] | None = None,
) -> MonoCut:
    """Samples (N,) as a cut that keeps them in 16 bits.

    Args:
        cut_id: of the cut, its recording and its supervision.
        audio: from -1 to 1.
        sample_rate: in Hz.
        text: of the supervision, in English.
        attributes: custom attributes.
    """
    recording = recording_in_memory(audio, cut_id, sample_rate)
    supervision = SupervisionSegment(
        id=cut_id,
        recording_id=cut_id,
        start=0.0,
        duration=recording.duration,
        text=text,
        language="en",
    )
    return MonoCut(
        id=cut_id,
        start=0.0,
        duration=recording.duration,
        channel=0,
        recording=recording,
        supervisions=[supervision],
        custom=attributes,
    )
