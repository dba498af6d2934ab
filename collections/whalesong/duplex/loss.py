"""The training loss of the duplex families."""

from typing import Any

import torch
from torch import Tensor, nn

from whalesong.core.parts import Batch
from whalesong.data.text_channel import TextIds
from whalesong.duplex.config import DuplexConfig, TokenLossWeights
from whalesong.duplex.model import DuplexModel, DuplexOutput


class DuplexLoss:
    """Weighted sum of the cross-entropies of both channels, over real frames only.

    Each channel is a mean over frames, and over codebooks; weights of tokens and codebooks
    multiply what they stand for and leave the divisors as they are.
    """

    def __init__(self, *, model: DuplexModel, config: DuplexConfig) -> None:
        self.model = model
        self.text_weight = config.text_loss_weight
        self.audio_weight = config.audio_loss_weight
        self.token_weights = config.token_loss_weights
        weights = config.codebook_loss_weights or [1.0] * model.num_codebooks
        self.codebook_weights = torch.tensor(weights, dtype=torch.float32)

    def configure(self, pl_module: nn.Module) -> None:
        """Take the weights to the device."""
        self.codebook_weights = self.codebook_weights.to(pl_module.device)

    def loss_fn(self, batch: Batch) -> dict[str, Any]:
        """Loss in fp32, 0 if there is no frame.

        Args:
            batch: see `DuplexCollator`.

        Returns:
            "loss"; "num_targets", the number of frames; "parts": the losses of the channels and
            the share of padding; in evaluation "num_correct" text tokens and "sums" for
            `ChannelAccuracy`.
        """
        output = self.model(batch)
        num_frames = torch.tensor(len(output.text_labels), device=output.text_labels.device)
        text = nn.functional.cross_entropy(
            output.text_logits.float(), output.text_labels, reduction="none"
        )
        audio = nn.functional.cross_entropy(  # (M, K)
            output.audio_logits.float().transpose(1, 2), output.code_labels, reduction="none"
        )
        weights = _weights(output.text_labels, self.token_weights, self.model.ids)
        frames = num_frames.clamp_min(1)
        text_loss = (text * weights).sum() / frames
        codebook_weights = self.codebook_weights.to(audio.device)
        audio_loss = (audio * codebook_weights).sum() / (frames * audio.shape[1])
        outputs: dict[str, Any] = {
            "loss": self.text_weight * text_loss + self.audio_weight * audio_loss,
            "num_targets": num_frames,
            "parts": {
                "text_loss": text_loss.detach(),
                "audio_loss": audio_loss.detach(),
                "padding_ratio": 1 - output.mask.float().mean(),
            },
        }
        if not self.model.training:
            sums = _sums(output, text, audio, pad_id=self.model.ids.pad)
            outputs |= {"sums": sums, "num_correct": sums["text_correct"]}
        return outputs


def _weights(labels: Tensor, weights: TokenLossWeights, ids: TextIds) -> Tensor:
    """Weight of each token (M,); where BOS is EOS, it has the greater one."""
    result = torch.ones(labels.shape, dtype=torch.float32, device=labels.device)
    result[labels == ids.pad] = weights.pad
    if ids.bos == ids.eos:
        result[labels == ids.bos] = max(weights.bos, weights.eos)
        return result
    result[labels == ids.bos] = weights.bos
    result[labels == ids.eos] = weights.eos
    return result


def _sums(output: DuplexOutput, text: Tensor, audio: Tensor, *, pad_id: int) -> dict[str, Tensor]:
    """What `ChannelAccuracy` counts."""
    hits = output.text_logits.argmax(dim=-1) == output.text_labels
    is_spoken = output.text_labels != pad_id
    code_hits = output.audio_logits.argmax(dim=-1) == output.code_labels
    return {
        "frames": torch.tensor(len(hits)),
        "text_nll": text.sum(),
        "text_correct": hits.sum(),
        "spoken": is_spoken.sum(),
        "spoken_correct": (hits & is_spoken).sum(),
        "audio_nll": audio.sum(dim=0),
        "audio_correct": code_hits.sum(dim=0),
    }
