"""One case of the benchmark of text models, in a process of its own.

`textlm_side.py CASE`: CASE is JSON, and so is what was measured, the last line printed.
"""

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from measure import Timings, reset_peak, resident_bytes
from omegaconf import OmegaConf
from torch import Tensor, nn

from whalesong.core.config.compose import compose
from whalesong.core.families import assembled
from whalesong.core.parts import Batch
from whalesong.corpora.star_graphs import StarGraphs
from whalesong.data.text_example import TextExample
from whalesong.textlm.building import PartBuilder
from whalesong.textlm.collation import TextCollator
from whalesong.textlm.config import TokenizerConfig
from whalesong.textlm.tokenizers import build_tokenizer

WARM_UP, STEPS = 2, 10

Case = dict[str, Any]


class TextParts:
    """The parts of a text model as a case wants them, random and without dropout."""

    def __init__(self, case: Case) -> None:
        overrides = [f"experiment=star_easy_{case['model']}", "job_type=train", "model.dropout=0"]
        cfg = compose("config", overrides=[*overrides, *case["overrides"]])
        section = OmegaConf.to_container(assembled(cfg).model, resolve=True)
        tokenizer = build_tokenizer(TokenizerConfig.model_validate(section["tokenizer"]))
        sizes = {key: section[key] for key in ("block_size", "input_block_size")}
        build = PartBuilder(tokenizer, **sizes)
        build.noise_schedule(section.get("noise_schedule"))
        self.model = build.network(section["network"])
        self.loss = build.loss(section["loss"])
        self.predictor = build.predictor(section["predictor"])
        collators = section["collators"]
        self.collator = TextCollator(
            tokenizer,
            build.collator(collators["train"]),
            predict=build.collator(collators["prediction"]),
        )
        self.settings = dict(case["generation"])
        if case["model"] == "ilm":
            self.settings["stop_threshold"] = 1.0
        if case["model"] == "arlm":
            never_end(self.model, tokenizer.eos_token_id)

    def batch(self, first: int, rows: int) -> Batch:
        """A batch of graphs, with another to generate from under "prediction"."""
        graphs = StarGraphs(size="easy", split="train")
        examples = [TextExample(**graphs[index]) for index in range(first, first + rows)]
        return self.collator([self.collator.load(example) for example in examples])

    def generate(self, batch: Batch, **settings: Any) -> Tensor:
        """What is written, (B, L)."""
        settings = {**self.settings, **settings}
        return self.predictor.predict(batch, seeds=range(len(batch["input_ids"])), **settings)[
            "ids"
        ]


@torch.no_grad()
def never_end(model: nn.Module, eos_id: int) -> None:
    """Make the end the least likely token always: rows of random models are as long as allowed."""
    model.transformer.norm.bias.fill_(1.0)
    model.head.weight[eos_id] = -1.0


def time_speed(case: Case) -> dict[str, Any]:
    """Losses and seconds of steps of AdamW, and seconds of a batch that is generated."""
    parts = TextParts(case)
    batches = [parts.batch(64 * index, case["train_rows"]) for index in range(4)]
    optimizer = torch.optim.AdamW(parts.model.parameters(), lr=1e-3)
    losses, steps = [], Timings()
    for step in range(WARM_UP + STEPS):
        steps.start()
        loss = parts.loss.loss_fn(batches[step % len(batches)])["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps.stop()
        losses.append(float(loss.detach()))
    fresh = TextParts(case)
    prompts = fresh.batch(0, case["rows"])["prediction"]
    _, seconds = timed(lambda: fresh.generate(prompts), case["turns"])
    return {
        "losses": losses,
        "step": steps.medians(skip=WARM_UP)["cpu"],
        "sample": seconds.medians()["cpu"],
    }


def time_cache(case: Case) -> dict[str, Any]:
    """Seconds of the same batch with and without a cache, in turns.

    Raises:
        RuntimeError: what is written is not the same.
    """
    parts = TextParts(case)
    prompts = parts.batch(0, case["rows"])["prediction"]
    seconds: dict[str, list[float]] = {"cached": [], "without_cache": []}
    for _ in range(case["turns"]):
        written = []
        for part, use_cache in (("cached", True), ("without_cache", False)):
            ids, timings = timed(
                lambda cache=use_cache: parts.generate(prompts, use_cache=cache), 1
            )
            written.append(ids)
            seconds[part] += timings.cpu
        if not torch.equal(*written):
            raise RuntimeError("tokens must be the same with and without a cache, but are not.")
    return {**seconds, "length": written[0].shape[1]}


def timed(work: Callable[[], Tensor], turns: int) -> tuple[Tensor, Timings]:
    """What some work gives, and what each of its turns takes."""
    timings = Timings()
    for _ in range(turns):
        timings.start()
        result = work()
        timings.stop()
    return result, timings


WORK = {"speed": time_speed, "cache": time_cache}


def main(case: Case) -> None:
    """Do the work of a case and print what was measured."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    reset_peak()
    result = WORK[case["work"]](case)
    print(json.dumps({**result, "peak": resident_bytes("VmHWM")}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
