"""The loop over the frames of whole recordings."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from whalesong.core.parallel import most_of_all_ranks
from whalesong.duplex.config import DuplexGeneration
from whalesong.duplex.model import DuplexModel


@dataclass
class Conversation:
    """What a model said to B recordings."""

    text: Tensor
    """(B, F): the token at index t belongs to frame t + 1; the padding token behind a row."""
    codes: Tensor
    """(B, K, F), with control codes; silence behind a row."""
    lens: Tensor
    """(B,): frames of each row."""


@torch.no_grad()
def converse(
    model: DuplexModel,
    audio: Tensor,
    audio_lens: Tensor,
    generation: DuplexGeneration,
    *,
    on_frame: Callable[[int, int], None] | None = None,
) -> Conversation:
    """Answer whole recordings, frame by frame; rows that are over take no more time.

    Args:
        model: in evaluation mode.
        audio: (B, N) at the rate of `model.counter`.
        audio_lens: (B,).
        generation: how text and codes are drawn.
        on_frame: called with the frames that are done and their total.

    Raises:
        ValueError: a recording is longer than the LLM's context, and there is no window.
    """
    source, lens = model.encode_source(audio, audio_lens)
    total = int(lens.max())
    check_length(model, total)
    order = lens.argsort(descending=True, stable=True)
    counts = lens[order].tolist()
    text = torch.full((len(lens), total), model.ids.pad, device=source.device)
    codes = model.silence_codes[None, :, None].repeat(len(lens), 1, total)
    most = most_of_all_ranks(model, total)
    state = model.start(len(lens), generation, num_frames=most)
    state.draws.select(order)  # nothing else differs between rows before the first frame
    rows = order
    for frame in range(total):
        active = sum(count > frame for count in counts)
        if active < len(rows):
            rows, counts = rows[:active], counts[:active]
            state.select(torch.arange(active, device=source.device))
        text[rows, frame], codes[rows, :, frame] = model.step(source[rows, frame], state)
        if on_frame is not None:
            on_frame(frame + 1, total)
    for _ in range(total, most):  # so that ranks with longer recordings do not wait for ever
        model.step(source.new_zeros(len(rows), source.shape[2]), state)
    return Conversation(text, codes, lens)


def check_length(model: DuplexModel, num_frames: int) -> None:
    """Refuse what the LLM has no positions for.

    Raises:
        ValueError: with both numbers.
    """
    limit = model.max_frames
    if limit is not None and num_frames > limit:
        raise ValueError(
            f"a conversation must have at most {limit} frames "
            f"({limit * model.frame_length:.0f} s), for which the LLM has positions, unless "
            f"`attention_window` is set; but it has {num_frames}."
        )
