"""The training loss of AudioLM: half of it for each half of the model."""

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from whalesong.core.parts import Batch
from whalesong.core.seeding import mix
from whalesong.metrics.stage_accuracy import top_counts
from whalesong.models.audiolm.ar import Score
from whalesong.models.audiolm.config import NARStage
from whalesong.models.audiolm.wrapper import AudioLMWrapper


class StageDraws:
    """Draws the stages to learn in a step: the same on all ranks, and again after a restart.

    Args:
        stages: of the second half.
        kind: one stage for all rows of a batch, one for each row, or all stages.

    Attributes:
        seed: of all draws.
        count: steps so far; what is drawn changes with it alone.
    """

    def __init__(self, stages: range, kind: NARStage) -> None:
        self.stages, self.kind = stages, kind
        self.seed = self.count = 0

    def draw(self, ids: list[str], device: torch.device) -> list[int | Tensor]:
        """The stages of a batch; what a row draws depends on its id, not on other rows."""
        if self.kind == "all" or not self.stages:
            return list(self.stages)
        key = mix(self.seed, self.count)
        if self.kind == "batch":
            return [self.stages[key % len(self.stages)]]
        drawn = [mix(key, zlib.crc32(row.encode())) % len(self.stages) for row in ids or [""]]
        return [self.stages.start + torch.tensor(drawn, device=device)]

    def advance(self) -> None:
        """Go to the next step."""
        self.count += 1

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"seed": self.seed, "count": self.count}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a checkpoint."""
        self.seed, self.count = state["seed"], state["count"]


class AudioLMLoss:
    """Cross-entropy of the codes: (AR + NAR) / 2, or that of the one half that is trained.

    Both are means over codes of the frames that count. The end of a recording adds its own
    cross-entropy to the frame before it, so that both halves count the same frames, and sums over
    ranks and accumulation steps are exact.

    Args:
        model: all parts of the model.
        nar_stage: see `StageDraws`.
        train_stage: 0 both halves, 1 the first, 2 the second.
    """

    def __init__(self, *, model: AudioLMWrapper, nar_stage: NARStage, train_stage: int) -> None:
        self.model = model
        self.ar = train_stage in (0, 1)
        nar = model.lm.nar if train_stage in (0, 2) else None
        self.stages = range(0) if nar is None else nar.stages
        self.draws = StageDraws(self.stages, nar_stage)

    def configure(self, pl_module: nn.Module) -> None:
        """Take the seed of the run, unless the draws go on from a checkpoint."""
        if not self.draws.count:
            self.draws.seed = pl_module.seed

    def loss_fn(self, batch: Batch) -> dict[str, Any]:
        """Loss over drawn stages in training, over all of them in evaluation, in fp32.

        Args:
            batch: see `AudioLMCollator`.

        Returns:
            "loss"; "num_targets", the number of frames that count; "parts": the losses of the
            halves; in evaluation "num_correct", codes over quantizers, and "sums" for
            `StageAccuracy`.
        """
        training = self.model.training
        stages = list(self.stages)
        if training:
            stages = self.draws.draw(batch["ids"], self.model.device)
        num_frames, scores = self.model.score(batch, ar=self.ar, stages=stages)
        losses = [_cross_entropies(score) for score in scores]
        frames = max(num_frames, 1)
        parts: dict[str, Tensor] = {}
        if self.ar:
            parts["ar_loss"] = losses[0].sum() / (frames * self.model.lm.ar_quantizers)
        if stages:
            nar = losses[1:] if self.ar else losses
            parts["nar_loss"] = sum(loss.sum() for loss in nar) / (frames * len(nar))
        loss = sum(parts.values()) / len(parts)
        outputs: dict[str, Any] = {
            "loss": loss,
            "num_targets": torch.tensor(num_frames, device=loss.device),
            "parts": {name: value.detach() for name, value in parts.items()},
        }
        if not training:
            sums = self._sums(scores, losses)
            outputs |= {"sums": sums, "num_correct": sums["top1"].sum() / len(sums["top1"])}
        return outputs

    def _sums(self, scores: list[Score], losses: list[Tensor]) -> dict[str, Tensor]:
        """Counts of the codes of each quantizer, (K,); ends of recordings are no codes."""
        lm = self.model.lm
        names = ("nll", "top1", "top10", "codes")
        sums = {name: torch.zeros(lm.num_quantizers, device=self.model.device) for name in names}
        for score, loss in zip(scores, losses, strict=True):
            for quantizer in score.quantizers.unique().tolist():
                size = lm.codebook_size
                of_it = (score.quantizers == quantizer) & (score.labels < size)
                labels = score.labels[of_it]
                top1, top10 = top_counts(score.logits[of_it].float(), labels)
                sums["nll"][quantizer] += loss.detach()[of_it].sum()
                sums["top1"][quantizer] += top1
                sums["top10"][quantizer] += top10
                sums["codes"][quantizer] += len(labels)
        return sums


def _cross_entropies(score: Score) -> Tensor:
    """In nats, (M,)."""
    return nn.functional.cross_entropy(score.logits.float(), score.labels, reduction="none")
