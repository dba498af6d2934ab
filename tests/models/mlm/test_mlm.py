"""Laws of mlm: what is masked, a loss by hand, and filling that depends on its row alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from whalesong.core.errors import DataError
from whalesong.models.mlm.collator import (
    DefaultMlmCollator,
    MlmSeq2SeqCollator,
    MlmSeq2SeqPredCollator,
    draw_masks,
)
from whalesong.models.mlm.loss import MlmLoss
from whalesong.models.mlm.model import MlmModel
from whalesong.models.mlm.predictor import MlmPredictor

PAD, MASK, EOS, BOS, SIZE = 0, 2, 3, 4, 16
PAIRS = [
    {"id": "a", "prompt_ids": [7, 8, 9, 10], "input_ids": [10, 11]},
    {"id": "b", "prompt_ids": [11], "input_ids": [12, 13, 14]},
    {"id": "c", "input_ids": [9, 9]},
]
SLOTS = [[10, 11, EOS, PAD, PAD, PAD], [12, 13, 14, EOS, PAD, PAD], [9, 9, EOS, PAD, PAD, PAD]]


@pytest.fixture
def model() -> MlmModel:
    """A tiny network with large random weights, so that what it says differs."""
    torch.manual_seed(0)
    model = MlmModel(vocab_size=SIZE, d_model=32, num_layers=2, num_heads=4, prompt_positions=6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture
def collate(number_tokenizer: Any) -> MlmSeq2SeqCollator:
    return MlmSeq2SeqCollator(number_tokenizer, 6, 6)


@pytest.fixture
def prepare(number_tokenizer: Any) -> MlmSeq2SeqPredCollator:
    return MlmSeq2SeqPredCollator(number_tokenizer, 6, 6)


@pytest.fixture
def predictor(model: MlmModel, number_tokenizer: Any) -> MlmPredictor:
    return MlmPredictor(model=model, tokenizer=number_tokenizer, block_size=6)


def test_masks_stand_where_labels_do(collate: MlmSeq2SeqCollator) -> None:
    torch.manual_seed(0)
    for _ in range(20):
        batch = collate(PAIRS)
        is_masked = batch["labels"] >= 0
        restored = batch["input_ids"].where(~is_masked, batch["labels"])
        assert restored[:, -6:].tolist() == SLOTS
        assert (batch["input_ids"] == MASK).equal(is_masked)
        assert restored[:, :5].tolist() == [
            [7, 8, 9, 10, BOS], [PAD, PAD, PAD, 11, BOS], [PAD, PAD, PAD, PAD, BOS]
        ]  # fmt: skip


def test_the_prompt_and_its_end_are_never_masked(collate: MlmSeq2SeqCollator) -> None:
    torch.manual_seed(0)
    for _ in range(50):
        batch = collate(PAIRS)
        assert (batch["labels"][:, :5] == -100).all()


def test_each_share_of_masks_is_equally_likely() -> None:
    torch.manual_seed(0)
    shares = draw_masks(torch.ones(20000, 400, dtype=torch.bool)).float().mean(1)
    counts = torch.histc(shares, bins=5, min=0, max=1) / len(shares)
    torch.testing.assert_close(counts, torch.full((5,), 0.2), atol=0.015, rtol=0)


def test_given_the_share_slots_are_masked_independently() -> None:
    torch.manual_seed(0)
    masks = draw_masks(torch.ones(40000, 2, dtype=torch.bool))
    both, first = masks.all(1).float().mean(), masks[:, 0].float().mean()
    assert float(first) == pytest.approx(1 / 2, abs=0.01)  # the mean of t
    assert float(both) == pytest.approx(1 / 3, abs=0.01)  # the mean of t ** 2


def test_padding_can_be_left_out(number_tokenizer: Any) -> None:
    torch.manual_seed(0)
    collate = MlmSeq2SeqCollator(number_tokenizer, 6, 6, loss_on_padding=False)
    seen = torch.tensor([[True] * 3 + [False] * 3, [True] * 4 + [False] * 2])
    for _ in range(20):
        batch = collate(PAIRS[:2])
        assert batch["attention_mask"][:, -6:].equal(seen)
        assert (batch["labels"][:, -6:][~seen] == -100).all()


def test_a_text_leaves_its_prompt_aside(number_tokenizer: Any) -> None:
    batch = DefaultMlmCollator(number_tokenizer, 6)(PAIRS)
    assert batch["input_ids"].shape == (3, 7)
    assert (batch["input_ids"][:, 0] == BOS).all()


def test_all_slots_are_to_be_filled_but_for_what_is_known(prepare: MlmSeq2SeqPredCollator) -> None:
    gaps = {"id": "d", "partial_ids": [7, MASK, 9]}
    batch = prepare([PAIRS[0], gaps, {"id": "sample-0"}])
    assert batch["input_ids"][:, -6:].tolist() == [
        [MASK] * 6, [7, MASK, 9, EOS, PAD, PAD], [MASK] * 6
    ]  # fmt: skip
    assert prepare(PAIRS)["target_ids"].tolist() == SLOTS


def test_what_does_not_fit_is_refused_by_name(prepare: MlmSeq2SeqPredCollator) -> None:
    for key, said in (("input_ids", "target"), ("prompt_ids", "prompt"), ("partial_ids", "target")):
        with pytest.raises(DataError, match=f"example x: its {said} has 7 tokens"):
            prepare.load({"id": "x", key: [7] * 6})


def test_the_loss_is_that_by_hand(model: MlmModel, collate: MlmSeq2SeqCollator) -> None:
    torch.manual_seed(1)
    batch = collate(PAIRS)
    rows = negative_log_likelihoods(model, batch)
    outputs = MlmLoss(model=model).loss_fn(batch)
    assert int(outputs["num_targets"]) == sum(map(len, rows)) > 0
    assert float(outputs["loss"].detach()) == pytest.approx(
        sum(map(sum, rows)) / sum(map(len, rows))
    )

    outputs = MlmLoss(model=model, per_example=True).loss_fn(batch)
    expected = [sum(row) / (len(row) + 1) for row in rows if row]
    assert int(outputs["num_targets"]) == len(expected)
    assert float(outputs["loss"]) == pytest.approx(sum(expected) / len(expected))


@torch.no_grad()
def negative_log_likelihoods(model: MlmModel, batch: dict[str, Tensor]) -> list[list[float]]:
    """Of the masked tokens, row by row."""
    log_probs = model(
        batch["input_ids"], batch["attention_mask"], prompt_mask=batch["prompt_mask"]
    ).log_softmax(-1)
    return [
        [-float(row[slot, label]) for slot, label in enumerate(labels) if label >= 0]
        for row, labels in zip(log_probs, batch["labels"].tolist(), strict=True)
    ]


@pytest.mark.parametrize("per_example", [False, True])
def test_no_targets_give_a_loss_of_zero_with_gradients(
    model: MlmModel, collate: MlmSeq2SeqCollator, per_example: bool
) -> None:
    outputs = MlmLoss(model=model, per_example=per_example).loss_fn(collate([]))
    outputs["loss"].backward()
    assert float(outputs["loss"]) == 0
    assert int(outputs["num_targets"]) == 0


def test_padding_of_prompts_changes_nothing(model: MlmModel, collate: MlmSeq2SeqCollator) -> None:
    torch.manual_seed(2)
    batch = collate(PAIRS)
    together = negative_log_likelihoods(model, batch)
    for row in range(3):
        keep = batch["attention_mask"][row]
        alone = {key: value[row : row + 1, keep] for key, value in batch.items()}
        assert negative_log_likelihoods(model, alone)[0] == pytest.approx(together[row], rel=1e-4)


def test_each_token_sees_both_sides(model: MlmModel) -> None:
    ids = torch.randint(7, SIZE, (1, 6))
    for place in (0, 5):
        changed = ids.clone()
        changed[0, place] = MASK
        assert not torch.allclose(model(changed)[:, 3], model(ids)[:, 3])


SETTINGS: dict[str, dict[str, Any]] = {
    "surest": {},
    "clearest": {"strategy": "prob_diff", "num_steps": 3},
    "as sure as that": {"threshold": 0.3},
    "sampled": {"strategy": "uniform", "top_k": 0, "top_p": 0.9, "temperature": 1.3},
    "at once": {"num_steps": 1, "top_k": 0},
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_row_is_filled_as_if_it_were_alone(
    predictor: MlmPredictor, prepare: MlmSeq2SeqPredCollator, kind: str
) -> None:
    examples = [*PAIRS[:2], {"id": "d", "partial_ids": [MASK, 9, MASK]}]
    together = predictor.predict(prepare(examples), seeds=[5, 6, 7], **SETTINGS[kind])["ids"]
    for row, (example, seed) in enumerate(zip(examples, [5, 6, 7], strict=True)):
        alone = predictor.predict(prepare([example]), seeds=[seed], **SETTINGS[kind])["ids"]
        assert together[row].tolist() == alone[0].tolist()


@pytest.mark.parametrize("kind", SETTINGS)
def test_all_slots_are_filled_with_what_may_be_written(
    predictor: MlmPredictor, prepare: MlmSeq2SeqPredCollator, kind: str
) -> None:
    ids = predictor.predict(prepare(PAIRS), seeds=[1, 2, 3], **SETTINGS[kind])["ids"]
    assert ids.shape == (3, 6)
    assert all(token in (PAD, EOS) or token >= 7 for row in ids.tolist() for token in row)


def test_known_tokens_stay(predictor: MlmPredictor, prepare: MlmSeq2SeqPredCollator) -> None:
    batch = prepare([{"id": "d", "prompt_ids": [8], "partial_ids": [7, MASK, 9, MASK]}])
    ids = predictor.predict(batch)["ids"][0].tolist()
    assert [ids[0], ids[2], *ids[4:]] == [7, 9, EOS, PAD]


def test_filling_by_hand(
    predictor: MlmPredictor, model: MlmModel, prepare: MlmSeq2SeqPredCollator
) -> None:
    batch = prepare(PAIRS[:1])
    ids = batch["input_ids"].clone()
    while (ids == MASK).any():
        logits = model(ids, batch["attention_mask"], prompt_mask=batch["prompt_mask"])[0]
        logits[:, [1, MASK, BOS, 5, 6]] = -torch.inf
        best = logits.softmax(-1).max(-1)
        slot = int(best.values.where(ids[0] == MASK, -1).argmax())
        ids[0, slot] = best.indices[slot]
    assert predictor.predict(batch)["ids"].tolist() == ids[:, -6:].tolist()


def test_history_goes_from_masks_to_the_text(
    predictor: MlmPredictor, prepare: MlmSeq2SeqPredCollator
) -> None:
    batch = prepare([{"id": "d", "partial_ids": [7, MASK, 9, MASK]}])
    preds = predictor.predict(batch, history=True)
    (steps,) = preds["history"]
    assert [step["step"] for step in steps] == [0, 1, 2]
    assert steps[0]["text"] == "7 [MASK] 9 [MASK]".replace("7", "0").replace("9", "2")
    assert steps[-1]["text"] == predictor.to_dict(batch, preds)[0]["text"]


def test_wrong_settings_are_refused(
    predictor: MlmPredictor, prepare: MlmSeq2SeqPredCollator
) -> None:
    batch = prepare(PAIRS)
    with pytest.raises(TypeError, match="num_step"):
        predictor.predict(batch, num_step=3)
    with pytest.raises(ValueError, match="`num_steps` must be at least 1"):
        predictor.predict(batch, num_steps=0)
    with pytest.raises(ValueError, match="`strategy` must be one of"):
        predictor.predict(batch, strategy="entropy")


def test_no_rows_give_no_rows(predictor: MlmPredictor, prepare: MlmSeq2SeqPredCollator) -> None:
    assert predictor.predict(prepare([]))["ids"].shape == (0, 6)
