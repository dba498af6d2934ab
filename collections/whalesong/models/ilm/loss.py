"""The training loss of ILM: which tokens are missing where, and whether any is."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from whalesong.core.parts import Batch
from whalesong.models.ilm.model import IlmModel


class IlmLoss:
    """Cross-entropy of insertions, plus that of the stop head.

    Args:
        model: the network.
        stop_loss_weight: factor of the second term.
    """

    def __init__(self, *, model: IlmModel, stop_loss_weight: float = 1.0) -> None:
        self.model = model
        self.stop_loss_weight = stop_loss_weight

    def configure(self, pl_module: nn.Module) -> None:
        """Nothing to prepare."""

    def loss_fn(self, batch: Batch) -> dict[str, Any]:
        """Mean over examples, in fp32 and nats.

        Args:
            batch: from a collator of this family.

        Returns:
            "loss"; "num_targets", the number of examples; "parts", its two terms; in evaluation
            "num_correct", the examples with a right next move: to stop if nothing is missing, and
            else to insert a token that is missing.
        """
        mask, gap_mask = batch["attention_mask"], batch["gap_mask"]
        hidden = self.model.hidden_states(
            batch["input_ids"], attention_mask=mask, prompt_mask=batch["prompt_mask"]
        )
        logits = self.model.head(hidden[gap_mask]).float()
        insertion = insertion_losses(logits, gap_mask, batch["labels"], batch["gaps"])
        incomplete = (batch["labels"] >= 0).any(1).long()
        stop_logits = self.model.stop_logits(hidden, mask).float()
        stop = functional.cross_entropy(stop_logits, incomplete, reduction="none")
        num_targets = torch.tensor(len(insertion), device=insertion.device)
        parts = {
            "insertion_loss": insertion.sum() / num_targets.clamp(min=1),
            "stop_loss": stop.sum() / num_targets.clamp(min=1),
        }
        outputs: dict[str, Any] = {
            "loss": parts["insertion_loss"] + self.stop_loss_weight * parts["stop_loss"],
            "num_targets": num_targets,
            "parts": {name: value.detach() for name, value in parts.items()},
        }
        if not self.model.training:
            right = best_is_missing(logits, gap_mask, batch["labels"], batch["gaps"])
            right |= incomplete == 0
            outputs["num_correct"] = (right & (stop_logits.argmax(1) == incomplete)).sum()
        return outputs


def insertion_losses(logits: Tensor, gap_mask: Tensor, labels: Tensor, gaps: Tensor) -> Tensor:
    """Cross-entropy of the missing tokens of each row, (B,); zero where nothing is missing.

    Each missing token in its gap is an equal share of the target of a row, and all gaps of the row
    with all tokens share one softmax.

    Args:
        logits: (M, V), of the M gaps of all rows in reading order.
        gap_mask: (B, T), True where a gap is.
        labels: (B, N), the missing tokens; -100 is ignored.
        gaps: (B, N), the position that each of them comes after.
    """
    per_gap = logits.new_full(gap_mask.shape, -torch.inf)
    per_gap = per_gap.masked_scatter(gap_mask, logits.logsumexp(-1))
    missing = labels >= 0
    place = (gap_mask.flatten().cumsum(0) - 1).view_as(gap_mask).gather(1, gaps)
    scores = logits[place, labels.clamp(min=0)].masked_fill(~missing, 0.0)  # (B, N)
    num_missing = missing.sum(1)
    losses = per_gap.logsumexp(1) - scores.sum(1) / num_missing.clamp(min=1)
    return losses.masked_fill(num_missing == 0, 0.0)


def best_is_missing(logits: Tensor, gap_mask: Tensor, labels: Tensor, gaps: Tensor) -> Tensor:
    """Whether the most probable insertion of each row is one of its missing tokens, (B,).

    Args:
        logits, gap_mask, labels, gaps: as for `insertion_losses`.
    """
    values, tokens = logits.max(-1)
    per_gap = values.new_full(gap_mask.shape, -torch.inf).masked_scatter(gap_mask, values)
    gap = per_gap.argmax(1, keepdim=True)
    token = tokens.new_zeros(gap_mask.shape).masked_scatter(gap_mask, tokens).gather(1, gap)
    return ((gaps == gap) & (labels == token)).any(1)
