"""Cuts with a user's and an agent's channel to batches on one grid of frames."""

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from lhotse import MonoCut, Recording
from lhotse.cut import Cut
from lhotse.utils import fastcopy
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from whalesong.core.errors import ConfigError, DataError
from whalesong.core.parts import Batch
from whalesong.data.audio import load_audio
from whalesong.data.channels import count_channels
from whalesong.data.clips import as_cut
from whalesong.data.config import DataConfig
from whalesong.data.conversation import Conversation, origin
from whalesong.data.text_channel import (
    NO_EVENT,
    TextChannel,
    TextIds,
    frame_at,
    place_turns,
)
from whalesong.data.turns import Turn, joined, turns_of
from whalesong.modules.frames import FrameCounter

FIELD = "target_audio"
"""Attribute of a cut with the recording of the agent."""

INPUT_ROLES = ("user", "User")
OUTPUT_ROLES = ("agent", "Assistant")


class FrameGrid(Protocol):
    """What is asked of a codec: the frames of its audio."""

    sample_rate: int
    downsampling_ratio: int
    """Samples of a frame."""


@dataclass(frozen=True)
class LoadedDialogue:
    """A dialogue whose audio is read and whose text is placed."""

    id: str
    source: Tensor
    """(N,) at the encoder's rate."""
    target: Tensor
    """(N',) at the codec's rate."""
    channel: TextChannel
    source_turns: list[Turn]
    target_turns: list[Turn]


class DuplexCollator:
    """Collates lhotse cuts: the recording is the user, `target_audio` is the agent.

    A batch holds
        source_audio (B, N) fp32, source_audio_lens (B,): at the encoder's rate;
        target_audio (B, N') fp32, target_audio_lens (B,): at the codec's rate;
        target_tokens (B, F), target_events (B, F), target_token_lens (B,): see `place_turns`,
            padded with PAD and NO_EVENT;
        ids, source_texts, target_texts: lists of str; source_turns, target_turns: of lists of Turn;
        prompt: with `with_prompts`, source_audio and source_audio_lens.
    No cuts at all give one row whose lens are 0.

    Args:
        tokenizer: has `text_to_ids`.
        ids: control tokens of the text.
        counter: frames that perception gives for a number of samples.
        codec: rate and frames of the agent's audio.
        frame_length: seconds of a frame of all three.
        input_roles: speakers of the supervisions that are the user.
        output_roles: speakers that are the agent.
        with_prompts: also give what generation starts from.
    """

    def __init__(
        self,
        *,
        tokenizer: Any,
        ids: TextIds,
        counter: FrameCounter,
        codec: FrameGrid,
        frame_length: float = 0.08,
        input_roles: Sequence[str] = INPUT_ROLES,
        output_roles: Sequence[str] = OUTPUT_ROLES,
        with_prompts: bool,
    ) -> None:
        self.tokenizer = tokenizer
        self.ids = ids
        self.counter = counter
        self.sample_rate = codec.sample_rate
        self.samples_per_frame = codec.downsampling_ratio
        self.frame_length = frame_length
        self.input_roles = tuple(input_roles)
        self.output_roles = tuple(output_roles)
        self.with_prompts = with_prompts

    def for_data(self, config: DataConfig) -> Self:
        """A copy with the roles of a data section.

        Raises:
            ConfigError: its rates or its frames are not those of encoder and codec.
        """
        encoder, codec = self.counter, self.samples_per_frame / self.sample_rate
        for key, value, name, own in (
            ("source_sample_rate", config.source_sample_rate, "encoder", encoder.sample_rate),
            ("target_sample_rate", config.target_sample_rate, "codec", self.sample_rate),
            ("frame_length", config.frame_length, "encoder", 1 / encoder.frame_rate),
            ("frame_length", config.frame_length, "codec", codec),
        ):
            if not math.isclose(value, own, rel_tol=1e-4):
                raise ConfigError(f"`data.{key}` must be the {name}'s {own:g}, but is {value:g}.")
        other = copy(self)
        other.frame_length = config.frame_length
        other.input_roles = tuple(config.input_roles)
        other.output_roles = tuple(config.output_roles)
        return other

    def load(self, example: Cut | Conversation) -> LoadedDialogue:
        """Read both channels of one cut and place the agent's text.

        Raises:
            DataError: naming the cut: it lacks `target_audio` or a role, its channels differ in
                length, its audio cannot be read or is too short, or a turn cannot be placed.
        """
        cut = as_cut(example, "a duplex model")
        source_turns = turns_of(cut, self.input_roles)
        target_turns = turns_of(cut, self.output_roles)
        user, agent = both_channels(cut, tolerance=self.frame_length)
        source = torch.from_numpy(load_audio(user, sample_rate=self.counter.sample_rate))
        target = torch.from_numpy(load_audio(agent, sample_rate=self.sample_rate))
        channel = place_turns(
            target_turns,
            num_frames=self._num_frames(cut, len(source), len(target)),
            frame_length=self.frame_length,
            encode=self.tokenizer.text_to_ids,
            ids=self.ids,
            name=f"{origin(cut)}, cut {cut.id}",
        )
        return LoadedDialogue(cut.id, source, target, channel, source_turns, target_turns)

    def measure_tokens(self, example: Cut | Conversation) -> int:
        """Frames of an example, without reading it."""
        return frame_at(as_cut(example, "a duplex model").duration, self.frame_length)

    def __call__(self, examples: Sequence[LoadedDialogue]) -> Batch:
        """Pad loaded dialogues into one batch."""
        rows = list(examples) or [self._nothing()]
        audio = {
            "source_audio": [row.source for row in rows],
            "target_audio": [row.target for row in rows],
        }
        tokens = [torch.tensor(row.channel.tokens) for row in rows]
        events = [torch.tensor(row.channel.events) for row in rows]
        batch: Batch = {
            "target_tokens": pad_sequence(tokens, batch_first=True, padding_value=self.ids.pad),
            "target_events": pad_sequence(events, batch_first=True, padding_value=NO_EVENT),
            "target_token_lens": _lens(tokens, examples),
            "ids": [row.id for row in examples],
            "source_texts": [joined(row.source_turns) for row in examples],
            "target_texts": [joined(row.target_turns) for row in examples],
            "source_turns": [row.source_turns for row in examples],
            "target_turns": [row.target_turns for row in examples],
        }
        for name, waveforms in audio.items():
            batch[name] = pad_sequence(waveforms, batch_first=True)
            batch[f"{name}_lens"] = _lens(waveforms, examples)
        if self.with_prompts:
            batch["prompt"] = {key: batch[key] for key in ("source_audio", "source_audio_lens")}
        return batch

    def _num_frames(self, cut: Cut, num_source: int, num_target: int) -> int:
        """Frames of a row: as many as perception, codec and text channel all have."""
        place = f"{origin(cut)}, cut {cut.id}"
        if num_source < self.counter.min_samples:
            raise DataError(
                f"{place}: must have at least {self.counter.min_samples} samples, "
                f"but has {num_source}."
            )
        count = min(
            frame_at(cut.duration, self.frame_length),
            self.counter(num_source),
            -(-num_target // self.samples_per_frame),
        )
        if count < 2:
            raise DataError(f"{place}: must have at least 2 frames, but has {count}.")
        return count

    def _nothing(self) -> LoadedDialogue:
        """A row that perception and codec can run on, and no part of which counts."""
        source = torch.zeros(self.counter.min_samples)
        target = torch.zeros(self.samples_per_frame)
        return LoadedDialogue("", source, target, TextChannel([self.ids.pad], [NO_EVENT]), [], [])


def both_channels(cut: Cut, *, tolerance: float) -> tuple[MonoCut, MonoCut]:
    """The same stretch of the user's and of the agent's recording, as plain cuts.

    Args:
        tolerance: seconds by which the recordings may differ in length.

    Raises:
        DataError: naming the cut: there is no such recording, it has several channels, or the two
            differ in length.
    """
    place = f"{origin(cut)}, cut {cut.id}"
    if not isinstance(cut, MonoCut) or not cut.has_recording:
        raise DataError(f"{place}: must be a single recording for a duplex model, but is not.")
    if not isinstance(agent := (cut.custom or {}).get(FIELD), Recording):
        raise DataError(f"{place}: must have the agent's recording in `{FIELD}`, but has none.")
    if abs(agent.duration - cut.recording.duration) > tolerance:
        raise DataError(
            f"{place}: the recordings of user and agent must be equally long, but have "
            f"{cut.recording.duration:.2f} s and {agent.duration:.2f} s."
        )
    # Without the agent's recording, which would be read along with the user's.
    others = {key: value for key, value in cut.custom.items() if key != FIELD}
    channels = (fastcopy(cut, custom=others), _stretch(agent, cut))
    for side, channel in zip(("user", "agent"), channels, strict=True):
        if (count := count_channels(channel)) != 1:
            raise DataError(
                f"{place}: the recording of the {side} must have one channel, but has {count}."
            )
    return channels


def _stretch(recording: Recording, cut: MonoCut) -> MonoCut:
    """The part of another recording that a cut is of its own."""
    whole = recording.to_cut()
    part = whole
    if cut.start > 0 or cut.duration < cut.recording.duration:
        duration = min(cut.duration, whole.duration - cut.start)
        part = whole.truncate(offset=cut.start, duration=duration)
    return fastcopy(part, id=cut.id)


def _lens(rows: Sequence[Tensor], examples: Sequence[Any]) -> Tensor:
    """Lengths (B,), 0 of a row that stands for no examples."""
    return torch.tensor([len(row) for row in rows] if examples else [0] * len(rows))
