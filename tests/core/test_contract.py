"""The contract of the parts: who breaks it is named with class, method and file."""

import pytest
import torch

from whalesong.core.contract import (
    ContractError,
    checked_loss,
    checked_predictions,
    checked_rows,
    method,
)


class Loss:
    def __init__(self, outputs):
        self.outputs = outputs

    def loss_fn(self, batch):
        return self.outputs


class Predictor:
    def __init__(self, preds=None, rows=None):
        self.preds, self.rows = preds, rows

    def predict(self, batch, **generation):
        return self.preds

    def to_dict(self, batch, preds):
        return self.rows


class Silent:
    pass


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (None, r"must return a dictionary, but returned None \(is there a `return`\?\)"),
        ({"nll": torch.zeros(())}, 'must return a dictionary with "loss", but it has nll'),
        ({}, 'must return a dictionary with "loss", but it has nothing'),
        ({"loss": 1.0}, 'must give "loss" as a scalar tensor, but gave float'),
        (
            {"loss": torch.zeros(3)},
            r'must give "loss" as a scalar tensor, but gave a tensor of shape \(3,\)',
        ),
    ],
)
def test_a_loss_that_breaks_it(outputs, said):
    with pytest.raises(ContractError, match=rf"^Loss\.loss_fn {said} \(.*test_contract\.py\)\.$"):
        checked_loss(Loss(outputs), {})


@pytest.mark.parametrize(
    ("preds", "said"),
    [
        (None, "must return a dictionary, but returned None"),
        ({"tokens": []}, 'must return a dictionary with "ids" or "text", but it has tokens'),
    ],
)
def test_a_predictor_that_breaks_it(preds, said):
    with pytest.raises(ContractError, match=rf"^Predictor\.predict {said}.*test_contract\.py\)\.$"):
        checked_predictions(Predictor(preds), {})


@pytest.mark.parametrize("rows", [None, {}, ["text"]])
def test_rows_that_are_no_dictionaries(rows):
    with pytest.raises(ContractError, match=r"^Predictor\.to_dict must return a list of dict"):
        checked_rows(Predictor(rows=rows), {}, {})


def test_a_method_that_is_missing():
    with pytest.raises(ContractError, match=r"^Silent\.to_dict is missing \(.*test_contract\.py\)"):
        method(Silent(), "to_dict")


def test_what_keeps_the_contract_passes_unchanged():
    outputs = {"loss": torch.ones(()), "other": 3}
    assert checked_loss(Loss(outputs), {}) == outputs
    predictor = Predictor({"ids": [1]}, [{"text": "a"}])
    assert checked_predictions(predictor, {}) == {"ids": [1]}
    assert checked_rows(predictor, {}, {}) == [{"text": "a"}]
