"""The training loss of arlm."""

import torch
from torch import Tensor, nn

from whalesong.core.parts import Batch
from whalesong.models.arlm.model import ArlmModel
from whalesong.textlm.cross_entropy import target_losses


class ArlmLoss:
    """Cross-entropy of the next token, a mean over the targets."""

    def __init__(self, *, model: ArlmModel) -> None:
        self.model = model

    def configure(self, pl_module: nn.Module) -> None:
        """Nothing to prepare."""

    def loss_fn(self, batch: Batch) -> dict[str, Tensor]:
        """Mean in fp32 over `labels` (B, T) that are not -100; 0 if there are none."""
        losses, correct = target_losses(self.model, batch)
        return {
            "loss": losses.sum() / max(len(losses), 1),
            "num_targets": torch.tensor(len(losses), device=losses.device),
            "num_correct": correct.sum(),
        }
