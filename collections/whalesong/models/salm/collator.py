"""Conversations to batches: placeholders expanded, answers marked, audio padded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lhotse.cut import Cut
from torch import Tensor

from whalesong.core.errors import DataError
from whalesong.core.parts import Batch
from whalesong.data.audio import load_audio
from whalesong.data.conversation import Conversation, as_conversation
from whalesong.data.prompts import EncodedDialog, Message, PromptEncoder
from whalesong.modules.frames import FrameCounter


@dataclass(frozen=True)
class LoadedDialog:
    """A conversation whose audio is read and whose text is encoded."""

    id: str
    dialog: EncodedDialog
    prompt: EncodedDialog | None
    audios: list[Tensor]
    reference: str


class SALMCollator:
    """Collates conversations with any number of turns and audios, none included.

    A batch holds, with M padded to the longest row:
        audio (A, N) fp32, audio_lens (A,): all audios in reading order, A may be 0;
        input_ids (B, T), attention_mask (B, T), audio_mask (B, T), padded on the right;
        labels (B, T): the token that follows each position where it is supervised, else -100;
        ids, references: lists of str;
        prompt: with `with_prompts`, input_ids, attention_mask and audio_mask up to the last answer,
            padded on the left.

    Args:
        prompts: encoder of dialogs.
        counter: frames for a number of samples.
        pad_id: id written at padding; masks, not ids, say what is padding.
        max_length: the LLM's context length in tokens; None for no limit.
        with_prompts: also give what generation starts from.
    """

    def __init__(
        self,
        *,
        prompts: PromptEncoder,
        counter: FrameCounter,
        pad_id: int,
        max_length: int | None,
        with_prompts: bool,
    ) -> None:
        self.prompts = prompts
        self.counter = counter
        self.pad_id = pad_id
        self.max_length = max_length
        self.with_prompts = with_prompts

    def load(self, example: Conversation | Cut) -> LoadedDialog:
        """Read the audio of one conversation and encode its text.

        Raises:
            DataError: naming the example: unreadable audio, text with special tokens, a dialog
                without answer or one that is longer than the LLM's context.
        """
        conversation = example if isinstance(example, Conversation) else as_conversation(example)
        audios = [
            torch.from_numpy(load_audio(cut, sample_rate=self.counter.sample_rate))
            for cut in conversation.audios
        ]
        frames = [self.count_frames(len(audio), conversation.id) for audio in audios]
        messages = self.messages(conversation)
        if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
            raise DataError(
                f"'{conversation.id}' must end with an answer, but has none to supervise."
            )
        dialog = self.encode(messages, frames, conversation.id)
        prompt = None
        if self.with_prompts:
            if len(messages) == 1:
                raise DataError(
                    f"'{conversation.id}' must ask something to be generated from, "
                    "but holds an answer only."
                )
            prompt = self.encode(messages[:-1], frames, conversation.id)
        return LoadedDialog(conversation.id, dialog, prompt, audios, messages[-1]["content"])

    def messages(self, conversation: Conversation) -> list[Message]:
        """Turns as text with one tag for each audio; neighbouring turns of one role are joined."""
        messages: list[Message] = []
        for turn in conversation.turns:
            words = []
            for part in turn.parts:
                if isinstance(part, str):
                    self.prompts.check_text(part, example_id=conversation.id)
                words.append(part if isinstance(part, str) else self.prompts.audio_locator_tag)
            content = " ".join(words)
            if messages and messages[-1]["role"] == turn.role:
                messages[-1]["content"] += f" {content}"
            else:
                messages.append({"role": turn.role, "content": content})
        return messages

    def measure_tokens(self, example: Conversation | Cut) -> int:
        """Length of an example in LM steps, audio frames included, without reading its audio."""
        conversation = example if isinstance(example, Conversation) else as_conversation(example)
        samples = [round(cut.duration * self.counter.sample_rate) for cut in conversation.audios]
        frames = [self.counter(count) for count in samples]
        return len(
            self.prompts.encode(self.messages(conversation), frames, example_id=conversation.id)
        )

    def __call__(self, examples: Sequence[LoadedDialog]) -> Batch:
        """Pad loaded dialogs into one batch; no dialogs give one row of padding and no targets."""
        dialogs = [example.dialog for example in examples] or [
            EncodedDialog([self.pad_id], [False], [False])
        ]
        audios = [audio for example in examples for audio in example.audios]
        batch = {
            **self.pad_dialogs(dialogs, side="right"),
            "labels": pad([labels(dialog) for dialog in dialogs], -100, "right"),
            **pad_audio(audios),
            "ids": [example.id for example in examples],
            "references": [example.reference for example in examples],
        }
        if self.with_prompts:
            starts = [example.prompt for example in examples] or dialogs
            batch["prompt"] = self.pad_dialogs(starts, side="left")
        return batch

    def pad_dialogs(self, dialogs: Sequence[EncodedDialog], *, side: str) -> dict[str, Tensor]:
        """Stack dialogs: input_ids, attention_mask and audio_mask, each (B, T)."""
        return {
            "input_ids": pad([dialog.input_ids for dialog in dialogs], self.pad_id, side),
            "attention_mask": pad([[True] * len(dialog) for dialog in dialogs], False, side),
            "audio_mask": pad([dialog.audio_mask for dialog in dialogs], False, side),
        }

    def count_frames(self, num_samples: int, example_id: str) -> int:
        """Frames of one audio.

        Raises:
            DataError: it is too short for one frame.
        """
        if num_samples < self.counter.min_samples:
            raise DataError(
                f"the audio of '{example_id}' must have at least {self.counter.min_samples} "
                f"samples, but has {num_samples}."
            )
        return self.counter(num_samples)

    def encode(self, messages: list[Message], frames: list[int], example_id: str) -> EncodedDialog:
        """Encode a dialog that has to fit the context of the LLM.

        Raises:
            DataError: it is longer, or tags and audios do not pair up.
        """
        dialog = self.prompts.encode(messages, frames, example_id=example_id)
        if self.max_length is not None and len(dialog) > self.max_length:
            raise DataError(
                f"'{example_id}' must fit the LLM's context of {self.max_length} tokens, "
                f"but has {len(dialog)} with its {sum(frames)} audio frames."
            )
        return dialog


def labels(dialog: EncodedDialog) -> list[int]:
    """What each position has to predict: the next token if that is part of an answer, else -100."""
    following = zip(dialog.input_ids[1:], dialog.answer_mask[1:], strict=True)
    return [token if answer else -100 for token, answer in following] + [-100]


def pad(rows: Sequence[Sequence[Any]], value: Any, side: str) -> Tensor:
    """Stack rows of unequal length: -> (B, T)."""
    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(
        tensors, batch_first=True, padding_value=value, padding_side=side
    )


def pad_audio(audios: Sequence[Tensor]) -> dict[str, Tensor]:
    """Stack waveforms: -> audio (A, N), audio_lens (A,)."""
    if not audios:
        return {"audio": torch.zeros(0, 0), "audio_lens": torch.zeros(0, dtype=torch.long)}
    lens = torch.tensor([len(audio) for audio in audios])
    return {
        "audio": torch.nn.utils.rnn.pad_sequence(list(audios), batch_first=True),
        "audio_lens": lens,
    }
