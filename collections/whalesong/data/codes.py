"""Codes of a codec as a field of lhotse shar: written once, read instead of the audio.

`codes.NNNNNN.tar` lies beside `recording.NNNNNN.tar` in lhotse's format for numpy arrays, so that
lhotse reads it, too. A header of the tar file tells which codec has made it.
"""

import io
import json
import math
import os
import tarfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
import torch
from lhotse import MonoCut, MultiCut
from lhotse.array import Array, TemporalArray
from lhotse.cut import Cut
from torch import Tensor

from whalesong.core.errors import DataError
from whalesong.data.faults import cause
from whalesong.data.shar_source import materialize
from whalesong.data.tar_index import is_reference

FIELD = "codes"
"""Name of the field, and of the attribute of a cut."""

HEADER = "WHALESONG.codec"
"""Keyword of the tar file's global header."""


@dataclass(frozen=True, slots=True)
class CodecInfo:
    """What codes depend on."""

    name: str
    """For messages."""
    fingerprint: str
    """Of the codec's weights."""
    sample_rate: int
    num_channels: int
    num_codebooks: int
    codebook_size: int
    downsampling_ratio: int
    """Samples of a frame."""

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.downsampling_ratio

    def num_frames(self, seconds: float) -> int:
        """Frames of a recording; the last one may be padded with silence."""
        samples = round(seconds * self.sample_rate)
        return max(1, math.ceil(samples / self.downsampling_ratio))

    def __str__(self) -> str:
        """The codec in a few words."""
        return (
            f"{self.name} {self.fingerprint[:8]} ({self.num_codebooks} x {self.codebook_size} at "
            f"{self.frame_rate:g} frames/s)"
        )

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`; a ValueError or TypeError says that it is something else."""
        return cls(**json.loads(text))


def has_codes(cut: Cut) -> bool:
    """Whether a cut comes with codes."""
    return _array(cut) is not None


def load_codes(cut: Cut, codec: CodecInfo) -> Tensor:
    """Read the codes of a cut, of its part if it is a part of what was tokenized.

    Args:
        cut: from a batch plan, or any lhotse cut with an array `codes` of shape (K, F).
        codec: that must have made them.

    Returns:
        (K, F) of dtype long, F at least 1.

    Raises:
        DataError: naming the cut: it has no codes, they are of another codec, of another shape or
            frame rate, too few for the cut's duration, out of range, or cannot be read.
    """
    array = _array(cut)
    if array is None:
        raise DataError(f"cut {cut.id}: has no codes.")
    path = str(array.array.storage_key).rsplit("#", 1)[0]
    place = f"{path}, cut {cut.id}" if is_reference(array.array.storage_key) else f"cut {cut.id}"
    try:
        _check_maker(array, codec)
        codes = np.asarray(_array(materialize(cut)).load())
        _check_codes(codes, array, cut, codec)
        return torch.from_numpy(_part(codes, array, cut, codec).astype(np.int64))
    except DataError as error:
        raise DataError(f"{place}: {str(error).rstrip('.')}.") from error
    except Exception as error:
        # numpy raises whatever it likes about damaged bytes.
        raise DataError(f"{place}: the codes cannot be decoded ({cause(error)}).") from error


def write_codes(path: Path, items: Iterable[tuple[Cut, Tensor]], codec: CodecInfo) -> int:
    """Write the `codes` file of one shard.

    Args:
        path: of the new tar file.
        items: the cuts of the shard in their order, each with its codes (K, F).

    Returns:
        The number of cuts.
    """
    # lhotse's own writer cannot write a header.
    dtype = np.uint8 if codec.codebook_size <= 2**8 else np.int32
    dtype = np.int16 if 2**8 < codec.codebook_size <= 2**15 else dtype
    header = {HEADER: codec.to_json()}
    count = 0
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=header) as tar:
        for cut, codes in items:
            values = codes.numpy().astype(dtype)
            data = io.BytesIO()
            np.save(data, values, allow_pickle=False)
            _add_member(tar, f"{cut.id}.npy", data.getvalue())
            manifest = json.dumps(_manifest(values, cut, codec).to_dict())
            _add_member(tar, f"{cut.id}.json", manifest.encode())
            count += 1
    return count


def read_codec_info(path: str | Path) -> CodecInfo | None:
    """Which codec has made a `codes` file; None if the file does not tell.

    Raises:
        DataError: it cannot be read.
    """
    try:
        status = os.stat(path)
        return _read_codec_info(str(path), status.st_size, status.st_mtime_ns)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path}: is no readable tar file ({cause(error)}).") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: its header {HEADER} is broken ({cause(error)}).") from error


@lru_cache(maxsize=4096)
def _read_codec_info(path: str, size: int, modified: int) -> CodecInfo | None:
    with tarfile.open(path, "r:") as tar:
        text = tar.pax_headers.get(HEADER)
    return None if text is None else CodecInfo.from_json(text)


def _array(cut: Cut) -> TemporalArray | None:
    custom = cut.custom if isinstance(cut, MonoCut | MultiCut) else None
    array = (custom or {}).get(FIELD)
    return array if isinstance(array, TemporalArray) else None


def _check_maker(array: TemporalArray, codec: CodecInfo) -> None:
    key = array.array.storage_key
    maker = read_codec_info(key.rsplit("#", 1)[0]) if is_reference(key) else None
    if maker is not None and maker.fingerprint != codec.fingerprint:
        raise DataError(f"holds codes of {maker}, but the model has {codec}; tokenize it again")


def _check_codes(codes: np.ndarray, array: TemporalArray, cut: Cut, codec: CodecInfo) -> None:
    if codes.ndim != 2 or len(codes) != codec.num_codebooks or not codes.shape[1]:
        raise DataError(
            f"codes must be ({codec.num_codebooks}, frames), but are {tuple(codes.shape)}"
        )
    if not np.issubdtype(codes.dtype, np.integer):
        raise DataError(f"codes must be whole numbers, but are {codes.dtype}")
    if codes.min() < 0 or codes.max() >= codec.codebook_size:
        wrong = codes.min() if codes.min() < 0 else codes.max()
        raise DataError(f"codes must be from 0 to {codec.codebook_size - 1}, but one is {wrong}")
    if abs(array.frame_shift * codec.frame_rate - 1) > 1e-3:
        raise DataError(
            f"codes must have {codec.frame_rate:g} frames/s, but have {1 / array.frame_shift:g}"
        )
    seconds = cut.recording.duration if cut.has_recording else cut.duration
    if abs(codes.shape[1] - codec.num_frames(seconds)) > 1:
        raise DataError(
            f"codes must have {codec.num_frames(seconds)} frames for {seconds:.2f} s, "
            f"but have {codes.shape[1]}"
        )


def _part(codes: np.ndarray, array: TemporalArray, cut: Cut, codec: CodecInfo) -> np.ndarray:
    first = max(round((cut.start - array.start) * codec.frame_rate), 0)
    part = codes[:, first : first + codec.num_frames(cut.duration)]
    if not part.shape[1]:
        raise DataError(f"codes end before {cut.start:.2f} s, where the cut begins")
    return part


def _manifest(codes: np.ndarray, cut: Cut, codec: CodecInfo) -> TemporalArray:
    return TemporalArray(
        array=Array(storage_type="shar", storage_path="", storage_key="", shape=list(codes.shape)),
        temporal_dim=1,
        frame_shift=1 / codec.frame_rate,
        start=cut.start,
    )


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
