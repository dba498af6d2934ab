"""Let trained models answer unseen graphs, with nothing but their archives and the network off.

python -m whalesong.demos.textlm_answer demo_folder star_mini 1000 arlm.nemo mdlm.nemo...
"""

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import whalesong
from whalesong.core.atomic import atomic_path
from whalesong.demos.processes import block_network
from whalesong.demos.textlm_graphs import outcomes
from whalesong.experiment import quiet_libraries

BATCH_SIZE = 100
OPEN = "_"
"""What stands for a token that is still masked."""


def main(folder: Path, task: str, num_test: int, archives: Sequence[Path]) -> None:
    """For each model write every answer, `<model>.jsonl`, and what was measured, `<model>.json`."""
    block_network()
    quiet_libraries()  # before anything imports NeMo
    from whalesong.inference import write_json_lines

    for archive in archives:
        model = whalesong.load(archive)
        rows, measured = measure(model, task, num_test)
        values = {
            **measured,
            "num_graphs": len(rows),
            "num_parameters": sum(p.numel() for p in model.model.parameters()),
            "outcomes": outcomes(rows),
            "sample": step_by_step(model, rows[0]),
        }
        write_json_lines(folder / f"{archive.stem}.jsonl", rows)
        with atomic_path(folder / f"{archive.stem}.json") as path:
            path.write_text(json.dumps(values))


def measure(model: Any, task: str, num_test: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Answers to test graphs of a task, and loss, exact match and token accuracy."""
    from whalesong.data.datamodule import build_loader

    graphs = {
        "type": "generated",
        "_target_": "whalesong.corpora.star_graphs.StarGraphs",
        "size": task.removeprefix("star_"),
        "split": "test",
        "num_examples": num_test,
    }
    section = {"input_cfg": [graphs], "batch_size": BATCH_SIZE, "shuffle": False}
    loader = build_loader(section, model.parts.validation_collator, path="data.test_ds")
    found = model.evaluate(loader, description=f"{task}, {num_test} graphs")
    return found.rows, values_of(found.summary)


def values_of(summary: str) -> dict[str, float]:
    """The named values of an evaluation, `loss 0.5000, exact_match 0.9000`."""
    pairs = (part.rsplit(" ", 1) for part in summary.split(", "))
    return {name: float(value) for name, value in pairs}


def step_by_step(model: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """How the model fills in one answer: prompt, truth, and the tokens after each step."""
    collator = model.parts.validation_collator
    example = {"id": row["id"], "prompt_ids": collator.encoded(row["prompt"])}
    batch = collator.prediction_batch([example])
    history = model.parts.predictor.predict(batch, seeds=[0], history=True)["history"][0]
    states = [state_of(step, model.tokenizer) for step in history]
    if states and OPEN not in states[0]:
        states.insert(0, [])  # before the first token
    changed = [state for state, _ in groupby(states)]  # chance may unmask nothing in a step
    return {"prompt": row["prompt"], "truth": row["truth"], "states": changed}


def state_of(step: Mapping[str, Any], tokenizer: Any) -> list[str]:
    """The tokens of a step's `text`, with `_` for an open one."""
    return [OPEN if token == tokenizer.mask_token else token for token in step["text"].split()]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), list(map(Path, sys.argv[4:])))
