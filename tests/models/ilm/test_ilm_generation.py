"""Generation with ilm beside a slow one that keeps its rows sorted, and the laws of batches."""

from dataclasses import replace

import pytest
import torch

from whalesong.models.ilm.insertion import GrowingRows
from whalesong.models.ilm.model import IlmModel
from whalesong.models.ilm.predictor import choose

CLS, BOS, PAD, MASK = 1, 4, 0, 2
SPECIAL = range(7)
SAMPLED = {"temperature": 1.5, "top_k": 0}


@torch.inference_mode()
def slow_completion(model: IlmModel, row: dict, max_length: int) -> list[int]:
    """Greedy insertion into a sorted row, without batch, padding or positions."""
    prompt = [CLS, *row.get("prompt_ids", ()), BOS]
    text, open_gaps = [], [MASK not in row.get("partial_ids", ())]
    for token in row.get("partial_ids", ()):
        if token == MASK:
            open_gaps[-1] = True
        else:
            text.append(token)
            open_gaps.append(MASK not in row["partial_ids"])
    while len(text) < max_length:
        ids = torch.tensor([prompt + text])
        prompt_mask = torch.arange(ids.shape[1])[None] < len(prompt)
        hidden = model.hidden_states(ids, prompt_mask=prompt_mask)
        if model.stop_head(hidden[0, 0]).softmax(-1)[0] >= 0.5:
            break
        logits = model.head(hidden[0, len(prompt) - 1 :])
        logits[:, list(SPECIAL)] = -torch.inf
        logits[~torch.tensor(open_gaps)] = -torch.inf
        gap, token = divmod(int(logits.argmax()), logits.shape[1])
        text.insert(gap, token)
        open_gaps.insert(gap + 1, True)
    return text


def unpadded(ids: torch.Tensor) -> list[list[int]]:
    return [[token for token in row if token != PAD] for row in ids.tolist()]


def test_appended_tokens_with_positions_give_the_logits_of_a_sorted_row(model):
    ids = torch.tensor([[CLS, 8, BOS, 9], [PAD, CLS, BOS, 10]])
    mask = ids != PAD
    prompt_mask = torch.tensor([[True] * 3 + [False], [False, True, True, False]])
    rows = GrowingRows.start(
        {
            "input_ids": ids,
            "attention_mask": mask,
            "prompt_mask": prompt_mask,
            "gap_mask": mask & (torch.arange(4) > 1),
        }
    )
    rows = rows.insert(torch.tensor([2, 3]), torch.tensor([11, 12]))
    rows = rows.insert(torch.tensor([4, 2]), torch.tensor([13, 14]))
    assert rows.target_ids(5, PAD).tolist() == [[11, 13, 9, 0, 0], [14, 10, 12, 0, 0]]

    stored = model.hidden_states(
        rows.input_ids,
        attention_mask=rows.attention_mask,
        prompt_mask=rows.prompt_mask,
        positions=rows.positions,
    )
    for row, text in enumerate([[CLS, 8, BOS, 11, 13, 9], [CLS, BOS, 14, 10, 12]]):
        in_prompt = torch.arange(len(text))[None] < (3 if row == 0 else 2)
        expected = model.hidden_states(torch.tensor([text]), prompt_mask=in_prompt)[0]
        order = rows.positions[row][rows.attention_mask[row]].argsort()
        torch.testing.assert_close(
            stored[row][rows.attention_mask[row]][order], expected, atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("max_length", [4, 9])
def test_greedy_generation_is_the_slow_one(predictor, model, pred_collator, rows, max_length):
    ids = predictor.predict(pred_collator(rows), top_k=1, max_length=max_length)["ids"]
    assert unpadded(ids) == [slow_completion(model, row, max_length) for row in rows]


@pytest.mark.parametrize("choice", ["joint", "position_first"])
@pytest.mark.parametrize("settings", [{"top_k": 1}, SAMPLED, {"top_p": 0.9}, {"top_k": 3}])
def test_rows_of_a_batch_are_generated_as_if_alone(
    predictor, pred_collator, rows, choice, settings
):
    settings = {"choice": choice, **settings}
    together = predictor.predict(pred_collator(rows), seeds=[3, 1, 2, 9], **settings)["ids"]
    for index, seed in enumerate([3, 1, 2, 9]):
        alone = predictor.predict(pred_collator([rows[index]]), seeds=[seed], **settings)["ids"]
        assert torch.equal(alone[0], together[index])


def test_seeds_decide_what_is_drawn(predictor, pred_collator, rows):
    batch = pred_collator(rows[:1] * 4)
    ids = predictor.predict(batch, seeds=[1, 1, 2, 3], **SAMPLED)["ids"]
    assert torch.equal(ids[0], ids[1])
    assert len({tuple(row) for row in ids.tolist()}) > 1
    torch.manual_seed(4)
    first = predictor.predict(batch, **SAMPLED)["ids"]
    torch.manual_seed(4)
    assert torch.equal(predictor.predict(batch, **SAMPLED)["ids"], first)


def test_a_row_that_stops_never_changes_while_others_go_on(predictor, pred_collator, rows):
    batch = pred_collator(rows[:1] * 12)
    preds = predictor.predict(batch, seeds=range(12), history=True, **SAMPLED)
    lengths = [len(row) for row in unpadded(preds["ids"])]
    assert len(set(lengths)) > 2  # they stop at different steps
    told = [row["history"] for row in predictor.to_dict(batch, preds)]
    assert [len(row) - 1 for row in told] == lengths
    texts = [row["text"] for row in predictor.to_dict(batch, preds)]
    assert [row[-1]["text"] for row in told] == texts


def test_history_tells_each_insertion_with_its_probability(predictor, pred_collator, rows):
    preds = predictor.predict(pred_collator(rows[2:3]), history=True, top_k=1, max_length=6)
    (told,) = preds["history"]
    assert [step["step"] for step in told] == list(range(len(told)))
    assert [len(step["text"].split()) for step in told] == [2, 3, 4, 5, 6][: len(told)]
    assert all(0 < step["confidence"] <= 1 for step in told)
    assert "history" not in predictor.predict(pred_collator(rows[2:3]))


def test_special_tokens_are_never_inserted(predictor, model, pred_collator, rows):
    with torch.no_grad():
        model.stop_head.classes.bias.copy_(torch.tensor([-50.0, 50.0]))
    for choice in ("joint", "position_first"):
        ids = predictor.predict(pred_collator(rows * 4), choice=choice, temperature=30.0)["ids"]
        inserted = unpadded(ids)
        assert [len(row) for row in inserted] == [12] * 16
        assert not {token for row in inserted for token in row} & set(SPECIAL)


def test_text_is_inserted_only_where_a_mask_stood(predictor, model, pred_collator):
    with torch.no_grad():
        model.stop_head.classes.bias.copy_(torch.tensor([-50.0, 50.0]))
    partial = [[7, MASK, 8, 9], [MASK, 10], [10, MASK, MASK], [7, 8]]
    batch = pred_collator([{"id": str(i), "partial_ids": ids} for i, ids in enumerate(partial)])
    between, before, behind, anywhere = unpadded(predictor.predict(batch, **SAMPLED)["ids"])
    assert (between[0], between[-2:]) == (7, [8, 9])
    assert before[-1] == behind[0] == 10
    rest = iter(anywhere)
    assert all(token in rest for token in (7, 8))
    assert {len(row) for row in (between, before, behind, anywhere)} == {12}


def test_stop_threshold_decides_when_a_text_is_complete(predictor, pred_collator, rows):
    batch = pred_collator(rows)
    at_once = predictor.predict(batch, stop_threshold=1e-9)["ids"]
    assert unpadded(at_once) == [[], [], [7, 8], [9, 10]]
    lengths = [
        sum(map(len, unpadded(predictor.predict(batch, stop_threshold=limit, top_k=1)["ids"])))
        for limit in (0.05, 0.3, 0.6, 1.0)
    ]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


def test_output_is_as_wide_as_the_block_or_the_longest_text(predictor, pred_collator, rows):
    batch = pred_collator(rows)
    assert predictor.predict(batch, max_length=3)["ids"].shape == (4, 12)
    assert predictor.predict(batch, max_length=20)["ids"].shape == (4, 20)


def test_no_rows_give_no_rows(predictor, pred_collator):
    batch = pred_collator([])
    preds = predictor.predict(batch)
    assert preds["ids"].shape == (0, 12)
    assert predictor.to_dict(batch, preds) == []


def test_place_and_token_are_drawn_by_their_probabilities(predictor):
    """Exact shares over a fine grid of noise, for both ways to choose."""
    probs = torch.tensor([[0.3, 0.1], [0.0, 0.2], [0.0, 0.4]])
    fine = (torch.arange(40) + 0.5) / 40
    noise = torch.cartesian_prod(fine, fine)
    scores = probs.log().expand(len(noise), 3, 2)
    for choice in ("joint", "position_first"):
        gaps, tokens = choose(scores, noise, replace(predictor.settings, choice=choice))
        shares = torch.bincount(gaps * 2 + tokens, minlength=6) / len(noise)
        torch.testing.assert_close(shares, probs.flatten(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("choice", "expected"), [("joint", (2, 0)), ("position_first", (0, 1))])
def test_most_probable_insertion_or_most_probable_place_first(predictor, choice, expected):
    scores = torch.tensor([[[0.29, 0.3], [0.0, 0.06], [0.35, 0.0]]]).log()
    settings = replace(predictor.settings, choice=choice, top_k=1)
    gaps, tokens = choose(scores, torch.zeros(1, 2), settings)
    assert (int(gaps), int(tokens)) == expected


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"temprature": 1.0}, TypeError),
        ({"stop_threshold": 0.0}, ValueError),
        ({"choice": "token_first"}, ValueError),
        ({"max_length": 0}, ValueError),
        ({"top_p": 1.5}, ValueError),
        ({"seeds": [1]}, ValueError),
    ],
)
def test_wrong_settings_are_refused(predictor, pred_collator, rows, setting, error):
    with pytest.raises(error, match=next(iter(setting))):
        predictor.predict(pred_collator(rows), **setting)


def test_network_keeps_its_mode_and_gets_no_gradients(predictor, model, pred_collator, rows):
    model.train()
    predictor.predict(pred_collator(rows))
    assert model.training and model.stop_head.training
    assert all(parameter.grad is None for parameter in model.parameters())
