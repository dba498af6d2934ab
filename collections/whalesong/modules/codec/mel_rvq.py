"""`MelRVQCodec`: residual k-means on log-mel frames, and Griffin-Lim. It fits in seconds."""

from collections.abc import Iterable

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from whalesong.modules.codec.codec import StreamingDecoder
from whalesong.modules.codec.files import CodecSizes, OwnCodec
from whalesong.modules.codec.griffin_lim import BlockGriffinLim, Blocks, unmix_bands
from whalesong.modules.codec.kmeans import fit_residual_kmeans
from whalesong.modules.codec.quantizer import ResidualVectorQuantizer
from whalesong.modules.codec.spectrum import LogMel


class MelRVQSizes(CodecSizes):
    """Sizes of a `MelRVQCodec`."""

    n_fft: int = 1024
    n_mels: int = Field(80, gt=0)
    floor: float = Field(1e-4, gt=0)
    """Magnitude that counts as silence; a sine of full scale has 1."""
    num_iterations: int = Field(24, ge=0)
    """Of Griffin and Lim."""
    windows_per_frame: int = Field(1, gt=0)
    """Spectra whose bands together are the vector of a frame; divides `hop_length`."""
    block_frames: int = Field(32, gt=0)
    """Windows that Griffin and Lim compute at once, a multiple of `windows_per_frame`."""
    context_frames: int = Field(8, ge=0)
    """Windows on each side of a block, a multiple of `windows_per_frame`."""
    fade_frames: int = Field(3, ge=0)
    """Windows over which a block takes over from the one before."""

    @model_validator(mode="after")
    def _fade_within_context(self) -> "MelRVQSizes":
        limit = min(self.context_frames, self.block_frames)
        if self.fade_frames > limit:
            raise ValueError(
                f"must fade over at most {limit} frames, but `fade_frames` is {self.fade_frames}"
            )
        return self

    @model_validator(mode="after")
    def _whole_frames(self) -> "MelRVQSizes":
        if self.hop_length % self.windows_per_frame:
            raise ValueError(
                f"`windows_per_frame` must divide `hop_length` ({self.hop_length}), "
                f"but is {self.windows_per_frame}"
            )
        for name in ("block_frames", "context_frames"):
            if getattr(self, name) % self.windows_per_frame:
                raise ValueError(
                    f"`{name}` must be a multiple of `windows_per_frame` "
                    f"({self.windows_per_frame}), but is {getattr(self, name)}"
                )
        return self


class MelRVQCodec(OwnCodec):
    """Codes are the nearest residual centroids of log-mel frames; decoding guesses the phase.

    Frame f is the spectrum around the samples [f * hop_length, (f + 1) * hop_length), or as many
    spectra of equal parts of them as there are windows in a frame. Decoding works in blocks of
    windows, see `BlockGriffinLim`.
    """

    type_name = "mel_rvq"
    sizes_class = MelRVQSizes

    def __init__(self, sizes: MelRVQSizes) -> None:
        super().__init__(sizes)
        self.log_mel = LogMel(
            sizes.sample_rate,
            n_fft=sizes.n_fft,
            hop_length=sizes.hop_length // sizes.windows_per_frame,
            n_mels=sizes.n_mels,
            floor=sizes.floor,
        )
        self.quantizer = ResidualVectorQuantizer(
            num_codebooks=sizes.num_codebooks,
            codebook_size=sizes.codebook_size,
            dim=sizes.windows_per_frame * sizes.n_mels,
        )
        blocks = Blocks(sizes.block_frames, sizes.context_frames, sizes.fade_frames)
        self.vocoder = BlockGriffinLim(
            self.log_mel.transform, blocks=blocks, num_iterations=sizes.num_iterations
        )
        left, right = blocks.receptive_field
        count = sizes.windows_per_frame
        self.receptive_field = (-(-left // count), -(-right // count))
        self.eval()

    def magnitudes(self, codes: Tensor) -> Tensor:
        """Codes (B, K, F) -> linear magnitudes (B, F * windows_per_frame, n_fft // 2 + 1)."""
        vectors = self.quantizer.decode(codes)
        windows = vectors.unflatten(2, (self.sizes.windows_per_frame, -1)).flatten(1, 2)
        # In float64, so that they do not depend on the frames around: phases amplify rounding.
        bands = windows.double().exp()
        return (unmix_bands(bands, self.log_mel.filters.double()) * self.log_mel.gain).float()

    def streaming_decoder(self) -> "BlockStreamingDecoder":
        """A decoder that gives out whole blocks."""
        return BlockStreamingDecoder(self)

    def vectors(self, audio: Tensor) -> Tensor:
        """Audio (B, F * hop_length) -> vectors to quantize (B, F, windows_per_frame * n_mels)."""
        windows = self.log_mel(audio)
        return windows.unflatten(1, (-1, self.sizes.windows_per_frame)).flatten(2)

    def _encode(self, audio: Tensor) -> Tensor:
        return self.quantizer.encode(self.vectors(audio[:, 0]))

    def _decode(self, codes: Tensor) -> Tensor:
        return self.vocoder(self.magnitudes(codes))[:, None]


class BlockStreamingDecoder(StreamingDecoder):
    """Gives out a block as soon as its context to the right is there; computes each once.

    `flush` ends the stream; the next `push` begins another one.
    """

    def __init__(self, codec: MelRVQCodec) -> None:
        super().__init__(codec)
        self._windows = codec.sizes.windows_per_frame
        self._length = codec.vocoder.blocks.length // self._windows
        self._context = codec.vocoder.blocks.context // self._windows
        self._left = 0  # frames of `_codes` in front of the next block
        self._tail: Tensor | None = None

    def push(self, codes: Tensor) -> Tensor:
        """Take frames (B, K, f), which may be none; return samples (B, 1, n) that are settled."""
        self.codec.check_codes(codes)
        self._codes = codes if self._codes is None else torch.cat([self._codes, codes], dim=2)
        settled = self._codes.shape[2] - self._left - self._context
        return self._render(max(settled // self._length, 0))

    def flush(self) -> Tensor:
        """Return the samples that were waiting for frames that did not come."""
        if self._codes is None:
            return torch.zeros(0, 1, 0)
        num_frames = self._codes.shape[2] - self._left
        samples = self._render(-(-num_frames // self._length))
        self._codes, self._left, self._tail = None, 0, None
        return samples[..., : num_frames * self.codec.downsampling_ratio]

    def _render(self, num_blocks: int) -> Tensor:
        """Samples of the next blocks; what is missing around them is silence."""
        codes, context = self._codes, self._context
        if not num_blocks:
            return torch.zeros(len(codes), 1, 0, device=codes.device)
        end = self._left + num_blocks * self._length
        missing = max(end + context - codes.shape[2], 0)
        with torch.no_grad(), torch.autocast(codes.device.type, enabled=False):
            magnitudes = self.codec.magnitudes(codes[:, :, : end + context])
            silence = self._windows * (context - self._left), self._windows * missing
            padded = nn.functional.pad(magnitudes, (0, 0, *silence))
            audio, self._tail = self.codec.vocoder.render(padded, self._tail)
        self._left = min(context, end)
        self._codes = codes[:, :, end - self._left :]
        return audio[:, None]


def fit_mel_rvq(
    audio: Iterable[Tensor],
    sizes: MelRVQSizes,
    *,
    seed: int = 0,
    max_frames: int = 30_000,
    num_iterations: int = 10,
) -> MelRVQCodec:
    """Fit a codec to recordings; equal arguments give an equal codec.

    Args:
        audio: recordings (N,) at the sample rate of `sizes`.
        sizes: of the codec.
        seed: of the draws.
        max_frames: frames to fit to, drawn from all.
        num_iterations: rounds of k-means for each codebook.

    Raises:
        ValueError: there are fewer frames than centroids in a codebook.
    """
    codec = MelRVQCodec(sizes)
    frames = torch.cat([_frames(codec, samples) for samples in audio])
    if len(frames) > max_frames:
        generator = torch.Generator().manual_seed(seed)
        frames = frames[torch.randperm(len(frames), generator=generator)[:max_frames]]
    codec.quantizer.codebooks.copy_(
        fit_residual_kmeans(
            frames,
            num_codebooks=sizes.num_codebooks,
            codebook_size=sizes.codebook_size,
            seed=seed,
            num_iterations=num_iterations,
        )
    )
    return codec


def _frames(codec: MelRVQCodec, samples: Tensor) -> Tensor:
    """Recording (N,) -> vectors to quantize (F, D)."""
    missing = -len(samples) % codec.downsampling_ratio
    return codec.vectors(nn.functional.pad(samples.float(), (0, missing))[None])[0]
