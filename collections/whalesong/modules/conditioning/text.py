"""Conditioners that learn to read by themselves: bytes of a text, and phonemes."""

import string
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from whalesong.modules.conditioning.conditioner import (
    Condition,
    Conditioner,
    output_projection,
    pad_rows,
    require_texts,
)

END = 256
"""Behind the last byte, so that an empty text is not the null condition."""

_VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
_CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()
ARPABET: tuple[str, ...] = tuple(
    sorted([vowel + stress for vowel in _VOWELS for stress in "012"] + _CONSONANTS)
)
"""The phonemes of English with stress, as in the CMU pronouncing dictionary."""

_OTHER, _PAUSE = 0, 1


class ByteTextConditioner(Conditioner):
    """The UTF-8 bytes of a text through a small transformer encoder; needs no pretrained part.

    Args:
        output_dim: C.
        max_length: S at most, the end included; longer texts are cut.
        width: inside the encoder.
        num_layers: 0 leaves the embeddings of bytes and positions.
        num_heads: attention heads; divides `width`.
    """

    def __init__(
        self,
        output_dim: int,
        *,
        max_length: int = 256,
        width: int = 128,
        num_layers: int = 1,
        num_heads: int = 4,
    ) -> None:
        super().__init__(output_dim)
        self.max_length = max_length
        self.embedding = nn.Embedding(END + 1, width)
        self.positions = nn.Embedding(max_length, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, num_heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.proj_out = output_projection(width, output_dim)

    def embed(self, values: Sequence[Any]) -> Condition:
        """Embed texts."""
        require_texts("text", values)
        rows = [[*text.encode()[: self.max_length - 1], END] for text in values]
        ids, mask = pad_rows([torch.tensor(row, device=self.device) for row in rows])
        hidden = self.embedding(ids) + self.positions.weight[: ids.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=~mask)
        return Condition.masked(self.proj_out(self.norm(hidden)), mask)


class PhonemeConditioner(Conditioner):
    """A learned embedding for each phoneme.

    Args:
        output_dim: C.
        symbols: the phonemes; other spaces and punctuation count as a pause, the rest as
            one unknown.
        max_length: S at most; what is longer is cut.
        project_out: a linear layer behind the embedding.
        g2p: turns a text into phonemes; None takes the package g2p_en where a text comes.
    """

    def __init__(
        self,
        output_dim: int,
        *,
        symbols: Sequence[str] = ARPABET,
        max_length: int = 1024,
        project_out: bool = False,
        g2p: Callable[[str], Sequence[str]] | None = None,
    ) -> None:
        super().__init__(output_dim)
        self.index = dict.fromkeys([" ", *string.punctuation], _PAUSE)
        self.index |= {symbol: number for number, symbol in enumerate(symbols, start=2)}
        self.max_length = max_length
        self.g2p = g2p
        self.phoneme_embedder = nn.Embedding(len(symbols) + 2, output_dim)
        self.proj_out = output_projection(output_dim, output_dim, project_out=project_out)

    def embed(self, values: Sequence[Any]) -> Condition:
        """Embed texts or lists of phonemes."""
        ids, mask = pad_rows([self._ids(self._phonemes(value)) for value in values])
        return Condition.masked(self.proj_out(self.phoneme_embedder(ids)), mask)

    def _ids(self, phonemes: Sequence[str]) -> Tensor:
        ids = [self.index.get(phoneme, _OTHER) for phoneme in phonemes[: self.max_length]]
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def _phonemes(self, value: Any) -> Sequence[str]:
        if isinstance(value, str):
            return (self.g2p or _load_g2p())(value)
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return value
        raise ValueError(
            f"a `phoneme` condition must be a text or a list of phonemes, but is {value!r}."
        )


@cache
def _load_g2p() -> Callable[[str], Sequence[str]]:
    try:
        from g2p_en import G2p
    except ImportError as error:
        raise ValueError(
            "a `phoneme` condition must be a list of phonemes where the package g2p_en is not "
            "installed, but is a text."
        ) from error
    return G2p()
