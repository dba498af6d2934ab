"""Audio files of requests and answers."""

from pathlib import Path

import soundfile
from lhotse import Recording
from lhotse.cut import Cut
from torch import Tensor

from whalesong.core.atomic import atomic_path
from whalesong.core.errors import DataError
from whalesong.data.channels import load_channels


def read_clip(path: str | Path, *, sample_rate: int, num_channels: int) -> Tensor:
    """The audio of a file as (C, N) at this rate.

    Raises:
        DataError: naming the file.
    """
    if not Path(path).is_file():
        raise DataError(f"the audio file '{path}' does not exist.")
    return load_channels(file_cut(path), sample_rate=sample_rate, num_channels=num_channels)


def file_cut(path: str | Path) -> Cut:
    """A whole audio file as a cut; a DataError names one that is no audio."""
    try:
        return Recording.from_file(path).to_cut()
    except Exception as error:
        # Decoders raise whatever they like.
        raise DataError(f"{path}: cannot be read as audio.") from error


def write_wav(path: Path, audio: Tensor, sample_rate: int) -> None:
    """Write audio (C, N) whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as unfinished:
        soundfile.write(unfinished, audio.clamp(-1, 1).T.cpu().numpy(), sample_rate, format="WAV")
