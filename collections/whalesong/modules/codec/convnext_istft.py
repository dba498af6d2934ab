"""`ConvNextISTFTCodec`: a small neural codec that works at the frame rate throughout."""

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from whalesong.modules.codec.files import CodecSizes, OwnCodec
from whalesong.modules.codec.quantizer import ResidualVectorQuantizer
from whalesong.modules.codec.spectrum import ShortTimeFourier

_INPUT_SCALE = 3.0
_MAX_LOG_GAIN = 6.0


class ConvNextISTFTSizes(CodecSizes):
    """Sizes of a `ConvNextISTFTCodec`."""

    n_fft: int = 640
    """Samples of a window, at the encoder's entry and in the decoder's transform."""
    dim: int = Field(256, gt=0)
    """Width of the blocks."""
    latent_dim: int = Field(64, gt=0)
    """Width of what is quantized."""
    num_blocks: int = Field(4, ge=0)
    """On each side."""
    kernel_size: int = Field(7, gt=0)
    """Windows that a block looks at; odd."""
    expansion: int = Field(3, gt=0)
    windows_per_frame: int = Field(1, gt=0)
    """Divides `hop_length` and `latent_dim`; a frame's vector is a part for each of its windows."""

    @field_validator("kernel_size")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd")
        return value

    @model_validator(mode="after")
    def _whole_windows(self) -> "ConvNextISTFTSizes":
        for name in ("hop_length", "latent_dim"):
            if getattr(self, name) % self.windows_per_frame:
                raise ValueError(
                    f"`windows_per_frame` must divide `{name}` ({getattr(self, name)}), "
                    f"but is {self.windows_per_frame}"
                )
        return self


class ConvNextISTFTCodec(OwnCodec):
    """Windowed samples, ConvNeXt blocks, the quantizer, ConvNeXt blocks, an inverse transform.

    Everything inside runs at the rate of the windows, one or a few a frame, which makes it fast.
    Its weights are frozen, except in `train_convnext_codec`.
    """

    type_name = "convnext_istft"
    sizes_class = ConvNextISTFTSizes

    def __init__(self, sizes: ConvNextISTFTSizes) -> None:
        super().__init__(sizes)
        hop = sizes.hop_length // sizes.windows_per_frame
        part_dim = sizes.latent_dim // sizes.windows_per_frame
        self.transform = ShortTimeFourier(sizes.n_fft, hop)
        self.encoder = _stack(sizes.n_fft, part_dim, sizes)
        self.quantizer = ResidualVectorQuantizer(
            num_codebooks=sizes.num_codebooks,
            codebook_size=sizes.codebook_size,
            dim=sizes.latent_dim,
        )
        self.decoder = _stack(part_dim, 3 * self.transform.num_bins, sizes)
        windows = sizes.num_blocks * (sizes.kernel_size // 2) + -(-self.transform.margin // hop)
        reach = -(-windows // sizes.windows_per_frame)
        self.receptive_field = (reach, reach)
        self.requires_grad_(False).eval()

    def latents(self, audio: Tensor) -> Tensor:
        """Audio (B, F * hop_length) -> vectors to quantize (B, F, latent_dim)."""
        parts = self.encoder(_INPUT_SCALE * self.transform.pieces(audio))
        return parts.unflatten(1, (-1, self.sizes.windows_per_frame)).flatten(2)

    def synthesize(self, vectors: Tensor) -> Tensor:
        """Vectors (B, F, latent_dim) -> audio (B, F * hop_length)."""
        parts = vectors.unflatten(2, (self.sizes.windows_per_frame, -1)).flatten(1, 2)
        real, imaginary, log_gains = self.decoder(parts).chunk(3, dim=-1)
        # A linear part learns within few steps; gains let it be loud and soft.
        gains = log_gains.clamp_max(_MAX_LOG_GAIN).exp()
        return self.transform.inverse(torch.complex(gains * real, gains * imaginary))

    def _encode(self, audio: Tensor) -> Tensor:
        return self.quantizer.encode(self.latents(audio[:, 0]))

    def _decode(self, codes: Tensor) -> Tensor:
        return self.synthesize(self.quantizer.decode(codes))[:, None]


class ConvNextBlock(nn.Module):
    """Looks at neighbouring frames channel by channel, then mixes the channels of each frame."""

    def __init__(self, dim: int, *, kernel_size: int, expansion: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            FrameConv(dim, dim, kernel_size, groups=dim),
            nn.LayerNorm(dim),
            nn.Linear(dim, expansion * dim),
            nn.GELU(),
            nn.Linear(expansion * dim, dim),
        )
        self.scale = nn.Parameter(torch.full((dim,), 0.25))

    def forward(self, frames: Tensor) -> Tensor:
        """(B, F, dim) -> (B, F, dim)"""
        return frames + self.scale * self.layers(frames)


class FrameConv(nn.Conv1d):
    """A convolution over the frames of (B, F, D) that keeps their number."""

    def __init__(self, dim_in: int, dim_out: int, kernel_size: int, *, groups: int = 1) -> None:
        super().__init__(dim_in, dim_out, kernel_size, padding=kernel_size // 2, groups=groups)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, F, dim_in) -> (B, F, dim_out)"""
        return super().forward(frames.transpose(1, 2)).transpose(1, 2)


def _stack(dim_in: int, dim_out: int, sizes: ConvNextISTFTSizes) -> nn.Sequential:
    """(B, F, dim_in) -> (B, F, dim_out); reaches `num_blocks * (kernel_size // 2)` windows."""
    blocks = [
        ConvNextBlock(sizes.dim, kernel_size=sizes.kernel_size, expansion=sizes.expansion)
        for _ in range(sizes.num_blocks)
    ]
    return nn.Sequential(
        nn.Linear(dim_in, sizes.dim),
        nn.LayerNorm(sizes.dim),
        *blocks,
        nn.LayerNorm(sizes.dim),
        nn.Linear(sizes.dim, dim_out),
    )
