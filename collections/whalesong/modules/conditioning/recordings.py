"""Recordings as values of conditions: reading them, channels, sample rate."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor


def read_recording(recording: Any, *, sample_rate: int) -> tuple[Tensor, int]:
    """The tensor of a recording and its rate.

    Args:
        recording: audio (C, N) or (N,), `{"audio": ..., "sample_rate": ...}`, or codes (K, F).
        sample_rate: of what comes without its rate.

    Raises:
        ValueError: anything else.
    """
    if isinstance(recording, Mapping):
        if set(recording) != {"audio", "sample_rate"}:
            keys = ", ".join(map(str, recording))
            raise ValueError(
                f"a recording must have the keys `audio` and `sample_rate`, but has: {keys}."
            )
        recording, sample_rate = recording["audio"], int(recording["sample_rate"])
    if not isinstance(recording, Tensor | np.ndarray):
        raise ValueError(f"a recording must be a tensor, but is {recording!r}.")
    return torch.as_tensor(recording), sample_rate


def mix_channels(audio: Tensor, num_channels: int) -> Tensor:
    """Audio (N,) or (any, N) as (num_channels, N): as it is, or the mean in every channel.

    Raises:
        ValueError: another number of dimensions, or no sample.
    """
    if audio.dim() not in (1, 2) or not audio.numel():
        raise ValueError(f"audio must be (C, N) or (N,), but is {tuple(audio.shape)}.")
    audio = audio.reshape(-1, audio.shape[-1]).float()
    if len(audio) == num_channels:
        return audio
    return audio.mean(dim=0, keepdim=True).expand(num_channels, -1)


def resample(audio: Tensor, sample_rate: int, new_rate: int) -> Tensor:
    """Change the rate of (C, N)."""
    if sample_rate == new_rate:
        return audio
    samples = soxr.resample(audio.cpu().numpy().T, sample_rate, new_rate)
    return torch.from_numpy(samples).T.to(audio)
