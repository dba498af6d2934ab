"""Laws of the network and of the archive."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whalesong.core.archived_model import load
from whalesong.core.contract import broken
from whalesong.testing.batches import same, takes
from whalesong.testing.generation_laws import generated
from whalesong.testing.loss_laws import validation_loss
from whalesong.testing.subject import Subject

_LENGTH = 12
_ROWS = 2


def future_is_hidden(subject: Subject) -> str | None:
    """A token does not change the logits before it, where the network says that it is causal."""
    network = subject.model.parts.model
    if not subject.is_text or not _is_causal(network):
        return "the network does not say that it is causal"
    ids = _random_ids(subject)
    logits = _logits(network, ids)
    for place in range(1, _LENGTH):
        changed = ids.clone()
        changed[:, place] = (changed[:, place] + 1) % len(subject.model.tokenizer)
        if not same(logits[:, :place], _logits(network, changed)[:, :place]):
            rule = f"must be causal, but the logits before position {place} change with its token"
            raise broken(network, "forward", rule)
    return None


def cache_changes_nothing(subject: Subject) -> str | None:
    """With a cache, in pieces of any size, the network gives what it gives of the whole."""
    network = subject.model.parts.model
    is_cached = hasattr(network, "init_cache") and takes(network.forward, "cache")
    if not subject.is_text or not is_cached or not _is_causal(network):
        return "the network has no cache"
    ids = _random_ids(subject)
    cache = network.init_cache(_ROWS, _LENGTH)
    pieces = [ids[:, :5], ids[:, 5:6], ids[:, 6:]]
    with torch.no_grad():
        logits = torch.cat([network(piece, cache=cache) for piece in pieces], dim=1)
    if not same(logits, _logits(network, ids)):
        raise broken(network, "forward", "must give the same with a cache, but does not")
    return None


def archive_restores(subject: Subject) -> str | None:
    """Saved, moved to another folder and restored, the model computes and generates the same."""
    with tempfile.TemporaryDirectory() as folder:
        saved, moved = Path(folder) / "model.nemo", Path(folder) / "elsewhere" / "moved.nemo"
        subject.model.save_to(saved)
        moved.parent.mkdir()
        saved.rename(moved)
        restored = Subject(subject.name, load(moved), subject.examples)
    network = subject.model.parts.model
    rule = "must hold all that the model needs, but restored it"
    if not same(validation_loss(subject), validation_loss(restored)):
        raise broken(network, "state_dict", f"{rule} has another loss")
    if not same(generated(subject), generated(restored)):
        raise broken(network, "state_dict", f"{rule} generates something else")
    return None


def _is_causal(network: Any) -> bool:
    """What the network says: its attribute `causal`, or that of its `transformer`."""
    inner = getattr(network, "transformer", None)
    return bool(getattr(network, "causal", getattr(inner, "causal", False)))


def _random_ids(subject: Subject) -> Tensor:
    return torch.randint(len(subject.model.tokenizer), (_ROWS, _LENGTH))


def _logits(network: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return network(ids, torch.ones_like(ids, dtype=torch.bool))
