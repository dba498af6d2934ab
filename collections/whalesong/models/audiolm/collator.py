"""Clips to batches of AudioLM: which frames are prompt, which are target."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any, Literal

import torch
from lhotse import Features, Recording
from lhotse.array import Array, TemporalArray
from lhotse.cut import Cut
from lhotse.utils import fastcopy

from whalesong.core.errors import DataError
from whalesong.core.parts import Batch
from whalesong.data.clips import PROMPT, ClipCollator, LoadedClip, as_cut, stack_clips
from whalesong.data.codes import CodecInfo, load_attached_codes, reaches_end
from whalesong.data.conversation import Conversation
from whalesong.models.audiolm.config import PromptMode, PromptSettings

Span = tuple[int, int]
"""Frames from the first to the second, which is not part of it."""

NOWHERE: Span = (0, 0)


@dataclass(frozen=True)
class PromptedClip:
    """A clip that is read, and what of it is prompt and target."""

    clip: LoadedClip
    target: Span
    """Frames of the clip that are target; all others are prompt."""
    copied: Span = NOWHERE
    """Frames of the clip that are copied in front of it as its prompt."""
    prompt: LoadedClip | None = None
    """What else goes in front of the clip as its prompt."""
    closes: bool = False
    """The end of the target is an end to be learned."""


class AudioLMCollator(ClipCollator):
    """Collates lhotse cuts, those of a batch all with codes or all without.

    Beside what `ClipCollator` gives, a batch holds
        target_span (B, 2): first and last but one frame of the target in the clip; all other frames
            of the clip are its prompt;
        copied_span (B, 2): frames that are copied in front of the clip as its prompt and are not
            scored in the target; (0, 0) for none;
        prompt_codes (B, K, f), prompt_codes_lens (B,), or prompt_audio (B, C, n),
            prompt_audio_lens (B,): what else goes in front of the clips, if any has it;
        closes (B,) bool: where the end is learned.

    Args:
        codec: of the model; rate and channels of audio, and shape and maker of codes.
        prompt: how a clip becomes a prompt and a target.
        predict_eos: auto learns the end where the recording, or its codes without a recording, ends
            with the target; always at the end of every clip that is target; never nowhere.
        max_frames, condition_keys, audio_prompt_ids, prompt_seconds, codebook_sizes, strict,
            with_prompts: see `ClipCollator`.
        training: crop anywhere, draw mode, split and places; else crop at the begin, take the
            heaviest mode and the middle of the split, a target in the middle of the clip (infill)
            and prompts from the begin (segment, neighbour).
    """

    family = "AudioLM"

    def __init__(
        self,
        codec: CodecInfo,
        *,
        prompt: PromptSettings,
        max_frames: int | None = None,
        condition_keys: Mapping[str, str] | None = None,
        audio_prompt_ids: Sequence[str] = (),
        prompt_seconds: float = 3.0,
        predict_eos: Literal["auto", "always", "never"] = "auto",
        codebook_sizes: Sequence[int] | None = None,
        strict: bool = False,
        training: bool,
        with_prompts: bool = False,
    ) -> None:
        super().__init__(
            codec,
            max_frames=max_frames,
            condition_keys=condition_keys,
            audio_prompt_ids=audio_prompt_ids,
            prompt_seconds=prompt_seconds,
            codebook_sizes=codebook_sizes,
            strict=strict,
            training=training,
            with_prompts=with_prompts,
        )
        self.prompt = prompt
        self.predict_eos = predict_eos

    def load(self, example: Cut | Conversation) -> PromptedClip:
        """Read one clip, and divide it into prompt and target.

        Raises:
            DataError: naming the cut: whatever `ClipCollator.load` refuses, a clip of too few
                frames for prompt and target, or no prompt where the mode is "neighbour".
        """
        cut = as_cut(example, self.family)
        total = self.codec.num_frames(cut.duration)
        first, count = self.crop(total)
        mode, share = self._draw_mode(), self._draw_share()
        clip = self.load_window(cut, first, count)
        frames = self._count_frames(clip)
        length = self._prompt_length(cut, mode, share, frames)
        target = self._target(mode, length, frames)
        return PromptedClip(
            clip,
            target,
            self._place(length, frames) if mode == "segment" else NOWHERE,
            self._neighbour(cut) if mode == "neighbour" else None,
            target[1] == frames and self._closes(cut, is_last=first + count >= total),
        )

    def __call__(self, clips: Sequence[PromptedClip]) -> Batch:
        """Pad loaded clips into one batch.

        Raises:
            DataError: some have codes and some have not, or their prompts.
        """
        rows = clips or [PromptedClip(LoadedClip("", None, None), NOWHERE)]
        return {
            **super().__call__([row.clip for row in clips]),
            **self._stack_prompts(clips),
            "target_span": torch.tensor([row.target for row in rows]),
            "copied_span": torch.tensor([row.copied for row in rows]),
            "closes": torch.tensor([row.closes for row in rows]),
        }

    def _draw_mode(self) -> PromptMode:
        modes = self.prompt.modes
        if not self.training:
            return max(modes, key=modes.__getitem__)
        return random.choices(list(modes), list(modes.values()))[0]

    def _draw_share(self) -> float:
        """The share of the clip that is prompt."""
        split = self.prompt.split
        low, high = split if isinstance(split, tuple) else (split, split)
        return random.uniform(low, high) if self.training else (low + high) / 2

    def _count_frames(self, clip: LoadedClip) -> int:
        if clip.codes is not None:
            return clip.codes.shape[1]
        return self.codec.num_frames(clip.audio.shape[1] / self.codec.sample_rate)

    def _prompt_length(self, cut: Cut, mode: PromptMode, share: float, frames: int) -> int:
        """Frames of the clip that are its prompt."""
        if mode in ("none", "neighbour"):
            return 0
        length = floor(share * frames + 1e-6)
        if length == 0:
            raise DataError(
                f"cut {cut.id}: must have a prompt of at least 1 frame, but {share:.0%} of "
                f"{frames} frames are less."
            )
        return min(length, self._longest_segment) if mode == "segment" else length

    @property
    def _longest_segment(self) -> int:
        return max(floor(self.prompt.segment_seconds * self.codec.frame_rate + 1e-6), 1)

    def _target(self, mode: PromptMode, prompt_length: int, frames: int) -> Span:
        if mode == "prefix":
            return prompt_length, frames
        if mode != "infill":
            return 0, frames
        begin = random.randint(0, prompt_length) if self.training else prompt_length // 2
        return begin, begin + frames - prompt_length

    def _place(self, length: int, frames: int) -> Span:
        """A piece of so many frames."""
        begin = random.randint(0, frames - length) if self.training else 0
        return begin, begin + length

    def _closes(self, cut: Cut, *, is_last: bool) -> bool:
        if self.predict_eos != "auto":
            return self.predict_eos == "always"
        return is_last and reaches_end(cut, self.codec)

    def _neighbour(self, cut: Cut) -> LoadedClip:
        """A piece of the cut's own prompt."""
        value = (getattr(cut, "custom", None) or {}).get(PROMPT)
        name = f"{cut.id} (its prompt)"
        if isinstance(value, Recording):
            return LoadedClip(name, None, self.load_audio(self._piece(value, name)))
        if isinstance(value, TemporalArray | Array | Features):
            codes = load_attached_codes(cut, PROMPT, self.codec, codebook_sizes=self.codebook_sizes)
            length = min(codes.shape[1], self._longest_segment)
            begin, end = self._place(length, codes.shape[1])
            return LoadedClip(name, codes[:, begin:end], None)
        found = "none" if value is None else repr(value)
        raise DataError(
            f"cut {cut.id}: must have a recording or an array of codes as its attribute "
            f"'{PROMPT}' for the mode 'neighbour', but has {found}."
        )

    def _piece(self, recording: Recording, name: str) -> Cut:
        cut = fastcopy(recording.to_cut(), id=name)
        frames = self.codec.num_frames(cut.duration)
        if frames <= self._longest_segment:
            return cut
        begin, end = (place / self.codec.frame_rate
                      for place in self._place(self._longest_segment, frames))  # fmt: skip
        duration = min(end, cut.duration) - begin
        return cut.truncate(offset=begin, duration=duration, preserve_id=True)

    def _stack_prompts(self, clips: Sequence[PromptedClip]) -> dict[str, Any]:
        given = [row.prompt for row in clips if row.prompt is not None]
        if not given:
            return {}
        some = given[0]
        nothing = LoadedClip(
            "",
            None if some.codes is None else some.codes[:, :0],
            None if some.audio is None else some.audio[:, :0],
        )
        stacked = stack_clips(
            [row.prompt or nothing for row in clips], num_codebooks=self.codec.num_codebooks
        )
        return {f"prompt_{name}": values for name, values in stacked.items()}
