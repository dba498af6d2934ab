"""Laws of the parts as they stand: what they have, and what the collators give."""

from typing import Any

import torch

from whalesong.core.contract import broken, checked_loss, method
from whalesong.core.parts import Batch
from whalesong.testing.batches import differing, takes
from whalesong.testing.generation_laws import generated, num_generated
from whalesong.testing.subject import Subject

_METHODS = {
    "loss": ("loss_fn",),
    "predictor": ("predict", "to_dict"),
    "train_collator": ("load", "__call__"),
    "validation_collator": ("load", "__call__"),
}
_OF_METRICS = ("update", "totals", "compute", "reset")
_TRUTH = ("target_ids", "example_ids")


def parts_are_complete(subject: Subject) -> str | None:
    """Every part has the methods of its protocol in `whalesong.core.parts`."""
    parts = subject.model.parts
    for name, names in _METHODS.items():
        for each in names:
            method(getattr(parts, name), each)
    for metric in [*parts.metrics.values(), *parts.loss_metrics.values()]:
        for each in _OF_METRICS:
            method(metric, each)
    if subject.is_text:
        _check_forward(parts.model)
    if hasattr(parts.loss, "configure"):
        parts.loss.configure(subject.model)
    return None


def empty_batch_has_no_targets(subject: Subject) -> str | None:
    """Without examples there is a batch, whose loss is finite and has no targets."""
    loss = subject.model.parts.loss
    outputs = checked_loss(loss, subject.batch([]))
    if not bool(outputs["loss"].isfinite()):
        rule = f"must give a finite loss without examples, but gave {outputs['loss'].item()}"
        raise broken(loss, "loss_fn", rule)
    if "num_targets" not in outputs:
        return "the loss gives no `num_targets`"
    if int(outputs["num_targets"]):
        rule = f"must count no targets without examples, but counts {int(outputs['num_targets'])}"
        raise broken(loss, "loss_fn", rule)
    return None


def prompts_hold_no_truth(subject: Subject) -> str | None:
    """What the predictor gets is the same whatever the true answer is, and without one."""
    if not subject.is_text or subject.collator.predict is None:
        return "no collator of its own makes what is generated from"
    examples = subject.loaded()
    with_truth = _predicted_from(subject, examples)
    if with_truth is None or not all("input_ids" in example for example in examples):
        return "the examples have no `input_ids`"
    reversed_truth = [{**example, "input_ids": _other(example, subject)} for example in examples]
    without = [{k: v for k, v in e.items() if k != "input_ids"} for e in examples]
    for changed in (reversed_truth, without):
        keys = differing(with_truth, _predicted_from(subject, changed))
        if leaks := [key for key in keys if key not in _TRUTH]:
            rule = f"must not let `{leaks[0]}` depend on the target of an example, but does"
            raise broken(subject.collator.predict, "__call__", rule)
    return None


def metrics_add_up(subject: Subject) -> str | None:
    """Counts of two halves sum to those of the whole, and `reset` forgets them."""
    metrics = subject.model.parts.metrics
    if not metrics or (rows := generated(subject)) is None:
        return "there are no metrics over generated rows"
    middle = num_generated(subject) // 2
    for metric in metrics.values():
        parts = [_counts(metric, part) for part in (rows[:middle], rows[middle:], rows)]
        if any(abs(a + b - c) > 1e-6 for a, b, c in zip(*parts, strict=True)):
            raise broken(metric, "totals", "must be sums over rows, but are not")
        if any(_counts(metric, [])):
            raise broken(metric, "reset", "must forget all counts, but does not")
        _check_values(metric, metric.compute(parts[-1]))
    return None


def _check_forward(model: Any) -> None:
    forward = method(model, "forward")
    for name in ("input_ids", "attention_mask"):
        if not takes(forward, name):
            raise broken(model, "forward", f"must take `{name}`, but does not")


def _predicted_from(subject: Subject, loaded: list[Any]) -> Batch | None:
    torch.manual_seed(0)
    return subject.collator.prediction_batch(loaded)


def _other(example: Any, subject: Subject) -> list[int]:
    """Other tokens for the target of an example, as many as it has."""
    special = set(subject.model.tokenizer.all_special_ids)
    own = set(example["input_ids"])
    others = [i for i in range(len(subject.model.tokenizer)) if i not in special | own]
    return [others[0] if others else token for token in example["input_ids"]]


def _counts(metric: Any, rows: list[dict[str, Any]]) -> list[float]:
    metric.reset()
    metric.update(rows)
    totals = metric.totals()
    metric.reset()
    if not isinstance(totals, list) or not all(isinstance(x, float | int) for x in totals):
        raise broken(metric, "totals", f"must return a list of numbers, but returned {totals!r}")
    return totals


def _check_values(metric: Any, values: Any) -> None:
    is_plain = isinstance(values, dict) and all(
        isinstance(key, str) and isinstance(value, float | int) for key, value in values.items()
    )
    if not is_plain:
        raise broken(metric, "compute", f"must return numbers by name, but returned {values!r}")
