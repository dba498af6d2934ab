"""Quantizing bottlenecks of autoencoders, for inference: latents (B, D, F) to codes and back."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.dac.modeling_dac import DacResidualVectorQuantizer

from whalesong.modules.codec.autoencoder_config import (
    BOTTLENECKS,
    CONTINUOUS_BOTTLENECKS,
    DacRVQFields,
    DitheredFSQFields,
    FSQFields,
    RVQFields,
)
from whalesong.modules.codec.config import parse_fields, refuse_unknown


class Bottleneck(nn.Module, ABC):
    """A quantizer of latents.

    Attributes:
        dim: width of the latents that the decoder gets.
        num_codebooks: codes per frame.
        codebook_size: ids of one codebook.
    """

    dim: int
    num_codebooks: int
    codebook_size: int

    @abstractmethod
    def encode(self, latents: Tensor) -> Tensor:
        """(B, D, F) -> codes (B, K, F)."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """(B, K, F) -> latents (B, D, F)."""


class RVQ(Bottleneck):
    """Residual vector quantizer with Euclidean distances."""

    def __init__(self, fields: RVQFields) -> None:
        super().__init__()
        self.dim, self.num_codebooks = fields.dim, fields.num_quantizers
        self.codebook_size = fields.codebook_size
        width = fields.codebook_dim or fields.dim
        self.quantizer = nn.Module()
        self.quantizer.project_in = _projection(fields.dim, width)
        self.quantizer.project_out = _projection(width, fields.dim)
        self.codebooks = nn.Parameter(torch.randn(self.num_codebooks, self.codebook_size, width))

    def encode(self, latents: Tensor) -> Tensor:
        """(B, D, F) -> codes (B, K, F)."""
        residual = self.quantizer.project_in(latents.transpose(1, 2))  # (B, F, width)
        codes = []
        for codebook in self.codebooks:
            distance = codebook.square().sum(1) - 2 * residual @ codebook.t()
            codes.append(distance.argmin(dim=-1))
            residual = residual - codebook[codes[-1]]
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """(B, K, F) -> latents (B, D, F)."""
        pairs = zip(self.codebooks, codes.unbind(1), strict=True)
        total = sum(codebook[ids] for codebook, ids in pairs)
        return self.quantizer.project_out(total).transpose(1, 2)


class DacRVQ(Bottleneck):
    """Residual vector quantizer of the Descript audio codec."""

    def __init__(self, fields: DacRVQFields) -> None:
        super().__init__()
        self.dim, self.num_codebooks = fields.input_dim, fields.n_codebooks
        self.codebook_size = fields.codebook_size
        self.quantizer = DacResidualVectorQuantizer(
            SimpleNamespace(
                hidden_size=fields.input_dim,
                n_codebooks=fields.n_codebooks,
                codebook_size=fields.codebook_size,
                codebook_dim=fields.codebook_dim,
                quantizer_dropout=0.0,
            )
        )

    def encode(self, latents: Tensor) -> Tensor:
        """(B, D, F) -> codes (B, K, F)."""
        return self.quantizer(latents)[1]

    def decode(self, codes: Tensor) -> Tensor:
        """(B, K, F) -> latents (B, D, F)."""
        return self.quantizer.from_codes(codes)[0]


class _ScalarQuantizer(Bottleneck):
    """Rounds each number to one of its levels; the levels of a group together are one code."""

    def __init__(self, levels: list[int], num_codebooks: int) -> None:
        super().__init__()
        self.num_codebooks = num_codebooks
        self.levels = nn.Buffer(torch.tensor(levels), persistent=False)
        self.basis = nn.Buffer(torch.tensor([1, *levels[:-1]]).cumprod(0), persistent=False)
        self.codebook_size = int(self.levels.prod())

    def encode(self, latents: Tensor) -> Tensor:
        """(B, D, F) -> codes (B, K, F)."""
        latents = latents.transpose(1, 2).unflatten(2, (self.num_codebooks, -1))
        return (self._to_levels(latents).long() * self.basis).sum(dim=-1).transpose(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        """(B, K, F) -> latents (B, D, F)."""
        ids = codes.transpose(1, 2).unsqueeze(-1) // self.basis % self.levels
        return self._to_latents(ids).flatten(2).transpose(1, 2)

    @abstractmethod
    def _to_levels(self, latents: Tensor) -> Tensor:
        """(B, F, K, len(levels)) to whole numbers from 0."""

    @abstractmethod
    def _to_latents(self, ids: Tensor) -> Tensor:
        """Whole numbers from 0 to what the decoder gets, (B, F, K, len(levels))."""


class FSQ(_ScalarQuantizer):
    """Finite scalar quantization (Mentzer et al., 2023, arXiv:2309.15505)."""

    def __init__(self, fields: FSQFields) -> None:
        super().__init__(fields.levels, fields.num_codebooks)
        width = len(fields.levels) * fields.num_codebooks
        self.dim = fields.dim or width
        self.quantizer = nn.Module()
        self.quantizer.project_in = _projection(self.dim, width)
        self.quantizer.project_out = _projection(width, self.dim)

    def encode(self, latents: Tensor) -> Tensor:
        """(B, D, F) -> codes (B, K, F)."""
        return super().encode(self.quantizer.project_in(latents.transpose(1, 2)).transpose(1, 2))

    def decode(self, codes: Tensor) -> Tensor:
        """(B, K, F) -> latents (B, D, F)."""
        return self.quantizer.project_out(super().decode(codes).transpose(1, 2)).transpose(1, 2)

    def _to_levels(self, latents: Tensor) -> Tensor:
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = 0.5 * (self.levels % 2 == 0)
        bounded = (latents + (offset / half).atanh()).tanh() * half - offset
        return bounded.round() + self.levels // 2

    def _to_latents(self, ids: Tensor) -> Tensor:
        half_width = self.levels // 2
        return (ids - half_width) / half_width


class DitheredFSQ(_ScalarQuantizer):
    """Finite scalar quantization of equally wide cells between -1 and 1."""

    def __init__(self, fields: DitheredFSQFields) -> None:
        levels = fields.levels
        levels = [levels] * fields.dim if isinstance(levels, int) else levels
        if len(levels) != fields.dim:
            raise ValueError(
                f"`levels` must have {fields.dim} values, one for each of `dim`, "
                f"but has {len(levels)}."
            )
        super().__init__(levels, fields.num_codebooks)
        self.dim = fields.dim * fields.num_codebooks

    def _to_levels(self, latents: Tensor) -> Tensor:
        return ((latents.tanh() + 1) * (self.levels - 1) / 2).round()

    def _to_latents(self, ids: Tensor) -> Tensor:
        return ids * (2 / (self.levels - 1)) - 1


class VariationalBottleneck(Bottleneck):
    """Quantizes the mean of the distribution that the encoder gives."""

    def __init__(self, inner: Bottleneck) -> None:
        super().__init__()
        self.dim, self.num_codebooks = inner.dim, inner.num_codebooks
        self.codebook_size = inner.codebook_size
        self.inner = inner

    def encode(self, latents: Tensor) -> Tensor:
        """Mean and scale (B, 2 D, F) -> codes (B, K, F)."""
        return self.inner.encode(latents.chunk(2, dim=1)[0])

    def decode(self, codes: Tensor) -> Tensor:
        """(B, K, F) -> latents (B, D, F)."""
        return self.inner.decode(codes)


def _projection(width: int, new_width: int) -> nn.Module:
    return nn.Identity() if width == new_width else nn.Linear(width, new_width)


_CLASSES = {"rvq": RVQ, "dac_rvq": DacRVQ, "fsq": FSQ, "dithered_fsq": DitheredFSQ}


def build_bottleneck(section: Mapping[str, Any] | None) -> Bottleneck:
    """Build a quantizing bottleneck from `{type, config}`.

    Raises:
        AssertionError: no type, or a bottleneck that does not quantize.
        NotImplementedError: unknown type.
        ValueError: unknown field or wrong value.
    """
    if section is None or section.get("type") in CONTINUOUS_BOTTLENECKS:
        raise AssertionError("Pretransform must be discrete")
    refuse_unknown(section, ("type", "config", "requires_grad"), "`bottleneck`")
    kind = section.get("type")
    if kind is None:
        raise AssertionError("type must be specified in bottleneck config")
    if kind not in BOTTLENECKS:
        raise NotImplementedError(f"Unknown bottleneck type: {kind}")
    owner = f"`config` of a bottleneck of type '{kind}'"
    fields = parse_fields(BOTTLENECKS[kind], section.get("config") or {}, owner)
    bottleneck = _CLASSES[kind.removesuffix("_vae")](fields)
    return VariationalBottleneck(bottleneck) if kind.endswith("_vae") else bottleneck
