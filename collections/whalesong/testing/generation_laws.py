"""Laws of the predictor: plain rows, tokens of the vocabulary, and no influence between rows."""

import inspect
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from whalesong.core.contract import broken, checked_predictions, checked_rows
from whalesong.core.parts import Batch
from whalesong.testing.batches import copied, differing, same
from whalesong.testing.subject import Subject

Row = dict[str, Any]
NOTHING = "validation batches have nothing to generate from"
_SEED = 11
_TOKENS = ("ids", "target_ids")


def rows_are_plain(subject: Subject) -> str | None:
    """`to_dict` gives one dictionary for each example, ready for a JSON line."""
    if (batch := prompts(subject)) is None:
        return NOTHING
    predictor = subject.model.parts.predictor
    before = copied(batch)
    subject.model.train()
    rows = predicted(subject, batch)
    if not subject.model.parts.model.training:
        raise broken(predictor, "predict", "must leave the model in training mode, but does not")
    if changed := differing(before, batch):
        raise broken(predictor, "predict", f"must not edit the batch, but changes `{changed[0]}`")
    if len(rows) != (expected := num_generated(subject)):
        rule = f"must return a row for each of {expected} examples, but returned {len(rows)}"
        raise broken(predictor, "to_dict", rule)
    for key, value in ((key, value) for row in rows for key, value in row.items()):
        try:
            json.dumps({key: value}, allow_nan=False)
        except (TypeError, ValueError) as error:
            rule = f"must return what JSON can hold, but `{key}` is {type(value).__name__}"
            raise broken(predictor, "to_dict", f"{rule}: {error}") from error
    return None


def tokens_are_in_the_vocabulary(subject: Subject) -> str | None:
    """All generated ids are tokens."""
    if (batch := prompts(subject)) is None:
        return NOTHING
    predictor = subject.model.parts.predictor
    ids = checked_predictions(predictor, batch).get("ids")
    if not subject.is_text or not isinstance(ids, Tensor):
        return "no token ids are generated"
    size = len(subject.model.tokenizer)
    if wrong := [token for token in ids.flatten().tolist() if not 0 <= token < size]:
        rule = f'must give "ids" below the vocabulary of {size} tokens, but gave {wrong[0]}'
        raise broken(predictor, "predict", rule)
    return None


def generation_of_singles(subject: Subject) -> str | None:
    """Each row gets what it would get alone; where something is drawn, with the same seed."""
    if (batch := prompts(subject)) is None:
        return NOTHING
    predictor = subject.model.parts.predictor
    if not _is_seeded(predictor) and _draws(subject, batch):
        return "the predictor draws, and takes no `seeds`"
    for changes in _settings(subject, batch):
        together = predicted(subject, batch, seeds=range(num_generated(subject)), **changes)
        for index, example in enumerate(subject.loaded()):
            alone = predicted(subject, prompts(subject, [example]), seeds=[index], **changes)
            if keys := differing(_stripped(subject, together[index]), _stripped(subject, alone[0])):
                rule = f"must give a row the same alone and in a batch, but `{keys[0]}` differs"
                raise broken(predictor, "predict", f"{rule} {changes or ''}".rstrip())
    return None


def prompts(subject: Subject, loaded: Sequence[Any] | None = None) -> Batch | None:
    """What the predictor takes of the validation batch of these examples, or of all."""
    return subject.model.generated_from(subject.batch(loaded))


def num_generated(subject: Subject) -> int:
    """Examples in a batch."""
    return len(subject.examples)


def predicted(
    subject: Subject, batch: Batch, *, seeds: Sequence[int] = (), **changes: Any
) -> list[Row]:
    """Rows of what is generated; the same for the same seeds, which are used where they can be."""
    predictor = subject.model.parts.predictor
    if seeds and _is_seeded(predictor):
        changes["seeds"] = list(seeds)
    torch.manual_seed(_SEED)
    preds = checked_predictions(predictor, batch, **changes)
    return checked_rows(predictor, batch, preds)


def generated(subject: Subject) -> list[Row] | None:
    """Rows of the validation batch, if there is something to generate from."""
    batch = prompts(subject)
    return None if batch is None else predicted(subject, batch, seeds=range(num_generated(subject)))


def _is_seeded(predictor: Any) -> bool:
    return "seeds" in inspect.signature(predictor.predict).parameters


def _draws(subject: Subject, batch: Batch) -> bool:
    """Whether two runs of torch's generator give different rows."""
    first = predicted(subject, batch)
    preds = checked_predictions(subject.model.parts.predictor, batch)  # the generator has gone on
    return not same(first, checked_rows(subject.model.parts.predictor, batch, preds))


def _settings(subject: Subject, batch: Batch) -> list[dict[str, Any]]:
    """The predictor's own settings, and sampling where it has a temperature and seeds."""
    if not _is_seeded(subject.model.parts.predictor):
        return [{}]
    try:
        predicted(subject, batch, seeds=range(num_generated(subject)), temperature=1.0)
    except (TypeError, ValueError):
        return [{}]
    return [{}, {"temperature": 1.0}]


def _stripped(subject: Subject, row: Row) -> Row:
    """The row without padding behind its tokens, which is as wide as the batch wants it."""
    if not subject.is_text:
        return row
    pad_id = subject.model.tokenizer.pad_token_id
    return {key: _without_end(v, pad_id) if key in _TOKENS else v for key, v in row.items()}


def _without_end(ids: list[int], pad_id: int) -> list[int]:
    length = max((i + 1 for i, token in enumerate(ids) if token != pad_id), default=0)
    return ids[:length]
