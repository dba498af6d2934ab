"""Laws of arlm: no look ahead, a loss by hand, and generation that depends on its row alone."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from whalesong.models.arlm.collator import ArlmSeq2SeqCollator, ArlmSeq2SeqPredCollator
from whalesong.models.arlm.loss import ArlmLoss
from whalesong.models.arlm.model import ArlmModel
from whalesong.models.arlm.predictor import ArlmPredictor

PAD, EOS, SIZE = 0, 3, 16
PAIRS = [
    {"id": "a", "prompt_ids": [7, 8, 9, 10], "input_ids": [10, 11]},
    {"id": "b", "prompt_ids": [11], "input_ids": [12, 13, 14]},
    {"id": "c", "input_ids": [9, 9]},
]


def build_model(**fields: Any) -> ArlmModel:
    """A tiny network with large random weights, so that what it says differs."""
    torch.manual_seed(0)
    model = ArlmModel(vocab_size=SIZE, d_model=32, num_layers=2, num_heads=4, **fields)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture
def model() -> ArlmModel:
    return build_model(prompt_positions=6)


@pytest.fixture
def collators(number_tokenizer: Any) -> tuple[ArlmSeq2SeqCollator, ArlmSeq2SeqPredCollator]:
    sizes = (number_tokenizer, 8, 6)
    return ArlmSeq2SeqCollator(*sizes), ArlmSeq2SeqPredCollator(*sizes)


@pytest.fixture
def predictor(model: ArlmModel, number_tokenizer: Any) -> ArlmPredictor:
    return ArlmPredictor(model=model, tokenizer=number_tokenizer, block_size=8)


def test_no_token_sees_what_comes_behind_it(model: ArlmModel) -> None:
    ids = torch.randint(7, SIZE, (2, 9))
    logits = model(ids)
    for position in range(1, 9):
        changed = ids.clone()
        changed[:, position:] = torch.randint(7, SIZE, (2, 9 - position))
        torch.testing.assert_close(model(changed)[:, :position], logits[:, :position])


def test_padding_at_either_side_changes_nothing(model: ArlmModel, collators: Any) -> None:
    collate, _ = collators
    together = collate(PAIRS)
    logits = of_kept(model, together)
    for row, example in enumerate(PAIRS):
        alone = of_kept(model, collate([example]))[0]
        torch.testing.assert_close(logits[row][: len(alone)], alone, atol=2e-5, rtol=1e-5)


def of_kept(model: ArlmModel, batch: dict[str, Tensor]) -> list[Tensor]:
    """Logits of each row at what is not padding."""
    logits = model(batch["input_ids"], batch["attention_mask"], prompt_mask=batch["prompt_mask"])
    return [row[keep] for row, keep in zip(logits, batch["attention_mask"], strict=True)]


def test_chosen_logits_are_those_of_all(model: ArlmModel) -> None:
    ids, at = torch.randint(7, SIZE, (2, 5)), torch.rand(2, 5) < 0.5
    torch.testing.assert_close(model(ids, at=at), model(ids)[at])


def test_the_loss_is_that_by_hand(model: ArlmModel, collators: Any) -> None:
    batch = collators[0](PAIRS)
    outputs = ArlmLoss(model=model).loss_fn(batch)
    log_probs = model(
        batch["input_ids"], batch["attention_mask"], prompt_mask=batch["prompt_mask"]
    ).log_softmax(-1)
    terms = [
        -float(log_probs.detach()[row, position, label])
        for row, labels in enumerate(batch["labels"].tolist())
        for position, label in enumerate(labels)
        if label >= 0
    ]
    assert len(terms) == int(outputs["num_targets"]) == 3 + 4 + 3
    assert float(outputs["loss"]) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_a_new_model_knows_nothing(collators: Any) -> None:
    model = ArlmModel(vocab_size=SIZE).eval()
    torch.nn.init.zeros_(model.head.weight)
    loss = ArlmLoss(model=model).loss_fn(collators[0](PAIRS))["loss"]
    assert float(loss) == pytest.approx(math.log(SIZE), rel=1e-5)


def test_losses_of_parts_add_up(model: ArlmModel, collators: Any) -> None:
    loss = ArlmLoss(model=model)
    sums = [weighted(loss.loss_fn(collators[0]([example]))) for example in PAIRS]
    assert weighted(loss.loss_fn(collators[0](PAIRS))) == pytest.approx(sum(sums), rel=1e-5)


def weighted(outputs: dict[str, Tensor]) -> float:
    return float(outputs["loss"] * outputs["num_targets"])


def test_no_targets_give_a_loss_of_zero_with_gradients(model: ArlmModel, collators: Any) -> None:
    outputs = ArlmLoss(model=model).loss_fn(collators[0]([]))
    outputs["loss"].backward()
    assert float(outputs["loss"]) == 0
    assert int(outputs["num_targets"]) == 0


SAMPLED = {"top_k": 0, "top_p": 0.9, "temperature": 1.3}


@pytest.mark.parametrize("generation", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_the_cache_changes_no_token(
    predictor: ArlmPredictor, collators: Any, generation: dict[str, Any]
) -> None:
    batch = collators[1](PAIRS)
    made = [
        predictor.predict(
            batch, seeds=[5, 6, 7], use_cache=use_cache, max_new_tokens=24, **generation
        )["ids"].tolist()
        for use_cache in (True, False)
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize("generation", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_a_row_is_generated_as_if_it_were_alone(
    predictor: ArlmPredictor, collators: Any, generation: dict[str, Any]
) -> None:
    together = predictor.predict(collators[1](PAIRS), seeds=[5, 6, 7], **generation)["ids"]
    for row, (example, seed) in enumerate(zip(PAIRS, [5, 6, 7], strict=True)):
        alone = predictor.predict(collators[1]([example]), seeds=[seed], **generation)["ids"]
        assert together[row].tolist() == alone[0].tolist()


def test_greedy_is_what_one_gets_by_always_taking_the_best(
    predictor: ArlmPredictor, model: ArlmModel, collators: Any
) -> None:
    made = predictor.predict(collators[1](PAIRS[:1]))["ids"][0].tolist()
    ids = [*PAIRS[0]["prompt_ids"], 4]
    prompt = torch.arange(30)[None] < len(ids)
    for token in made[: made.index(EOS) + 1 if EOS in made else None]:
        logits = model(torch.tensor([ids]), prompt_mask=prompt[:, : len(ids)])[0, -1]
        logits[[0, 1, 2, 4, 5, 6]] = -torch.inf
        assert int(logits.argmax()) == token
        ids.append(token)


def test_padding_stands_behind_the_end(model: ArlmModel, predictor: ArlmPredictor) -> None:
    batch = {
        "input_ids": torch.full((64, 1), 4),
        "attention_mask": torch.ones(64, 1, dtype=torch.bool),
        "prompt_mask": torch.ones(64, 1, dtype=torch.bool),
    }
    rows = predictor.predict(batch, seeds=range(64), top_k=0)["ids"].tolist()
    ended = [row for row in rows if EOS in row]
    assert ended
    for row in ended:
        assert set(row[row.index(EOS) + 1 :]) <= {PAD}
    assert all(token >= 7 for row in rows for token in row if token not in (EOS, PAD))


def test_draws_have_the_probabilities_of_the_model(predictor: ArlmPredictor) -> None:
    rows = 4000
    batch = {
        "input_ids": torch.full((rows, 1), 4),
        "attention_mask": torch.ones(rows, 1, dtype=torch.bool),
        "prompt_mask": torch.ones(rows, 1, dtype=torch.bool),
    }
    drawn = predictor.predict(batch, seeds=range(rows), top_k=0, max_new_tokens=1)["ids"][:, 0]
    logits = predictor.model(batch["input_ids"][:1], prompt_mask=batch["prompt_mask"][:1])[0, 0]
    logits[[0, 1, 2, 4, 5, 6]] = -torch.inf
    share = drawn.bincount(minlength=SIZE) / rows
    torch.testing.assert_close(share, logits.softmax(-1).detach(), atol=0.03, rtol=0)


def test_history_tells_each_token(predictor: ArlmPredictor, collators: Any) -> None:
    preds = predictor.predict(collators[1](PAIRS[:1]), history=True)
    texts = [step["text"] for step in preds["history"][0]]
    row = predictor.to_dict(collators[1](PAIRS[:1]), preds)[0]
    assert texts[-1] == row["text"]
    assert all(long.startswith(short) for short, long in zip(texts, texts[1:], strict=False))


def test_wrong_settings_are_refused(predictor: ArlmPredictor, collators: Any) -> None:
    batch = collators[1](PAIRS)
    with pytest.raises(TypeError, match="top_l"):
        predictor.predict(batch, top_l=3)
    with pytest.raises(ValueError, match="`seeds` must be 3"):
        predictor.predict(batch, seeds=[1])
    with pytest.raises(ValueError, match="`max_new_tokens` must be at least 1"):
        predictor.predict(batch, max_new_tokens=0)


def test_predicting_leaves_training_mode_as_it_was(
    predictor: ArlmPredictor, collators: Any
) -> None:
    predictor.model.train()
    first = predictor.predict(collators[1](PAIRS))["ids"]
    assert predictor.model.training
    assert torch.equal(first, predictor.predict(collators[1](PAIRS))["ids"])


def test_no_rows_give_no_rows(predictor: ArlmPredictor, collators: Any) -> None:
    assert predictor.predict(collators[1]([]))["ids"].shape == (0, 8)
