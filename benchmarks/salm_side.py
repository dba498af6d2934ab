"""One side of the SALM benchmark, in a process of its own.

`salm_side.py SIDE FOLDER STEPS THREADS NEW_TOKENS` trains and generates with what
`salm_material.py` wrote to FOLDER; what it measured is the last line that it prints, in JSON.
"""

import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch import LightningModule
from measure import Timings, peak_above, reset_peak, resident_bytes
from nemo.utils import logging as nemo_logging
from torch import Tensor
from torch.utils.data import DataLoader

from whalesong.modules.lora import canonical_name

WARM_UP = 2

Generate = Callable[[dict[str, Any], int], list[list[int]]]


def build_whalesong(config: dict[str, Any]) -> tuple[LightningModule, Generate]:
    """Our SALM and its greedy generation."""
    from whalesong.models.salm.salm import SALM

    model = SALM(config)

    def generate(batch: dict[str, Any], num_tokens: int) -> list[list[int]]:
        settings = {"max_new_tokens": num_tokens, "do_sample": False, "eos_token_id": -1}
        return model.parts.predictor.predict(batch, **settings)["ids"]

    return model, generate


def build_nemo(config: dict[str, Any]) -> tuple[LightningModule, Generate]:
    """NeMo's SALM and its greedy generation."""
    from nemo.collections.speechlm2.models import SALM

    model = SALM(config)
    prepare_inputs = model.prepare_inputs

    def prepare_dense_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """NeMo cannot supervise audio frames by its batch."""
        inputs = prepare_inputs(batch)
        return inputs | {"target_ids": batch.get("target_ids", inputs["target_ids"])}

    model.prepare_inputs = prepare_dense_inputs

    def generate(batch: dict[str, Any], num_tokens: int) -> list[list[int]]:
        settings = {"max_new_tokens": num_tokens, "do_sample": False, "eos_token_id": -1}
        audio = {"audios": batch["audios"], "audio_lens": batch["audio_lens"]}
        return model.generate(prompts=batch["input_ids"], **audio, **settings).tolist()

    return model, generate


BUILDERS = {"whalesong": build_whalesong, "nemo": build_nemo}


@torch.no_grad()
def load_trained(model: LightningModule, state: dict[str, Tensor]) -> None:
    """Set what training moves to `state`, whose names are those of ours."""
    parameters = {
        canonical_name(name).removeprefix("model."): parameter
        for name, parameter in model.named_parameters()
    }
    for name, tensor in state.items():
        parameters[name].copy_(tensor)


class StepMeter(lightning.Callback):
    """Times forward, backward and optimizer of each step, and keeps the losses."""

    def __init__(self) -> None:
        self.timings = Timings()
        self.losses: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock."""
        self.timings.start()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Stop it."""
        self.timings.stop()
        self.losses.append(float(trainer.callback_metrics["loss"]))


def train(
    model: LightningModule, batch: dict[str, Tensor], *, steps: int, base: int
) -> dict[str, Any]:
    """Train on one batch over and over; peak memory is that above `base` bytes."""
    meter = StepMeter()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=WARM_UP + steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[meter],
    )
    model.train()
    loader = DataLoader([batch] * (WARM_UP + steps), batch_size=None)
    peak = peak_above(base, lambda: trainer.fit(model, loader))
    return {"seconds": meter.timings.medians(skip=WARM_UP), "losses": meter.losses, "peak": peak}


def run_generation(
    generate: Generate, batch: dict[str, Any], *, num_tokens: int, steps: int, base: int
) -> dict[str, Any]:
    """Generate the first token alone, and `num_tokens`."""
    ids: list[list[int]] = []
    first, whole = Timings(), Timings()

    def work() -> None:
        for _ in range(WARM_UP + steps):
            for timings, count in ((first, 1), (whole, num_tokens)):
                timings.start()
                ids[:] = generate(batch, count)
                timings.stop()

    peak = peak_above(base, work)
    return {
        "first": first.medians(skip=WARM_UP),
        "whole": whole.medians(skip=WARM_UP),
        "peak": peak,
        "ids": ids,
    }


def main(side: str, folder: Path, steps: int, threads: int, num_tokens: int) -> None:
    """Measure one side and print the result."""
    warnings.simplefilter("ignore")
    nemo_logging.setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, generate = BUILDERS[side](json.loads((folder / "config.json").read_text()))
    load_trained(model, torch.load(folder / "trained.pt", weights_only=True))
    training = torch.load(folder / "training.pt", weights_only=True)
    prompts = torch.load(folder / "generation.pt", weights_only=True)
    # Weights that are mapped from a file count as memory only once they were read.
    for tensor in model.state_dict().values():
        tensor.sum()
    reset_peak()
    base = resident_bytes()
    result = {
        "base": base,
        "training": {
            share: train(model, batches[side], steps=steps, base=base)
            for share, batches in training.items()
        },
        "generation": run_generation(
            generate, prompts[side], num_tokens=num_tokens, steps=steps, base=base
        ),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
