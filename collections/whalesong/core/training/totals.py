"""Counts of one evaluation, to be summed over ranks and data sets before anything is divided."""

import copy
from collections.abc import Mapping
from typing import Any

from whalesong.core.parts import Metric

LOSS_COUNTS = 3


class EvaluationTotals:
    """Sums of loss, targets, correct targets and of every metric of one data set.

    Args:
        metrics: prototypes of metrics over generated rows; each set counts in copies of its own.
        loss_metrics: the same, over what the loss returns as "sums".
    """

    def __init__(
        self, metrics: Mapping[str, Metric], *, loss_metrics: Mapping[str, Metric] | None = None
    ) -> None:
        self._metrics = [copy.deepcopy(metric) for metric in metrics.values()]
        self._loss_metrics = [copy.deepcopy(metric) for metric in (loss_metrics or {}).values()]
        for metric in self._all_metrics():
            metric.reset()
        self._loss = [0.0] * LOSS_COUNTS

    def add_loss(self, outputs: Mapping[str, Any]) -> None:
        """Add a batch by what `LossFunction.loss_fn` returned."""
        num_targets = float(outputs.get("num_targets", 1.0))
        self._loss[0] += float(outputs["loss"]) * num_targets
        self._loss[1] += num_targets
        self._loss[2] += float(outputs.get("num_correct", 0.0))
        for metric in self._loss_metrics:
            metric.update([outputs["sums"]])

    def add_rows(self, rows: list[dict[str, Any]]) -> None:
        """Add generated rows to every metric over rows."""
        for metric in self._metrics:
            metric.update(rows)

    def counts(self) -> list[float]:
        """Everything counted, as one list that can be summed elementwise."""
        return self._loss + [count for metric in self._all_metrics() for count in metric.totals()]

    def compute(self, counts: list[float]) -> dict[str, float]:
        """`loss`, `acc` and the values of the metrics from summed counts."""
        loss, num_targets, num_correct = counts[:LOSS_COUNTS]
        values = {"loss": loss / max(num_targets, 1.0), "acc": num_correct / max(num_targets, 1.0)}
        begin = LOSS_COUNTS
        for metric in self._all_metrics():
            end = begin + len(metric.totals())
            values |= metric.compute(counts[begin:end])
            begin = end
        return values

    def _all_metrics(self) -> list[Metric]:
        return [*self._metrics, *self._loss_metrics]
