"""What a user asks of SALM: dialogs with audio files or waveforms, checked before it runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lhotse import Recording
from torch import Tensor

from whalesong.core.errors import DataError
from whalesong.data.audio import load_audio
from whalesong.data.prompts import EncodedDialog, Message
from whalesong.models.salm.collator import SALMCollator

Prompt = Sequence[dict[str, Any]]


def read_requests(
    prompts: Sequence[Prompt] | Tensor,
    collator: SALMCollator,
    *,
    audios: Tensor | None,
    audio_lens: Tensor | None,
) -> tuple[list[EncodedDialog], list[Tensor]]:
    """Encode dialogs and read their audio.

    Args:
        prompts: dialogs, or token ids (B, T) that hold the id of the audio tag.
        collator: the validation collator of the model.
        audios: waveforms (A, N) in reading order, when the prompts hold none.
        audio_lens: (A,).

    Returns:
        The dialogs, and all waveforms in reading order.

    Raises:
        DataError: an audio cannot be read, is too short, or has no tag, or a tag has no audio.
    """
    if audios is not None and audio_lens is None:
        audio_lens = torch.full((len(audios),), audios.shape[1])
    given = (
        [] if audios is None else [a[:n] for a, n in zip(audios, audio_lens.tolist(), strict=True)]
    )
    dialogs, waveforms = [], []
    for index, prompt in enumerate(prompts):
        example_id = f"prompt {index}"
        tags = _count_tags(prompt, collator)
        own = _read_all(prompt, collator.counter.sample_rate)
        if own and given:
            raise DataError(
                f"{example_id} must not name audio files when `audios` are given as well."
            )
        if not own:
            own, given = given[:tags], given[tags:]
        frames = [collator.count_frames(len(audio), example_id) for audio in own]
        dialogs.append(_encode(prompt, frames, collator, example_id))
        waveforms += own
    if given:
        raise DataError(f"`audios` must have one tag each, but the last {len(given)} have none.")
    return dialogs, waveforms


def _encode(
    prompt: Prompt | Tensor, frames: list[int], collator: SALMCollator, example_id: str
) -> EncodedDialog:
    if isinstance(prompt, Tensor):
        return collator.prompts.expand(prompt.tolist(), frames, example_id=example_id)
    messages: list[Message] = [{"role": turn["role"], "content": _content(turn)} for turn in prompt]
    return collator.encode(messages, frames, example_id)


def _count_tags(prompt: Prompt | Tensor, collator: SALMCollator) -> int:
    if isinstance(prompt, Tensor):
        return prompt.tolist().count(collator.prompts.audio_locator_id)
    return sum(_content(turn).count(collator.prompts.audio_locator_tag) for turn in prompt)


def _content(turn: dict[str, Any]) -> str:
    if "content" not in turn or "role" not in turn:
        raise DataError(f"a turn must have 'role' and 'content', but has {sorted(turn)}.")
    return turn["content"]


def _read_all(prompt: Prompt | Tensor, sample_rate: int) -> list[Tensor]:
    if isinstance(prompt, Tensor):
        return []
    return [_read(item, sample_rate) for turn in prompt for item in _as_list(turn.get("audio", []))]


def _as_list(audio: Any) -> list[Any]:
    return list(audio) if isinstance(audio, list | tuple) else [audio]


def _read(item: Any, sample_rate: int) -> Tensor:
    if isinstance(item, str | Path):
        if not Path(item).is_file():
            raise DataError(f"the audio file '{item}' does not exist.")
        cut = Recording.from_file(item).to_cut()
        return torch.from_numpy(load_audio(cut, sample_rate=sample_rate))
    return torch.as_tensor(item, dtype=torch.float32)
