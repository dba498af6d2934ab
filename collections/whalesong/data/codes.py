"""Codes of a codec that come with cuts, read instead of the audio.

They are an array `codes` (K, F), as `codes_writer` adds it to shar, or as in VALL-E's manifests
`features` (F, K).
"""

import json
import math
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import numpy as np
import torch
from lhotse import Features, MonoCut, MultiCut
from lhotse.array import Array, TemporalArray
from lhotse.cut import Cut
from lhotse.features.base import FEATURE_EXTRACTORS
from lhotse.utils import fastcopy
from torch import Tensor

from whalesong.core.errors import DataError
from whalesong.data.audio import UNPROBED, read_header
from whalesong.data.faults import cause
from whalesong.data.shar_source import materialize
from whalesong.data.tar_index import is_reference

FIELD = "codes"
"""Name of the field, and of the attribute of a cut."""

FEATURES = "features"
"""Attribute of a cut whose codes are stored as VALL-E does."""

HEADER = "WHALESONG.codec"
"""Keyword of the tar file's global header."""

Stored = TemporalArray | Array | Features
"""Where codes lie: an array (K, F), or features (F, K)."""


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
    return _stored(cut)[1] is not None


def load_codes(
    cut: Cut, codec: CodecInfo, *, codebook_sizes: Sequence[int] | None = None
) -> Tensor:
    """Read the codes of a cut, of its part if it is a part of what was tokenized.

    Args:
        cut: from a batch plan, or any lhotse cut with an array `codes` of shape (K, F), or with
            `features` of shape (F, K) that none of lhotse's own extractors has made.
        codec: that must have made them.
        codebook_sizes: ids of each codebook; None takes the codec's for all.

    Returns:
        (K, F) of dtype long, F at least 1.

    Raises:
        DataError: naming the cut: it has no codes, they are of another codec, of another shape or
            frame rate, too few for the cut's duration, out of range, or cannot be read.
    """
    name, stored = _stored(cut)
    if stored is None:
        raise DataError(f"cut {cut.id}: has no codes.")
    with _naming(stored, cut):
        codes = _read(cut, name, stored, codec, codebook_sizes)
        _check_duration(codes, stored, cut, codec)
        return torch.from_numpy(_part(codes, stored, cut, codec).astype(np.int64))


def load_attached_codes(
    cut: Cut, name: str, codec: CodecInfo, *, codebook_sizes: Sequence[int] | None = None
) -> Tensor:
    """Read all codes of an attribute of a cut that is a manifest of an array, or of features.

    Args, result and errors are those of `load_codes`.
    """
    stored = cut.custom[name]
    with _naming(stored, cut):
        codes = _read(cut, name, stored, codec, codebook_sizes)
        return torch.from_numpy(codes.astype(np.int64))


def reaches_end(cut: Cut, codec: CodecInfo) -> bool:
    """Whether a cut ends where its recording ends, or its codes where there is no recording.

    What is mixed of several cuts is taken to go on.
    """
    if not isinstance(cut, MonoCut | MultiCut):
        return False
    if cut.recording is not None:
        return cut.end > _recording_end(cut) - 0.5 / codec.frame_rate
    stored = _stored(cut)[1]
    if stored is None:
        return False
    return _first(stored, cut, codec) + codec.num_frames(cut.duration) >= _num_frames(stored)


def without_codes(cut: Cut) -> Cut:
    """The cut with its audio alone."""
    name, stored = _stored(cut)
    if stored is None:
        return cut
    if name == FEATURES:
        return fastcopy(cut, features=None)
    return fastcopy(cut, custom={key: value for key, value in cut.custom.items() if key != name})


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


def _stored(cut: Cut) -> tuple[str, Stored | None]:
    """The name of the attribute with the codes of a cut, and where they lie."""
    if not isinstance(cut, MonoCut | MultiCut):
        return FIELD, None
    array = (cut.custom or {}).get(FIELD)
    if isinstance(array, TemporalArray) or cut.features is None:
        return FIELD, array if isinstance(array, TemporalArray) else None
    extractor = FEATURE_EXTRACTORS.get(cut.features.type)
    is_spectrum = extractor is not None and extractor.__module__.startswith("lhotse.")
    return FEATURES, None if is_spectrum else cut.features


@contextmanager
def _naming(stored: Stored, cut: Cut) -> Iterator[None]:
    """Put file and cut before the message of every error."""
    place = ", ".join([*_file(stored), f"cut {cut.id}"])
    try:
        yield
    except DataError as error:
        raise DataError(f"{place}: {str(error).rstrip('.')}.") from error
    except Exception as error:
        # numpy raises whatever it likes about damaged bytes.
        raise DataError(f"{place}: the codes cannot be decoded ({cause(error)}).") from error


def _file(stored: Stored) -> list[str]:
    """The file that codes lie in, if it is one."""
    inner = stored.array if isinstance(stored, TemporalArray) else stored
    if is_reference(inner.storage_key):
        return [str(inner.storage_key).rsplit("#", 1)[0]]
    if inner.storage_type == "numpy_files":
        return [str(Path(inner.storage_path) / inner.storage_key)]
    return [str(inner.storage_path)] if inner.storage_path else []


def _read(
    cut: Cut, name: str, stored: Stored, codec: CodecInfo, sizes: Sequence[int] | None
) -> np.ndarray:
    """All codes (K, F) of what is stored, checked."""
    inner = stored.array if isinstance(stored, TemporalArray) else stored
    _check_maker(inner.storage_key, codec)
    if "hdf5" in inner.storage_type and find_spec("h5py") is None:
        raise DataError("its codes lie in an HDF5 file, which needs h5py (pip install h5py)")
    # Nothing else of the cut is read.
    alone = fastcopy(cut, recording=None, features=None, custom={name: stored})
    codes = materialize(alone).custom[name].load()
    codes = codes.T if isinstance(stored, Features) else codes
    _check_codes(codes, codec, sizes)
    shift = None if isinstance(stored, Array) else stored.frame_shift
    if shift is not None and abs(shift * codec.frame_rate - 1) > 1e-3:
        raise DataError(f"codes must have {codec.frame_rate:g} frames/s, but have {1 / shift:g}")
    return codes


def _check_maker(key: str | bytes, codec: CodecInfo) -> None:
    maker = read_codec_info(key.rsplit("#", 1)[0]) if is_reference(key) else None
    if maker is not None and maker.fingerprint != codec.fingerprint:
        raise DataError(f"holds codes of {maker}, but the model has {codec}; tokenize it again")


def _check_codes(codes: np.ndarray, codec: CodecInfo, sizes: Sequence[int] | None) -> None:
    if codes.ndim != 2 or len(codes) != codec.num_codebooks or not codes.shape[1]:
        raise DataError(
            f"codes must be ({codec.num_codebooks}, frames), but are {tuple(codes.shape)}"
        )
    if np.issubdtype(codes.dtype, np.floating):
        broken = codes[codes != np.floor(codes)]
        if broken.size:
            raise DataError(f"codes must be whole numbers, but one is {broken[0]:g}")
    elif not np.issubdtype(codes.dtype, np.integer):
        raise DataError(f"codes must be whole numbers, but are {codes.dtype}")
    for number, row in enumerate(codes):
        size, which = codec.codebook_size, ""
        if sizes is not None:
            size, which = sizes[number], f" of codebook {number + 1}"
        if row.min() < 0 or row.max() >= size:
            wrong = row.min() if row.min() < 0 else row.max()
            raise DataError(f"codes{which} must be from 0 to {size - 1}, but one is {wrong:g}")


def _check_duration(codes: np.ndarray, stored: Stored, cut: Cut, codec: CodecInfo) -> None:
    """Compare with the duration of what was tokenized, where that is known."""
    tokenized = stored if isinstance(stored, Features) else cut.recording
    if tokenized is None:
        return
    count = codec.num_frames(tokenized.duration)
    if abs(codes.shape[1] - count) > 1:
        raise DataError(
            f"codes must have {count} frames for {tokenized.duration:.2f} s, "
            f"but have {codes.shape[1]}"
        )


def _part(codes: np.ndarray, stored: Stored, cut: Cut, codec: CodecInfo) -> np.ndarray:
    first, count = _first(stored, cut, codec), codec.num_frames(cut.duration)
    part = codes[:, first : first + count]
    if not part.shape[1]:
        raise DataError(f"codes end before {cut.start:.2f} s, where the cut begins")
    # A frame for what is stored, one for where the part begins.
    if part.shape[1] < count - 2:
        raise DataError(f"codes must have {count} frames for the cut, but have {part.shape[1]}")
    return part


def _first(stored: Stored, cut: Cut, codec: CodecInfo) -> int:
    """The stored frame that a cut begins with."""
    return max(round((cut.start - stored.start) * codec.frame_rate), 0)


def _recording_end(cut: Cut) -> float:
    """Seconds of a recording; of its file where the manifest tells a segment of it only."""
    if (cut.custom or {}).get(UNPROBED) != "segment":
        return cut.recording.duration
    header = read_header(materialize(cut).recording.sources[0].source)
    return math.inf if header is None else header.duration


def _num_frames(stored: Stored) -> int:
    return stored.num_frames if isinstance(stored, Features) else stored.shape[-1]
