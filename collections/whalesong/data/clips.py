"""Clips of sound to batches: codes or audio, and the values of the conditions."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lhotse import Recording
from lhotse.cut import Cut
from torch import Tensor

from whalesong.core.errors import DataError
from whalesong.data.channels import load_channels
from whalesong.data.codes import FIELD, CodecInfo, has_codes, load_codes
from whalesong.data.conversation import Conversation, origin, transcript

TEXT = "text"
"""Where a condition is the text of the cut's supervisions."""

PROMPT = "prompt"
"""Attribute of a cut with a recording that is used as its audio prompt."""


@dataclass(frozen=True)
class LoadedClip:
    """A clip that is read: its codes or its audio, and the values of its conditions."""

    id: str
    codes: Tensor | None
    """(K, F) of dtype long."""
    audio: Tensor | None
    """(C, N)"""
    values: dict[str, Any] = field(default_factory=dict)


class ClipCollator:
    """Collates lhotse cuts, those of a batch all with codes or all without.

    A batch holds
        codes (B, K, F) of dtype long, padded with 0, codes_lens (B,): of cuts with codes; or
        audio (B, C, N) fp32, audio_lens (B,): of cuts without;
        metadata: for each row a dictionary condition id -> value; an audio prompt is codes (K, f)
            of dtype long, or audio (C, n);
        ids: list of str;
        prompt: True, with `with_prompts` only.
    No cuts at all give one row of no frames whose conditions are None.

    Args:
        codec: of the model; rate and channels of audio, and shape and maker of codes.
        max_frames: longer clips are cropped to this; None keeps them whole.
        condition_keys: condition id -> where its value comes from: "text" for the text of the
            supervisions, "seconds_start" and "seconds_total" for begin and duration of what was
            cropped, or any attribute of the cut.
        audio_prompt_ids: conditions whose value is a recording: the cut's attribute `prompt`, else
            the begin of the clip.
        prompt_seconds: length of audio prompts.
        codebook_sizes: of each codebook; None takes the codec's for all.
        strict: refuse audio of another rate or number of channels instead of converting it.
        training: crop anywhere; else at the begin.
        with_prompts: say that the batch may be generated from.
    """

    family = "a model of sound"
    """For messages."""

    def __init__(
        self,
        codec: CodecInfo,
        *,
        max_frames: int | None = None,
        condition_keys: Mapping[str, str] | None = None,
        audio_prompt_ids: Sequence[str] = (),
        prompt_seconds: float = 3.0,
        codebook_sizes: Sequence[int] | None = None,
        strict: bool = False,
        training: bool,
        with_prompts: bool = False,
    ) -> None:
        self.codec = codec
        self.max_frames = max_frames
        self.condition_keys = dict(condition_keys or {})
        self.audio_prompt_ids = tuple(audio_prompt_ids)
        self.prompt_seconds = prompt_seconds
        self.codebook_sizes = None if codebook_sizes is None else tuple(codebook_sizes)
        self.strict = strict
        self.training = training
        self.with_prompts = with_prompts

    def load(self, example: Cut | Conversation) -> LoadedClip:
        """Read one clip.

        Raises:
            DataError: naming the cut: unreadable audio or codes, codes of another codec, a missing
                text or attribute, or a conversation.
        """
        cut = as_cut(example, self.family)
        return self.load_window(cut, *self.crop(self.codec.num_frames(cut.duration)))

    def measure_tokens(self, example: Cut | Conversation) -> int:
        """Frames that an example has in a batch, without reading it."""
        frames = self.codec.num_frames(as_cut(example, self.family).duration)
        return frames if self.max_frames is None else min(frames, self.max_frames)

    def __call__(self, clips: Sequence[LoadedClip]) -> dict[str, Any]:
        """Pad loaded clips into one batch.

        Raises:
            DataError: some have codes and some have not.
        """
        no_values = dict.fromkeys([*self.condition_keys, *self.audio_prompt_ids])
        batch = {
            **stack_clips(clips, num_codebooks=self.codec.num_codebooks),
            "ids": [clip.id for clip in clips],
            "metadata": [clip.values for clip in clips] or [no_values],
        }
        return {**batch, "prompt": True} if self.with_prompts else batch

    def crop(self, total: int) -> tuple[int, int]:
        """First frame and number of frames of what is taken of a clip."""
        if self.max_frames is None or total <= self.max_frames:
            return 0, total
        first = random.randint(0, total - self.max_frames) if self.training else 0
        return first, self.max_frames

    def load_window(self, cut: Cut, first: int, count: int) -> LoadedClip:
        """Read some frames of a cut, and the values of its conditions; errors as of `load`."""
        start = first / self.codec.frame_rate
        values = {name: self._value(cut, key, start) for name, key in self.condition_keys.items()}
        if has_codes(cut):
            codes = self.load_codes(cut)
            values |= {name: self._prompt(cut, codes) for name in self.audio_prompt_ids}
            return LoadedClip(cut.id, codes[:, first : first + count], None, values)
        values |= {name: self._prompt(cut, None) for name in self.audio_prompt_ids}
        if count < self.codec.num_frames(cut.duration):
            seconds = min(count / self.codec.frame_rate, cut.duration - start)
            cut = cut.truncate(offset=start, duration=seconds, preserve_id=True)
        return LoadedClip(cut.id, None, self.load_audio(cut), values)

    def load_audio(self, cut: Cut) -> Tensor:
        """Audio (C, N) as the codec takes it."""
        return load_channels(
            cut,
            sample_rate=self.codec.sample_rate,
            num_channels=self.codec.num_channels,
            strict=self.strict,
        )

    def load_codes(self, cut: Cut) -> Tensor:
        """Codes (K, F) of a cut that has them."""
        return load_codes(cut, self.codec, codebook_sizes=self.codebook_sizes)

    def _value(self, cut: Cut, key: str, start: float) -> Any:
        if key == TEXT:
            return transcript(cut)
        attributes = getattr(cut, "custom", None) or {}
        for segment in cut.supervisions:
            attributes = {**(segment.custom or {}), **attributes}
        computed = {"seconds_start": start, "seconds_total": cut.duration}
        if (value := attributes.get(key, computed.get(key))) is None:
            names = (name for name in attributes if name != FIELD and not name.startswith("_"))
            known = ", ".join(sorted(names))
            raise DataError(
                f"{origin(cut)}, cut {cut.id}: must have the attribute {key!r}, but has "
                f"{known or 'none'}."
            )
        return value

    def _prompt(self, cut: Cut, codes: Tensor | None) -> Tensor:
        """Codes (K, f) or audio (C, n) of an audio prompt."""
        recording = (getattr(cut, "custom", None) or {}).get(PROMPT)
        if isinstance(recording, Recording):
            cut = recording.to_cut()
        elif codes is not None:
            return codes[:, : self.codec.num_frames(self.prompt_seconds)]
        if cut.duration > self.prompt_seconds:
            cut = cut.truncate(duration=self.prompt_seconds, preserve_id=True)
        return self.load_audio(cut)


def as_cut(example: Cut | Conversation, family: str) -> Cut:
    """The example, which must be one clip; a DataError says that it is a conversation.

    Args:
        family: what needs a single clip.
    """
    if isinstance(example, Conversation):
        raise DataError(
            f"'{example.id}' must be a single clip for {family}, "
            f"but is a conversation of {len(example.turns)} turns."
        )
    return example


def stack_clips(clips: Sequence[LoadedClip], *, num_codebooks: int) -> dict[str, Tensor]:
    """`codes` (B, K, F) and `codes_lens` (B,), or `audio` (B, C, N) and `audio_lens` (B,).

    No clips are one row of no codes.

    Raises:
        DataError: some have codes and some have not.
    """
    coded = [clip for clip in clips if clip.codes is not None]
    if coded and len(coded) < len(clips):
        other = next(clip for clip in clips if clip.codes is None)
        raise DataError(
            f"cut {other.id} has no codes, but cut {coded[0].id} of the same batch has: "
            "tokenize all of the data, or none."
        )
    if coded or not clips:
        empty = torch.zeros(num_codebooks, 0, dtype=torch.long)
        codes, lens = pad_last([clip.codes for clip in clips] or [empty])
        return {"codes": codes, "codes_lens": lens}
    audio, lens = pad_last([clip.audio for clip in clips])
    return {"audio": audio, "audio_lens": lens}


def pad_last(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack rows (X, n) of unequal length: -> (B, X, longest) padded with 0, and lengths (B,)."""
    lens = torch.tensor([row.shape[-1] for row in rows])
    stacked = rows[0].new_zeros(len(rows), rows[0].shape[0], int(lens.max()))
    for target, row in zip(stacked, rows, strict=True):
        target[:, : row.shape[-1]] = row
    return stacked, lens
