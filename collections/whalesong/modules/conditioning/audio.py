"""Conditioners on recordings: codes of a codec, embedded and summed over codebooks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from whalesong.modules.codec.build import build_codec
from whalesong.modules.codec.codec import Codec
from whalesong.modules.conditioning.conditioner import Condition, Conditioner, pad_rows
from whalesong.modules.conditioning.config import AudioPromptFields, PretransformFields
from whalesong.modules.conditioning.recordings import mix_channels, read_recording, resample

CODEC_FIELDS = {
    "use_model_pretransform",
    "pretransform_config",
    "pretransform_ckpt_path",
    "save_pretransform",
}
"""Fields that tell which codec, and nothing about the conditioner."""


class CodecConditioner(Conditioner):
    """Base of conditioners that tokenize recordings.

    A recording is audio (C, N) or (N,), `{"audio": ..., "sample_rate": ...}`, or codes (K, F).

    Args:
        output_dim: C.
        codec: tokenizes.
        owns_codec: the codec is a part of this module, not only used by it.
        sample_rate: of audio that comes without its rate; None means that of the codec.
        max_seconds: what is longer is cut; None takes all.
        positions: add sinusoidal positions.
    """

    def __init__(
        self,
        output_dim: int,
        *,
        codec: Codec,
        owns_codec: bool = False,
        sample_rate: int | None = None,
        max_seconds: float | None = None,
        positions: bool = True,
    ) -> None:
        super().__init__(output_dim, assets=codec.assets if owns_codec else None)
        if owns_codec:
            self.codec = codec
        else:  # the weights belong to the module that lends it
            self.__dict__["codec"] = codec
        self.sample_rate = sample_rate or codec.sample_rate
        self.max_samples = self.max_frames = None
        if max_seconds is not None:
            self.max_samples = max(round(max_seconds * codec.sample_rate), 1)
            self.max_frames = codec.num_frames(self.max_samples)
        self.positions = positions

    @classmethod
    def from_fields(
        cls,
        fields: AudioPromptFields | PretransformFields,
        output_dim: int,
        *,
        assets: Mapping[str, bytes] | None = None,
        codec: Codec | None = None,
    ) -> Self:
        """Build it on the codec of the model, or on one of its own.

        Raises:
            ValueError: the model has no codec, or the own one cannot be built.
        """
        if not fields.use_model_pretransform:
            codec = _own_codec(fields, assets)
        elif codec is None:
            raise ValueError(f"Model pretransform must be specified for {fields.kind} conditioners")
        return cls(
            output_dim,
            codec=codec,
            owns_codec=not fields.use_model_pretransform,
            **fields.settings(without=CODEC_FIELDS),
        )

    def codes_of(self, recordings: Sequence[Any]) -> list[Tensor]:
        """Codes (K, F) of each recording; audio is tokenized together.

        Raises:
            ValueError: neither audio nor codes of the codec.
        """
        tensors = [self._tensor_of(recording) for recording in recordings]
        waiting = [row for row, tensor in enumerate(tensors) if tensor.is_floating_point()]
        encoded = self._encode([tensors[row] for row in waiting])
        for row, codes in zip(waiting, encoded, strict=True):
            tensors[row] = codes
        return [codes[:, : self.max_frames] for codes in tensors]

    def with_positions(self, embeds: Tensor) -> Tensor:
        """Tell the order of (B, S, C), where that is wished for."""
        if not self.positions:
            return embeds
        return embeds + sinusoids(embeds.shape[1], self.output_dim).to(embeds)

    def _tensor_of(self, recording: Any) -> Tensor:
        """Codes (K, F), or audio (codec's channels, N) at the codec's rate."""
        tensor, rate = read_recording(recording, sample_rate=self.sample_rate)
        if tensor.is_floating_point():
            if not tensor.isfinite().all():
                raise ValueError("a recording must be finite, but holds NaN or infinity.")
            audio = mix_channels(tensor, self.codec.num_channels)
            return resample(audio, rate, self.codec.sample_rate).to(self.device)
        return self._checked_codes(tensor).to(self.device)

    def _checked_codes(self, codes: Tensor) -> Tensor:
        num_codebooks, size = self.codec.num_codebooks, self.codec.codebook_size
        if codes.dim() != 2 or len(codes) != num_codebooks:
            raise ValueError(f"codes must be ({num_codebooks}, F), but are {tuple(codes.shape)}.")
        # On an accelerator the look at the values would stop the queue.
        if codes.device.type == "cpu" and ((codes < 0) | (codes >= size)).any():
            raise ValueError(
                f"codes must be from 0 to {size - 1}, "
                f"but reach from {codes.min()} to {codes.max()}."
            )
        return codes.long()

    def _encode(self, audios: list[Tensor]) -> list[Tensor]:
        if not audios:
            return []
        audios = [audio[:, : self.max_samples] for audio in audios]
        lens = torch.tensor([audio.shape[1] for audio in audios], device=self.device)
        padded = nn.utils.rnn.pad_sequence([audio.T for audio in audios], batch_first=True)
        codes, frames = self.codec.encode(padded.transpose(1, 2), lens)
        return [row[:, :count] for row, count in zip(codes, frames.tolist(), strict=True)]


class AudioPromptConditioner(CodecConditioner):
    """A recording as a sequence of embeddings, one for each frame of the codec, (B, F, C).

    The settings are those of `CodecConditioner`.
    """

    def __init__(self, output_dim: int, *, codec: Codec, **settings: Any) -> None:
        super().__init__(output_dim, codec=codec, **settings)
        self.embedding = CodesEmbedding(codec, output_dim)

    def embed(self, values: Sequence[Any]) -> Condition:
        """Embed recordings."""
        codes, mask = pad_rows([codes.T for codes in self.codes_of(values)])
        return Condition.masked(self.with_positions(self.embedding(codes)), mask)


class SourceMixConditioner(CodecConditioner):
    """The sum of the embeddings of several recordings by name, (B, longest F, C).

    Args:
        output_dim: C.
        codec: tokenizes.
        source_keys: names that a value may have.
        pre_encoded: recordings must be codes.
        allow_null_source: take a value without any recording as a learned embedding.
        source_length: F of such a value.
        settings: see `CodecConditioner`.
    """

    def __init__(
        self,
        output_dim: int,
        *,
        codec: Codec,
        source_keys: Sequence[str] = (),
        pre_encoded: bool = False,
        allow_null_source: bool = False,
        source_length: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__(output_dim, codec=codec, **settings)
        self.source_keys = list(source_keys)
        self.pre_encoded = pre_encoded
        self.source_length = source_length
        self.embeddings = nn.ModuleList(CodesEmbedding(codec, output_dim) for _ in source_keys)
        self.null_source = nn.Parameter(torch.randn(output_dim)) if allow_null_source else None

    def embed(self, values: Sequence[Any]) -> Condition:
        """Embed mappings from names to recordings."""
        condition = Condition.of_rows([self._mix(value) for value in values])
        if self.training:  # names that no row has
            condition = condition.tied_to(self.parameters())
        return Condition.masked(self.with_positions(condition.embeds), condition.mask)

    def _mix(self, value: Any) -> Tensor:
        """(F, C) of one row."""
        if not isinstance(value, Mapping):
            raise ValueError(f"sources must be a mapping by name, but are {value!r}.")
        present = [number for number, key in enumerate(self.source_keys) if key in value]
        if not present:
            return self._nothing()
        recordings = [value[self.source_keys[number]] for number in present]
        if self.pre_encoded and not all(_are_codes(recording) for recording in recordings):
            raise ValueError("sources must be codes where `pre_encoded` is set, but are audio.")
        rows = [
            self.embeddings[number](codes.T)
            for number, codes in zip(present, self.codes_of(recordings), strict=True)
        ]
        return nn.utils.rnn.pad_sequence(rows).sum(dim=1)

    def _nothing(self) -> Tensor:
        if self.null_source is None:
            raise ValueError("No sources found for mix")
        return self.null_source.expand(self.source_length, -1)


class CodesEmbedding(nn.Module):
    """Sum of the embeddings of a frame's codes: (*, K) -> (*, C), of unit variance at first."""

    def __init__(self, codec: Codec, output_dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(codec.num_codebooks * codec.codebook_size, output_dim)
        nn.init.normal_(self.table.weight, std=codec.num_codebooks**-0.5)
        offsets = torch.arange(codec.num_codebooks) * codec.codebook_size
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Embed codes."""
        return self.table(codes + self.offsets).sum(dim=-2)


def sinusoids(length: int, width: int) -> Tensor:
    """Sines and cosines of positions, at wavelengths up to 20000 pi: (length, width)."""
    half = math.ceil(width / 2)
    speeds = torch.exp(torch.arange(half) * (-math.log(10000.0) / half))
    phases = torch.arange(length)[:, None] * speeds
    return torch.cat([phases.sin(), phases.cos()], dim=1)[:, :width]


def _are_codes(recording: Any) -> bool:
    return not isinstance(recording, Mapping) and not torch.as_tensor(recording).is_floating_point()


def _own_codec(fields: PretransformFields, assets: Mapping[str, bytes] | None) -> Codec:
    codec = build_codec(fields.pretransform_config, assets=assets, sample_rate=fields.sample_rate)
    if assets is None and fields.pretransform_ckpt_path is not None:
        _load_weights(codec, fields.pretransform_ckpt_path)
    return codec


def _load_weights(codec: Codec, path: str) -> None:
    """Read weights from a `.safetensors` file, or from what `torch.save` wrote.

    Raises:
        ValueError: they are not those of the codec.
    """
    if path.endswith(".safetensors"):
        weights = load_file(path)
    else:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        weights = weights.get("state_dict", weights)
    try:
        codec.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"`pretransform_ckpt_path` '{path}' does not hold the weights of this pretransform."
        ) from error
