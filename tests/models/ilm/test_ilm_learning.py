"""What ilm learns: eight graphs by heart, and on many of them to look ahead."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from whalesong.models.ilm.collator import IlmSeq2SeqCollator, IlmSeq2SeqPredCollator
from whalesong.models.ilm.loss import IlmLoss
from whalesong.models.ilm.model import IlmModel
from whalesong.models.ilm.predictor import IlmPredictor
from whalesong.textlm.collation import TokenExample

Graphs = Callable[..., list[TokenExample]]


class Training:
    """A small network, how it learns and what it generates."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        torch.manual_seed(0)
        model = IlmModel(
            vocab_size=len(tokenizer), d_model=64, ff_mult=2, dropout=0.0, prompt_positions=16
        )
        self.loss = IlmLoss(model=model)
        self.predictor = IlmPredictor(model=model, tokenizer=tokenizer, block_size=5, top_k=1)
        self.collate = IlmSeq2SeqCollator(tokenizer, 5, 16)
        self.ask = IlmSeq2SeqPredCollator(tokenizer, 5, 16)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98))

    def step(self, examples: list[TokenExample]) -> None:
        """Learn from a batch."""
        self.optimizer.zero_grad()
        self.loss.loss_fn(self.collate(examples))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.loss.model.parameters(), 1.0)
        self.optimizer.step()

    def exact_match(self, examples: list[TokenExample]) -> float:
        """Share of the graphs whose whole path is right."""
        batch = self.ask(examples)
        return (self.predictor.predict(batch)["ids"] == batch["target_ids"]).all(1).float().mean()


def test_eight_graphs_are_learned_by_heart(tokenizer: PreTrainedTokenizerBase, graphs: Graphs):
    training, examples = Training(tokenizer), graphs("train", 8)
    steps = 0
    while training.exact_match(examples) < 1 and steps < 400:
        for _ in range(50):
            training.step(examples * 4)
        steps += 50
    assert training.exact_match(examples) == 1


@pytest.mark.slow
def test_look_ahead_is_learned_where_writing_from_left_to_right_guesses(
    tokenizer: PreTrainedTokenizerBase, graphs: Graphs
):
    training, examples = Training(tokenizer), graphs("train", 20_000)
    for _ in range(3000):
        chosen = torch.randint(len(examples), (64,)).tolist()
        training.step([examples[index] for index in chosen])
    assert training.exact_match(graphs("test", 500)) >= 0.95
