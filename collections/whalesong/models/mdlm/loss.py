"""The training loss of mdlm: a bound of the negative log-likelihood in continuous time."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from whalesong.core.parts import Batch
from whalesong.metrics.perplexity import Perplexity
from whalesong.models.mdlm.model import without_mask
from whalesong.models.mdlm.noise_schedule import likelihood_weight
from whalesong.textlm.tokenizers import require

IGNORED = -100


class MdlmLoss:
    """Cross-entropy of masked tokens, weighted by the noise of their row, over all targets.

    In the mean over times it is an upper bound of the negative log-likelihood in nats a token, ends
    and padding included. Tokens that are not masked are known: they add nothing but are counted.

    Args:
        model: an `MdlmModel`.
        tokenizer: names the mask.

    Attributes:
        loss_metrics: the perplexity, over the "sums" of the loss.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.mask_token_id = require(tokenizer, "mask_token", for_what="mdlm")
        self.loss_metrics = {"perplexity": Perplexity()}

    def configure(self, pl_module: nn.Module) -> None:
        """Nothing to prepare."""

    def loss_fn(self, batch: Batch) -> dict[str, Any]:
        """Loss of a batch, in fp32.

        Args:
            batch: see `MdlmSeq2SeqCollator`.

        Returns:
            "loss", in nats a target; "num_targets"; "num_correct", targets that are known or would
            be guessed right; "parts": accuracy of masked tokens; "sums" for `loss_metrics`.
        """
        labels = batch["labels"]
        is_target = labels != IGNORED
        masked = is_target & (batch["input_ids"] == self.mask_token_id)
        logits = self.model(
            batch["input_ids"],
            batch["attention_mask"],
            prompt_mask=batch["prompt_mask"],
            total_noise=batch["total_noise"],
            at=masked,
        )
        logits, wanted = without_mask(logits, self.mask_token_id), labels[masked]
        weight = likelihood_weight(batch["noise_rate"], batch["total_noise"])
        weights = weight[:, None].expand(labels.shape)[masked]
        bound = (functional.cross_entropy(logits, wanted, reduction="none") * weights).sum()
        num_targets = is_target.sum()
        num_right = _num_right(logits, wanted)
        return {
            "loss": bound / num_targets.clamp(min=1),
            "num_targets": num_targets,
            "num_correct": num_targets - len(wanted) + num_right,
            "parts": {"masked_accuracy": num_right / max(len(wanted), 1)},
            "sums": {"nll": bound.detach(), "num_tokens": num_targets},
        }


@torch.no_grad()
def _num_right(logits: Tensor, wanted: Tensor) -> Tensor:
    return (logits.argmax(-1) == wanted).sum()
