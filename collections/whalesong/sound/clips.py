"""Clips of a request as codes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from whalesong.modules.codec.codec import Codec
from whalesong.sound.rows import Clip


def tokenized(clips: Sequence[Clip], codec: Codec, *, device: torch.device) -> list[Clip]:
    """Codes (K, F) as they are; audio (C, N) is tokenized, each clip alone.

    Raises:
        ValueError: a clip that is neither, naming its row.
    """
    for row, clip in enumerate(clips):
        if clip is not None and (fault := _fault_of(clip, codec)):
            raise ValueError(f"The clip of row {row} must be {fault}.")
    return [None if clip is None else _codes_of(clip.to(device), codec) for clip in clips]


def whole_frames(clip: Tensor, codec: Codec) -> Tensor:
    """Audio (C, N) without the end that fills no frame of its own; codes (K, F) as they are."""
    if not clip.is_floating_point():
        return clip
    return clip[..., : clip.shape[-1] // codec.downsampling_ratio * codec.downsampling_ratio]


def _codes_of(clip: Tensor, codec: Codec) -> Tensor:
    return codec.encode(clip[None])[0][0] if clip.is_floating_point() else clip


def _fault_of(clip: Tensor, codec: Codec) -> str | None:
    """What a clip must be, but is not; None for a good one."""
    is_audio = clip.is_floating_point()
    kind, height = ("audio", codec.num_channels) if is_audio else ("codes", codec.num_codebooks)
    if clip.dim() != 2 or len(clip) != height:
        return f"{kind} ({height}, length), but is {tuple(clip.shape)}"
    if is_audio:
        return None if clip.isfinite().all() else "audio without NaN and infinity, but has some"
    size = codec.codebook_size
    if clip.numel() and not 0 <= int(clip.min()) <= int(clip.max()) < size:
        return f"codes from 0 to {size - 1}, but has {int(clip.min())} to {int(clip.max())}"
    return None
