"""The training loss of mdlm: a bound of the negative log-likelihood in continuous time."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from whalesong.core.errors import ConfigError
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
        weigh_by_count: instead of the weight at the time of a row, 1 / t, take its mean over all
            times at which as many slots might be masked: (L + 1) / n for n of L slots, if times are
            uniform. The mean over batches is the same, their noise is far less. Only for models
            that are not told the noise, and `LogLinearNoise`.

    Attributes:
        loss_metrics: the perplexity, over the "sums" of the loss.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        weigh_by_count: bool = False,
    ) -> None:
        if weigh_by_count and model.time_conditioning:
            raise ConfigError(
                "`model_type.loss.weigh_by_count` must be false with `model.time_conditioning`, "
                "for which the time counts."
            )
        self.model, self.tokenizer, self.weigh_by_count = model, tokenizer, weigh_by_count
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
        weights = self._row_weights(batch, is_target, masked)[:, None].expand(labels.shape)[masked]
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

    def _row_weights(self, batch: Batch, is_target: Tensor, masked: Tensor) -> Tensor:
        """Weight of a masked token of each row, (B,)."""
        if self.weigh_by_count:
            return (is_target.sum(1) + 1) / masked.sum(1).clamp(min=1)
        return likelihood_weight(batch["noise_rate"], batch["total_noise"])


@torch.no_grad()
def _num_right(logits: Tensor, wanted: Tensor) -> Tensor:
    return (logits.argmax(-1) == wanted).sum()
