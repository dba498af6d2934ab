"""From a batch to the steps of a duplex model: inputs, and what they have to predict."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from whalesong.core.parts import Batch
from whalesong.data.text_channel import NO_EVENT, TURN_BEGINS, TURN_ENDS
from whalesong.modules.frames import mask_from_lens

if TYPE_CHECKING:
    from whalesong.duplex.model import DuplexModel


@dataclass
class DuplexSteps:
    """Inputs and targets of T steps, padded on the right."""

    source: Tensor
    """(B, T, D): frames of the user."""
    text: Tensor
    """(B, T): text tokens of the same frames."""
    codes: Tensor
    """(B, K, T): codes of the frames before."""
    mask: Tensor
    """(B, T), True = a real step."""
    text_labels: Tensor
    """(B, T): text tokens of the next frames."""
    code_labels: Tensor
    """(B, K, T): codes of the same frames."""


def prepare_steps(model: "DuplexModel", batch: Batch) -> DuplexSteps:
    """From a batch of `DuplexCollator` to the steps of a model.

    A row has as many frames as the shortest of the user's, the agent's and the text channel.
    """
    source, source_lens = model.encode_source(batch["source_audio"], batch["source_audio_lens"])
    codes, code_lens = model.encode_target(batch["target_audio"], batch["target_audio_lens"])
    lens = torch.minimum(torch.minimum(source_lens, code_lens), batch["target_token_lens"])
    count = max(int(lens.max()), 2)  # a batch without steps runs, too: other ranks wait for it
    text = _fit(batch["target_tokens"], count, model.ids.pad)
    events = _fit(batch["target_events"], count, NO_EVENT)[:, None]
    codes = _fit(codes, count, 0)
    codes = codes.masked_fill(events == TURN_BEGINS, model.speech_bos_id)
    codes = codes.masked_fill(events == TURN_ENDS, model.speech_eos_id)
    short = max(count - source.shape[1], 0)
    before = nn.functional.pad(codes[:, :, :-2], (1, 0), value=model.speech_delay_id)
    return DuplexSteps(
        source=nn.functional.pad(source, (0, 0, 0, short))[:, : count - 1],
        text=text[:, :-1],
        codes=before,
        mask=mask_from_lens(lens - 1, count - 1),
        text_labels=text[:, 1:],
        code_labels=codes[:, :, :-1],
    )


def _fit(values: Tensor, length: int, fill: int) -> Tensor:
    """Cut or pad the last dimension."""
    short = max(length - values.shape[-1], 0)
    return nn.functional.pad(values, (0, short), value=fill)[..., :length]
