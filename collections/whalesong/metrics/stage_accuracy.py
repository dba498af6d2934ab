"""Loss and accuracy of codes by quantizer, for models whose first ones are autoregressive."""

from typing import Any

import torch
from torch import Tensor

_SUMS = ("nll", "top1", "top10", "codes")
_ALIASES = {"ar_top10": "ArTop10Accuracy", "nar_top10": "NarTop10Accuracy"}


class StageAccuracy:
    """Accuracy of codes over batches; a `core.parts.Metric` over the "sums" of a loss.

    Args:
        num_quantizers: K.
        ar_quantizers: the first ones, which the autoregressive stage predicts.
    """

    def __init__(self, num_quantizers: int, ar_quantizers: int = 1) -> None:
        self.num_quantizers = num_quantizers
        self.ar_quantizers = ar_quantizers
        self.reset()

    def update(self, rows: list[dict[str, Any]]) -> None:
        """Add the sums of batches: "nll" in nats, "top1" and "top10" hits, "codes"; (K,) each.

        Raises:
            ValueError: they are not of K quantizers.
        """
        for row in rows:
            for total, name in zip(self._sums, _SUMS, strict=True):
                values = row[name].detach().cpu().double()
                if values.shape != total.shape:
                    raise ValueError(
                        f"`{name}` must have the shape ({self.num_quantizers},), one value for "
                        f"each quantizer, but has {tuple(values.shape)} instead."
                    )
                total += values

    def totals(self) -> list[float]:
        """The sums of each kind, quantizer after quantizer."""
        return self._sums.flatten().tolist()

    def compute(self, totals: list[float]) -> dict[str, float]:
        """Means over codes; a stage or a quantizer of which no code was counted has no value.

        Returns:
            `ar_loss` and `nar_loss` in nats, `ar_top1`, `ar_top10`, `nar_top1`, `nar_top10`, of
            each quantizer `nll_q0`, `ar_top1_q0`, `ar_top10_q0`, ..., and the names
            `ArTop10Accuracy` and `NarTop10Accuracy` for `ar_top10` and `nar_top10`.
        """
        sums = torch.tensor(totals, dtype=torch.float64).view(len(_SUMS), self.num_quantizers)
        values: dict[str, float] = {}
        for stage, quantizers in self._stages().items():
            of_stage = sums[:, quantizers.start : quantizers.stop]
            means = _means(of_stage.sum(dim=1))
            values |= {f"{stage}_{name}": mean for name, mean in means.items()}
            for index, column in zip(quantizers, of_stage.unbind(1), strict=True):
                means = _means(column)
                if "loss" in means:
                    values[f"nll_q{index}"] = means.pop("loss")
                values |= {f"{stage}_{name}_q{index}": mean for name, mean in means.items()}
        return values | {new: values[name] for name, new in _ALIASES.items() if name in values}

    def reset(self) -> None:
        """Forget all counts."""
        self._sums = torch.zeros(len(_SUMS), self.num_quantizers, dtype=torch.float64)

    def _stages(self) -> dict[str, range]:
        """The quantizers of both stages."""
        first = self.ar_quantizers
        return {"ar": range(first), "nar": range(first, self.num_quantizers)}


def _means(sums: Tensor) -> dict[str, float]:
    """Loss and accuracy of a code from the four sums; nothing where there are no codes."""
    nll, top1, top10, codes = sums.tolist()
    if not codes:
        return {}
    return {"loss": nll / codes, "top1": top1 / codes, "top10": top10 / codes}


def top_counts(logits: Tensor, labels: Tensor, k: int = 10) -> tuple[Tensor, Tensor]:
    """How often the label has the highest logit, and one of the k highest.

    Args:
        logits: (M, V), V may be below k.
        labels: (M,).

    Returns:
        Two counts without dimensions.
    """
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    hits = best == labels[:, None]  # (M, k)
    return hits[:, 0].sum(), hits.sum()
