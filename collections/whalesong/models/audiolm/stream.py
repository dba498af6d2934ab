"""`AudioStream`: audio while it is generated, and how soon and how fast it came."""

import time
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from whalesong.modules.codec.codec import Codec

Piece = tuple[list[Tensor], int]


class AudioStream:
    """Iterates over pieces of audio: for each row (C, n), of 0 samples where it has ended.

    Args:
        pieces: made one after the other as they are asked for, each with the number of new samples
            in the longest row so far.
        sample_rate: samples per second.

    Attributes:
        first_audio_seconds: time that the first piece took; None before it is there.
    """

    def __init__(self, pieces: Iterator[Piece], *, sample_rate: int) -> None:
        self._pieces, self._sample_rate = pieces, sample_rate
        self._busy, self._num_new = 0.0, 0
        self.first_audio_seconds: float | None = None

    def __iter__(self) -> "AudioStream":
        return self

    def __next__(self) -> list[Tensor]:
        begin = time.perf_counter()
        try:
            audio, self._num_new = next(self._pieces)
        finally:
            self._busy += time.perf_counter() - begin
        if self.first_audio_seconds is None:
            self.first_audio_seconds = self._busy
        return audio

    @property
    def real_time_factor(self) -> float | None:
        """Time taken so far over the length of the new audio so far; None before there is any."""
        return self._busy * self._sample_rate / self._num_new if self._num_new else None


def decode_rows(
    codec: Codec,
    prompts: Sequence[Tensor],
    pieces: Iterable[tuple[Tensor, Tensor]],
    *,
    with_prompts: bool,
) -> Iterator[Piece]:
    """Decode what follows the prompts of B rows, as soon as it is settled: pieces of a stream.

    Args:
        codec: of the codes.
        prompts: codes (K, f) of each row.
        pieces: codes (B, K, n), and how many frames of them each row has (B,).
        with_prompts: what comes out begins with the prompts.
    """
    rows = [_RowDecoder(codec, prompt, with_prompt=with_prompts) for prompt in prompts]
    for codes, lens in pieces:
        audio = [
            row.push(own[:, :count])
            for row, own, count in zip(rows, codes, lens.tolist(), strict=True)
        ]
        if any(part.shape[1] for part in audio):
            yield audio, max(row.num_new for row in rows)
    audio = [row.flush() for row in rows]
    if any(part.shape[1] for part in audio):
        yield audio, max(row.num_new for row in rows)


class _RowDecoder:
    """The decoding of one row; its prompt comes out with the first piece, or not at all."""

    def __init__(self, codec: Codec, prompt: Tensor, *, with_prompt: bool) -> None:
        self._decoder = codec.streaming_decoder()
        self._prompt = prompt
        length = prompt.shape[1] * codec.downsampling_ratio
        self._to_drop = 0 if with_prompt else length
        self._num_decoded = -length

    @property
    def num_new(self) -> int:
        """Samples so far behind the prompt."""
        return max(self._num_decoded, 0)

    def push(self, codes: Tensor) -> Tensor:
        codes = torch.cat((self._prompt, codes), dim=1)
        self._prompt = codes[:, :0]
        return self._kept(self._decoder.push(codes[None])[0])

    def flush(self) -> Tensor:
        return self._kept(self._decoder.flush()[0])

    def _kept(self, audio: Tensor) -> Tensor:
        self._num_decoded += audio.shape[1]
        dropped = min(self._to_drop, audio.shape[1])
        self._to_drop -= dropped
        return audio[:, dropped:]
