"""Laws of the loss: what it returns, and that neither batches nor padding change it."""

from typing import Any

import torch

from whalesong.core.contract import broken, checked_loss
from whalesong.core.parts import Batch
from whalesong.testing.batches import copied, differing, row, same, wider
from whalesong.testing.subject import Subject

_EXTRA = 3
_OTHER_SEED = 8


def loss_trains(subject: Subject) -> str | None:
    """In training, the loss is a finite scalar from which parameters get finite gradients."""
    loss, model = subject.model.parts.loss, subject.model.parts.model
    collator = subject.model.parts.train_collator
    subject.model.train()
    batch = collator([collator.load(example) for example in subject.examples])
    value = checked_loss(loss, batch)["loss"]
    if not bool(value.isfinite()):
        raise broken(loss, "loss_fn", f"must give a finite loss, but gave {value.item()}")
    if not value.requires_grad:
        raise broken(loss, "loss_fn", "must give a loss with gradients, but it is detached")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(value.sum(), list(trained.values()), allow_unused=True)
    gradients = {n: grad for n, grad in zip(trained, found, strict=True) if grad is not None}
    if not any(bool(gradient.any()) for gradient in gradients.values()):
        raise broken(loss, "loss_fn", "must give gradients to the model, but all of them are zero")
    if wrong := [name for name, gradient in gradients.items() if not gradient.isfinite().all()]:
        raise broken(loss, "loss_fn", f"must give finite gradients, but not to `{wrong[0]}`")
    return None


def loss_repeats(subject: Subject) -> str | None:
    """The same batch with the same seed has the same loss, and stays as it is."""
    loss, batch = subject.model.parts.loss, _targets(subject)
    before = copied(batch)
    first = _loss(subject, batch)
    if changed := differing(before, batch):
        raise broken(loss, "loss_fn", f"must not edit the batch, but changes `{changed[0]}`")
    if not same(first["loss"], _loss(subject, batch)["loss"]):
        rule = "must repeat itself in evaluation mode with the same seed, but does not"
        raise broken(loss, "loss_fn", rule)
    return None


def loss_of_singles(subject: Subject) -> str | None:
    """The losses of the rows, each times its targets, sum to that of the batch."""
    loss, batch = subject.model.parts.loss, _targets(subject)
    singles = _singles(subject, batch)
    if isinstance(singles, str):
        return singles
    whole = _loss(subject, batch)
    outputs = [_loss(subject, single) for single in singles]
    if "num_targets" not in whole:
        return "the loss gives no `num_targets`"
    counts = [int(each["num_targets"]) for each in outputs]
    if sum(counts) != int(whole["num_targets"]):
        rule = f"must count targets row by row, but counts {int(whole['num_targets'])} in a batch"
        raise broken(loss, "loss_fn", f"{rule} whose rows have {counts}")
    total = sum(float(o["loss"]) * n for o, n in zip(outputs, counts, strict=True))
    mean = total / max(sum(counts), 1)
    if not same(float(whole["loss"]), mean):
        rule = f"must give a batch the mean over all targets ({mean:.6f}), but gives"
        raise broken(loss, "loss_fn", f"{rule} {float(whole['loss']):.6f}: is padding in it?")
    return None


def loss_ignores_padding(subject: Subject) -> str | None:
    """More padding, at either side, does not change the loss."""
    if not subject.is_text:
        return "only batches of token ids are padded here"
    loss, batch = subject.model.parts.loss, _targets(subject)
    if "attention_mask" not in batch:
        return "the batch has no `attention_mask`"
    if random := _randomness(subject, batch):
        return random
    expected = float(_loss(subject, batch)["loss"])
    skipped = []
    for side in ("right", "left"):
        widened = wider(batch, pad_id=subject.model.tokenizer.pad_token_id, **{side: _EXTRA})
        if widened is None:
            skipped.append(f"how to pad this batch at the {side} is not known")
        elif not same(expected, found := float(_loss(subject, widened)["loss"])):
            rule = f"must give {expected:.6f} also with padding at the {side}, but gives"
            raise broken(loss, "loss_fn", f"{rule} {found:.6f}")
    return skipped[0] if len(skipped) == 2 else None


def validation_loss(subject: Subject) -> dict[str, Any]:
    """What the loss returns for the validation batch, in evaluation mode."""
    return _loss(subject, _targets(subject))


def _targets(subject: Subject) -> Batch:
    """A validation batch without what is generated from."""
    return {key: value for key, value in subject.batch().items() if key != "prediction"}


def _loss(subject: Subject, batch: Batch, *, seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    with torch.no_grad():
        return checked_loss(subject.model.parts.loss, batch)


def _singles(subject: Subject, batch: Batch) -> list[Batch] | str:
    """Batches of one example each, or why there are none.

    A collator that draws nothing makes them anew, so that their padding is another; the rows of
    one that draws are cut out of the batch.
    """
    if random := _randomness(subject, batch):
        return random
    loaded = subject.loaded()
    other = subject.batch(loaded, seed=_OTHER_SEED)
    if not differing(batch, {key: other[key] for key in batch}):
        made = [subject.batch([example]) for example in loaded]
        return [{key: single[key] for key in batch} for single in made]
    rows = [row(batch, index, len(loaded)) for index in range(len(loaded))]
    return "the batch does not come row by row" if None in rows else rows


def _randomness(subject: Subject, batch: Batch) -> str | None:
    one, other = _loss(subject, batch), _loss(subject, batch, seed=_OTHER_SEED)
    return None if same(one["loss"], other["loss"]) else "the loss draws noise of its own"
