"""The training loss of mlm."""

import torch
from torch import Tensor, nn

from whalesong.core.parts import Batch
from whalesong.models.mlm.model import MlmModel
from whalesong.textlm.cross_entropy import target_losses


class MlmLoss:
    """Cross-entropy of the masked tokens.

    Args:
        model: the network.
        per_example: rows with few masks weigh as much as those with many: the sum over the n masked
            tokens of a row is divided by n + 1, and the mean goes over rows that have any.
    """

    def __init__(self, *, model: MlmModel, per_example: bool = False) -> None:
        self.model, self.per_example = model, per_example

    def configure(self, pl_module: nn.Module) -> None:
        """Nothing to prepare."""

    def loss_fn(self, batch: Batch) -> dict[str, Tensor]:
        """Mean in fp32 over `labels` (B, T) that are not -100, or over rows; 0 if there are none.

        With a mean over tokens also the number of those that got the largest logit.
        """
        losses, correct = target_losses(self.model, batch)
        if self.per_example:
            return _mean_over_rows(losses, (batch["labels"] >= 0).sum(1))
        return {
            "loss": losses.sum() / max(len(losses), 1),
            "num_targets": torch.tensor(len(losses), device=losses.device),
            "num_correct": correct.sum(),
        }


def _mean_over_rows(losses: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """From losses (M,), row by row, and how many of them each row has, (B,)."""
    weights = (1 / (counts + 1)).repeat_interleave(counts)
    num_rows = (counts > 0).sum()
    return {"loss": (losses * weights).sum() / num_rows.clamp(min=1), "num_targets": num_rows}
