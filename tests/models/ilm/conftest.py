"""Real parts of ilm on the smallest star graphs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from whalesong.corpora.star_graphs import StarGraphs
from whalesong.models.ilm.collator import IlmSeq2SeqCollator, IlmSeq2SeqPredCollator
from whalesong.models.ilm.model import IlmModel
from whalesong.models.ilm.predictor import IlmPredictor
from whalesong.textlm.collation import TokenExample
from whalesong.textlm.config import TokenizerConfig
from whalesong.textlm.tokenizers import build_tokenizer

PROMPT, TARGET = 16, 5
"""Tokens of a prompt with CLS and BOS, and of the longest target."""


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer(TokenizerConfig(type="numbers", count=12))


@pytest.fixture(scope="session")
def graphs(tokenizer: PreTrainedTokenizerBase) -> Callable[..., list[TokenExample]]:
    """Graphs of a split as token ids."""

    def make(split: str, count: int) -> list[TokenExample]:
        data = StarGraphs("mini", split, num_examples=count)
        return [_tokens(tokenizer, data[index]) for index in range(count)]

    return make


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerBase) -> IlmModel:
    return make_model(tokenizer)


@pytest.fixture(scope="session")
def collator(tokenizer: PreTrainedTokenizerBase) -> IlmSeq2SeqCollator:
    return IlmSeq2SeqCollator(tokenizer, TARGET, PROMPT)


@pytest.fixture(scope="session")
def pred_collator(tokenizer: PreTrainedTokenizerBase) -> IlmSeq2SeqPredCollator:
    return IlmSeq2SeqPredCollator(tokenizer, TARGET, PROMPT)


@pytest.fixture
def predictor(model: IlmModel, tokenizer: PreTrainedTokenizerBase) -> IlmPredictor:
    return IlmPredictor(model=model, tokenizer=tokenizer, block_size=12)


@pytest.fixture(scope="session")
def rows() -> list[TokenExample]:
    """Prompts of several lengths, two of them with known tokens."""
    return [
        {"id": "a", "prompt_ids": [7, 8, 9]},
        {"id": "b", "prompt_ids": []},
        {"id": "c", "prompt_ids": [10] * 9, "partial_ids": [7, 8]},
        {"id": "d", "prompt_ids": [11, 12], "partial_ids": [9, 2, 10]},
    ]


def make_model(tokenizer: PreTrainedTokenizerBase, **sizes: Any) -> IlmModel:
    """A network of sharp random weights that stops now and then, in evaluation mode."""
    torch.manual_seed(0)
    sizes = {"d_model": 16, "num_layers": 2, "num_heads": 2, "prompt_positions": PROMPT, **sizes}
    model = IlmModel(vocab_size=len(tokenizer), **sizes).eval()
    with torch.no_grad():
        for weight in (*model.transformer.parameters(), *model.stop_head.parameters()):
            weight.mul_(2 if weight.dim() > 1 else 1)
        model.stop_head.classes.bias[1] += 1.0
    return model


def _tokens(tokenizer: PreTrainedTokenizerBase, example: dict[str, str]) -> TokenExample:
    prompt, text = (
        tokenizer(example[key], add_special_tokens=False)["input_ids"] for key in ("prompt", "text")
    )
    return {"id": example["id"], "prompt_ids": prompt, "input_ids": text}
