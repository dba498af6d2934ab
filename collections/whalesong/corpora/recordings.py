"""Samples that were made on the spot, as recordings of lhotse."""

import io

import numpy as np
import soundfile
from lhotse import Recording


def recording_in_memory(waveform: np.ndarray, recording_id: str, sample_rate: int) -> Recording:
    """Samples (N,) from -1 to 1 as a recording that keeps them in 16 bits."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sample_rate, format="WAV", subtype="PCM_16")
    return Recording.from_bytes(buffer.getvalue(), recording_id=recording_id)
