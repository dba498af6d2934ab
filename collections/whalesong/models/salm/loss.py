"""The training loss of SALM."""

import torch
from torch import Tensor, nn

from whalesong.core.parts import Batch
from whalesong.models.salm.model import SALMModel

MODEL_INPUTS = ("input_ids", "attention_mask", "audio_mask", "labels", "audio", "audio_lens")


class SALMLoss:
    """Cross-entropy of the answer tokens."""

    def __init__(self, *, model: SALMModel) -> None:
        self.model = model

    def configure(self, pl_module: nn.Module) -> None:
        """Nothing to prepare."""

    def loss_fn(self, batch: Batch) -> dict[str, Tensor]:
        """Mean cross-entropy over the targets of the batch, in fp32; 0 if there are none.

        In evaluation mode also the number of targets that got the largest logit.
        """
        output = self.model(**{key: batch[key] for key in MODEL_INPUTS})
        num_targets = torch.tensor(len(output.targets), device=output.targets.device)
        total = nn.functional.cross_entropy(output.logits.float(), output.targets, reduction="sum")
        outputs = {"loss": total / num_targets.clamp_min(1), "num_targets": num_targets}
        if not self.model.training:  # over a large vocabulary it costs 5 % of a training step
            best = output.logits.detach().argmax(dim=-1)
            outputs["num_correct"] = (best == output.targets).sum()
        return outputs
