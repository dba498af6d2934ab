"""Audio with its channels, as codecs take it."""

from contextlib import suppress

import numpy as np
import torch
from lhotse.cut import Cut, MixedCut
from torch import Tensor

from whalesong.core.errors import DataError
from whalesong.data.audio import UNPROBED, read_audio, read_header
from whalesong.data.conversation import origin
from whalesong.data.shar_source import materialize


def load_channels(cut: Cut, *, sample_rate: int, num_channels: int, strict: bool = False) -> Tensor:
    """Read the audio of a cut as finite float32 samples, (C, N), at least one.

    Several channels are averaged to one, and one is repeated for several.

    Args:
        cut: from a batch plan, or any lhotse cut.
        sample_rate: rate in Hz of the result.
        num_channels: C of the result.
        strict: refuse audio of another rate or number of channels.

    Raises:
        DataError: "file, cut id: cause" for whatever keeps the audio from being read.
    """
    found = count_channels(cut)
    place = f"{origin(cut)}, cut {cut.id}"
    if found != num_channels and (strict or 1 not in (found, num_channels)):
        raise DataError(f"{place}: must have {num_channels} channels, but has {found}.")
    selectors = range(num_channels) if found == num_channels > 1 else ("average",)
    rate = None if strict else sample_rate
    channels = []
    for selector in selectors:
        samples, rate = read_audio(cut, sample_rate=rate, channel_selector=selector)
        channels.append(samples)
    if rate != sample_rate:
        raise DataError(f"{place}: must have a sample rate of {sample_rate} Hz, but has {rate} Hz.")
    audio = torch.from_numpy(np.stack(channels))
    return audio.expand(num_channels, -1).contiguous()


def count_channels(cut: Cut) -> int:
    """Channels that decoding a cut gives; those of the file where its manifest does not tell."""
    if isinstance(cut, MixedCut):
        return 1
    if (cut.custom or {}).get(UNPROBED):
        with suppress(DataError):  # reading the audio tells it with the place
            header = read_header(materialize(cut).recording.sources[0].source)
            return 1 if header is None else header.channels
    return cut.num_channels or 1
