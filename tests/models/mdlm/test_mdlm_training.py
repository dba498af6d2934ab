"""What mdlm learns, with the parts that its YAML names: graphs by heart, and to find the way."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from whalesong.core.optim import build_optimizer
from whalesong.corpora.star_graphs import StarGraphs
from whalesong.textlm.building import PartBuilder
from whalesong.textlm.config import TokenizerConfig
from whalesong.textlm.tokenizers import build_tokenizer

Graphs = list[dict[str, Any]]


class Training:
    """The parts of a `model` section, and AdamW."""

    def __init__(self, section: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self.tokenizer = build_tokenizer(TokenizerConfig.model_validate(section["tokenizer"]))
        sizes = {key: section[key] for key in ("block_size", "input_block_size")}
        build = PartBuilder(self.tokenizer, **sizes)
        build.noise_schedule(section["noise_schedule"])
        self.model = build.network(section["network"])
        self.loss = build.loss(section["loss"])
        self.predictor = build.predictor(section["predictor"])
        self.collate = build.collator(section["collators"]["train"])
        self.prepare = build.collator(section["collators"]["prediction"])
        settings = {"optimizer": section["optimizer"], "lr_scheduler": None, "max_steps": -1}
        self.optimizer = build_optimizer(self.model, **settings)["optimizer"]
        self.warmup = torch.optim.lr_scheduler.LinearLR(self.optimizer, 0.02, total_iters=50)

    def graphs(self, split: str, num_graphs: int) -> Graphs:
        """The first graphs of a split as token ids."""
        graphs = StarGraphs("mini", split, num_examples=num_graphs)
        encode = self.tokenizer.encode
        chosen = [graphs[index] for index in range(num_graphs)]
        keys = {"input_ids": "text", "prompt_ids": "prompt"}
        return [
            {"id": graph["id"], **{to: encode(graph[key]) for to, key in keys.items()}}
            for graph in chosen
        ]

    def step(self, graphs: Sequence[dict[str, Any]]) -> None:
        """One step of training."""
        self.model.train()
        self.optimizer.zero_grad()
        self.loss.loss_fn(self.collate(graphs))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.warmup.step()

    def exact_match(self, graphs: Graphs) -> float:
        """Share of graphs whose target is generated, end and padding included."""
        batch = self.prepare(graphs)
        ids = self.predictor.predict(batch, seeds=range(len(graphs)))["ids"]
        return float((ids == batch["target_ids"]).all(1).float().mean())


@pytest.fixture
def training(text_config: Callable[..., dict]) -> Training:
    """That of `experiment=star_mini_mdlm`."""
    sizes = ["model.d_model=64", "model.num_layers=3", "model.num_heads=4"]
    return Training(text_config("mdlm", *sizes))


def test_a_few_graphs_are_learned_by_heart(training: Training) -> None:
    graphs = training.graphs("train", 8)
    found = 0.0
    for step in range(1, 301):
        training.step(graphs * 2)
        if step % 20 == 0 and (found := training.exact_match(graphs)) == 1.0:
            break
    assert found == 1.0


@pytest.mark.slow
def test_the_way_is_found(training: Training) -> None:
    graphs = training.graphs("train", 50_000)
    for _ in range(3500):
        chosen = torch.randint(len(graphs), (64,)).tolist()
        training.step([graphs[index] for index in chosen])
    assert training.exact_match(training.graphs("test", 1000)) >= 0.9
