"""How many frames an audio front end gives for a number of samples, as plain integers.

The data side needs these counts before any audio reaches the model: it writes one placeholder per
frame into the prompt. They are read off the live modules once and then travel to the workers.
"""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Strided:
    """Convolution, pooling or stacking: `round((length + padding - kernel) / stride) + 1`."""

    kernel: int
    stride: int
    padding: int = 0
    ceil: bool = False

    def __call__(self, length: int) -> int:
        span = length + self.padding - self.kernel
        steps = -(-span // self.stride) if self.ceil else span // self.stride
        return max(steps + 1, 0)


@dataclass(frozen=True)
class Queries:
    """A fixed number of frames for each window of the input, or for all, as a Q-former gives."""

    queries: int
    window: int | None = None

    def __call__(self, length: int) -> int:
        if length <= 0:
            return 0
        return self.queries * (1 if self.window is None else -(-length // self.window))


@dataclass(frozen=True)
class FrameCounter:
    """Counts the frames that perception gives, whole or in chunks.

    Args:
        features: samples -> feature frames (the short-time Fourier transform).
        stages: feature frames -> encoder frames -> adapter frames.
        sample_rate: samples per second.
        chunk_samples: length of the pieces in which long audio is encoded; None for no cutting.
        context_samples: what a piece sees of its neighbours, on each side.
    """

    features: Strided
    stages: tuple[Strided | Queries, ...]
    sample_rate: int
    chunk_samples: int | None = None
    context_samples: int = 0

    @property
    def samples_per_frame(self) -> int:
        """Samples between two frames; the grid to which chunks are aligned."""
        stride = self.features.stride
        for stage in self.stages:
            stride *= stage.stride if isinstance(stage, Strided) else 1
        return stride

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.samples_per_frame

    @property
    def has_queries(self) -> bool:
        """True if frames stand for windows, so that they have no place on the grid of the audio."""
        return any(isinstance(stage, Queries) for stage in self.stages)

    @property
    def min_samples(self) -> int:
        """The shortest audio with two feature frames, to be normalized, and one output frame."""
        samples = self.features.stride
        while self.features(samples) < 2 or self._count(samples) < 1:
            samples += self.features.stride
        return samples

    def __call__(self, num_samples: int) -> int:
        """Number of frames for `num_samples` samples."""
        if self.has_queries:
            return sum(self._count(end - begin) for begin, end, _, _ in self.chunks(num_samples))
        return self._count(num_samples)

    def _count(self, num_samples: int) -> int:
        length = self.features(num_samples)
        for stage in self.stages:
            length = stage(length)
        return length

    def chunks(self, num_samples: int) -> list[tuple[int, int, int, int]]:
        """Cut audio into overlapping pieces on the frame grid.

        Returns:
            `(begin, end, skip, keep)` for each piece: encode samples `begin:end`, drop the first
            `skip` frames (context of the left neighbour) and keep the next `keep`. But for a
            Q-former, the kept frames add up to the count of the uncut audio.
        """
        if self.chunk_samples is None or num_samples <= self.chunk_samples:
            return [(0, num_samples, 0, self._count(num_samples))]
        pieces = []
        for begin in range(0, num_samples, self.chunk_samples):
            end = begin + self.chunk_samples
            last = num_samples - end < self.min_samples
            left = max(begin - self.context_samples, 0)
            right = num_samples if last else min(end + self.context_samples, num_samples)
            if self.has_queries:
                skip, keep = 0, self._count(right - left)
            else:
                skip = (begin - left) // self.samples_per_frame
                whole = self._count(num_samples - left) - skip
                keep = whole if last else self.chunk_samples // self.samples_per_frame
            pieces.append((left, right, skip, keep))
            if last:
                break
        return pieces

    def in_chunks(self, *, chunk_seconds: float, context_seconds: float) -> "FrameCounter":
        """The same counter for audio encoded in pieces, both lengths rounded to whole frames."""
        step = self.samples_per_frame
        chunk = max(round(chunk_seconds * self.sample_rate / step), 1) * step
        context = round(context_seconds * self.sample_rate / step) * step
        chunk = max(chunk, -(-self.min_samples // step) * step)
        return FrameCounter(self.features, self.stages, self.sample_rate, chunk, context)


def feature_stage(featurizer: nn.Module) -> Strided:
    """The stage of NeMo's `FilterbankFeatures`: `(samples + padding - n_fft) // hop_length`."""
    padding = 2 * (
        featurizer.n_fft // 2 if featurizer.stft_pad_amount is None else featurizer.stft_pad_amount
    )
    hop = featurizer.hop_length
    return Strided(kernel=featurizer.n_fft, stride=hop, padding=padding - hop)


def encoder_stages(encoder: nn.Module) -> tuple[Strided, ...]:
    """The stages of a NeMo `ConformerEncoder`: its subsampling.

    Subsampling by stacking drops an incomplete last stack, for which the features have to be
    padded to a multiple of the factor (`preprocessor.pad_to`); else NeMo's count depends on the
    other rows.
    """
    front = encoder.pre_encode
    if isinstance(front, nn.Linear):
        return ()
    if hasattr(front, "_sampling_num"):
        stage = Strided(
            kernel=front._kernel_size,
            stride=front._stride,
            padding=front._left_padding + front._right_padding,
            ceil=front._ceil_mode,
        )
        return (stage,) * front._sampling_num
    factor = front.subsampling_factor
    return (Strided(kernel=factor, stride=factor),)


def mask_from_lens(lens: torch.Tensor, max_len: int) -> torch.Tensor:
    """True at the first `lens[i]` of `max_len` positions: (B,) -> (B, max_len)."""
    return torch.arange(max_len, device=lens.device)[None, :] < lens[:, None]
