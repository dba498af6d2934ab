"""`Codec`: the one interface to audio tokenizers, and its streaming decoder."""

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor, nn


class Codec(nn.Module, ABC):
    """A discrete audio tokenizer: frozen, in evaluation mode, and in fp32 whatever surrounds it.

    Attributes:
        sample_rate: samples per second of the audio.
        num_channels: channels of the audio.
        num_codebooks: K, codes per frame.
        codebook_size: V, ids of one codebook.
        downsampling_ratio: samples per frame.
        assets: content of the files from which `build_codec` makes the codec again without its
            weights, by file name.
        receptive_field: frames to the left and to the right of a frame on which its samples
            depend in `decode`; None to the left: all that came before.
    """

    is_discrete = True
    sample_rate: int
    num_channels: int = 1
    num_codebooks: int
    codebook_size: int
    downsampling_ratio: int
    assets: dict[str, bytes]
    receptive_field: tuple[int | None, int]

    @property
    def num_quantizers(self) -> int:
        """`num_codebooks` under the name that pretransforms use."""
        return self.num_codebooks

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.downsampling_ratio

    def num_frames(self, num_samples: int | Tensor) -> int | Tensor:
        """Frames of a recording; the last one may be padded with silence."""
        return -(-num_samples // self.downsampling_ratio)

    def encode(self, audio: Tensor, audio_lens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokenize audio; every row gives the codes that it gives alone.

        Args:
            audio: (B, C, N) at `sample_rate`.
            audio_lens: samples of each row (B,); all N if None.

        Returns:
            codes (B, K, F) of dtype long, and frames of each row (B,).

        Raises:
            ValueError: another number of channels.
        """
        if audio.dim() != 3 or audio.shape[1] != self.num_channels:
            raise ValueError(
                f"`audio` must be (B, {self.num_channels}, N), but is {tuple(audio.shape)}."
            )
        if audio_lens is None:
            audio_lens = torch.full((len(audio),), audio.shape[2], device=audio.device)
        frames = self.num_frames(audio_lens)
        with torch.no_grad(), torch.autocast(audio.device.type, enabled=False):
            codes = audio.new_zeros(
                (len(audio), self.num_codebooks, int(frames.max())), dtype=torch.long
            )
            # Rows of one length go together; padding would reach into the last frames of a row.
            for length in audio_lens[audio_lens > 0].unique().tolist():
                rows = (audio_lens == length).nonzero().squeeze(1)
                count = int(self.num_frames(length))
                whole = nn.functional.pad(
                    audio[rows, :, :length].float(), (0, count * self.downsampling_ratio - length)
                )
                codes[rows, :, :count] = self._encode(whole)
        return codes, frames

    def decode(self, codes: Tensor) -> Tensor:
        """Turn codes (B, K, F) into audio (B, C, F * downsampling_ratio).

        Raises:
            ValueError: another number of codebooks, or an id that no codebook has.
        """
        self.check_codes(codes)
        if codes.shape[2] == 0:
            return torch.zeros(len(codes), self.num_channels, 0, device=codes.device)
        with torch.no_grad(), torch.autocast(codes.device.type, enabled=False):
            return self._decode(codes)

    def check_codes(self, codes: Tensor) -> None:
        """Refuse what no `encode` gives.

        Raises:
            ValueError: another number of codebooks, or an id that no codebook has.
        """
        if codes.dim() != 3 or codes.shape[1] != self.num_codebooks:
            raise ValueError(
                f"`codes` must be (B, {self.num_codebooks}, F), but is {tuple(codes.shape)}."
            )
        if codes.numel() == 0:
            return
        for value in torch.stack(codes.aminmax()).tolist():
            if not 0 <= value < self.codebook_size:
                raise ValueError(
                    f"`codes` must be from 0 to {self.codebook_size - 1}, but hold {value}."
                )

    def streaming_decoder(self) -> "StreamingDecoder":
        """A decoder that takes codes piece by piece."""
        return StreamingDecoder(self)

    @abstractmethod
    def _encode(self, audio: Tensor) -> Tensor:
        """(B, C, F * downsampling_ratio) -> (B, K, F)."""

    @abstractmethod
    def _decode(self, codes: Tensor) -> Tensor:
        """(B, K, F) -> (B, C, F * downsampling_ratio)."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    def _apply(self, fn, recurse: bool = True) -> Self:
        """Follow to another device, but stay in fp32."""

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            # Casting there and back would lose digits.
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_precision, recurse)


class StreamingDecoder:
    """Decodes codes piece by piece; all pieces together equal `Codec.decode` of the whole.

    A frame is given out when the frames to its right that it depends on are there. Where
    `receptive_field` has no bound to the left, everything so far is decoded again each time.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._codes: Tensor | None = None
        self._first = 0
        self._done = 0

    def push(self, codes: Tensor) -> Tensor:
        """Take frames (B, K, f), which may be none; return samples (B, C, n) that are settled."""
        self._codes = codes if self._codes is None else torch.cat([self._codes, codes], dim=2)
        ready = self._first + self._codes.shape[2] - self.codec.receptive_field[1]
        return self._emit(max(ready, self._done))

    def flush(self) -> Tensor:
        """Return the samples that were waiting for frames that did not come."""
        if self._codes is None:
            return torch.zeros(0, self.codec.num_channels, 0)
        return self._emit(self._first + self._codes.shape[2])

    def _emit(self, end: int) -> Tensor:
        codes, ratio = self._codes, self.codec.downsampling_ratio
        if end == self._done:
            return torch.zeros(len(codes), self.codec.num_channels, 0, device=codes.device)
        audio = self.codec.decode(codes)
        begin = self._done - self._first
        samples = audio[:, :, begin * ratio : (end - self._first) * ratio]
        self._done = end
        left = self.codec.receptive_field[0]
        if left is not None:
            drop = max(end - left - self._first, 0)
            self._codes, self._first = codes[:, :, drop:], self._first + drop
        return samples
