"""The training loss of the codec language model."""

import torch
from torch import Tensor, nn

from whalesong.core.parts import Batch
from whalesong.models.codec_lm.wrapper import AudioLanguageModelWrapper


class CodecLMLoss:
    """Cross-entropy of the codes, every codebook with the same weight."""

    def __init__(self, *, model: AudioLanguageModelWrapper) -> None:
        self.model = model

    def configure(self, pl_module: nn.Module) -> None:
        """Nothing to prepare."""

    def loss_fn(self, batch: Batch) -> dict[str, Tensor]:
        """Mean cross-entropy over all codes of the batch, in fp32; 0 if there are none.

        Args:
            batch: `codes` (B, K, F) and `codes_lens` (B,), or `audio` (B, C, N) and `audio_lens`,
                which are tokenized here; `metadata`: the values of the conditions of each row.

        Returns:
            "loss"; "num_targets", the number of codes; "sums": negative log-likelihood and number
            of codes of each codebook, (K,) each; in evaluation mode "num_correct" as well.
        """
        logits, targets = self.model.score(batch)
        logits = logits.float()
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="none"
        ).view_as(targets)
        num_targets = torch.tensor(targets.numel(), device=losses.device)
        outputs = {
            "loss": losses.sum() / num_targets.clamp_min(1),
            "num_targets": num_targets,
            "sums": self._sums(losses.detach()),
        }
        if not self.model.training:
            outputs["num_correct"] = (logits.argmax(dim=-1) == targets).sum()
        return outputs

    def _sums(self, losses: Tensor) -> dict[str, Tensor]:
        count = torch.full((len(losses),), float(losses.shape[1]), device=losses.device)
        return {"nll": losses.sum(dim=1), "codes": count}
