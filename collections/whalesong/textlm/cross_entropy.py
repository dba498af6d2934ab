"""Cross-entropy of the tokens that a batch asks for."""

from torch import Tensor, nn

from whalesong.core.parts import Batch


def target_losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Compare what a model says at the labels with them; no other logits are computed.

    Args:
        model: takes `at`, (B, T), True at the M positions whose logits (M, V) are wanted.
        batch: `input_ids`, `attention_mask`, `prompt_mask` and `labels`, all (B, T); labels stand
            where their logits do, -100 elsewhere.

    Returns:
        losses (M,), in nats and fp32, row by row; and where the largest logit was right, (M,).
    """
    at = batch["labels"] >= 0
    labels = batch["labels"][at]
    logits = model(
        batch["input_ids"], batch["attention_mask"], prompt_mask=batch["prompt_mask"], at=at
    )
    losses = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    return losses, logits.detach().argmax(-1) == labels
