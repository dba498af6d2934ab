"""Codes of a codec as a field of lhotse shar.

`codes.NNNNNN.tar` lies beside `recording.NNNNNN.tar` in lhotse's format for numpy arrays, so that
lhotse reads it, too. A header of the tar file tells which codec has made it.
"""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from lhotse.array import Array, TemporalArray
from lhotse.cut import Cut
from torch import Tensor

from whalesong.data.codes import HEADER, CodecInfo


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
