"""One case of the duplex benchmark, in a process of its own.

`duplex_side.py CASE`: CASE is JSON, and so is what was measured, the last line printed.
"""

import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from duplex_material import (
    Case,
    build_model,
    build_twin,
    save_nemo_codec,
    save_random_codec,
    training_batch,
)
from measure import Timings, reset_peak, resident_bytes
from nemo.utils import logging as nemo_logging
from torch import Tensor

import whalesong
from whalesong.modules.llm import hidden_states, init_cache, next_hidden_states

WARM_UP = 2
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}


def measure_session(case: Case, folder: Path) -> dict[str, Any]:
    """Seconds of each frame of a session that hears noise, piece by piece of 80 ms."""
    if case["model"] is None:
        codec = save_random_codec(folder / "codec.safetensors", case)
        model, _ = build_model(case, folder, codec=codec)
    else:
        model = whalesong.load(case["model"])
    session = model.eval().start_session()
    step = model.model.counter.samples_per_frame
    noise = torch.Generator().manual_seed(1)
    for _ in range(25):  # also fills what waits for frames
        session.step(0.1 * torch.randn(step, generator=noise))
    timings, samples = Timings(), []
    for _ in range(round(case["seconds"] / model.model.frame_length)):
        pcm = 0.1 * torch.randn(step, generator=noise)
        timings.start()
        answer = session.step(pcm)
        timings.stop()
        samples.append(answer.audio)
    return spread(timings) | {
        "frame_length": model.model.frame_length,
        "loudness": float(torch.cat(samples).square().mean().sqrt()),
    }


def spread(timings: Timings) -> dict[str, Any]:
    """Mean, percentiles, and the mean of the last quarter over that of the first, by each clock."""
    result: dict[str, Any] = {}
    for clock in ("cpu", "wall"):
        seconds = torch.tensor(getattr(timings, clock), dtype=torch.float64)
        quarter = max(len(seconds) // 4, 1)
        result[clock] = {name: float(seconds.quantile(q)) for name, q in QUANTILES.items()} | {
            "mean": float(seconds.mean()),
            "growth": float(seconds[-quarter:].mean() / seconds[:quarter].mean()),
        }
    return result


@torch.no_grad()
def measure_llm(case: Case, folder: Path) -> dict[str, Any]:
    """CPU seconds of the LLM over `seconds` of frames: with its cache, and all anew each frame."""
    codec = save_random_codec(folder / "codec.safetensors", case)
    model, _ = build_model(case, folder, codec=codec)
    llm, frames = model.eval().model.llm, round(case["seconds"] * 12.5)
    embeds = torch.randn(1, frames, case["width"])
    cache, outputs = init_cache(llm), []
    began = time.process_time()
    for frame in range(frames):
        outputs.append(next_hidden_states(llm, embeds[:, frame : frame + 1], cache))
    cached = time.process_time() - began
    began = time.process_time()
    for frame in range(frames):
        mask = torch.ones(1, frame + 1, dtype=torch.bool)
        anew = hidden_states(llm, embeds[:, : frame + 1], mask)[:, -1:]
        torch.testing.assert_close(anew, outputs[frame], atol=1e-3, rtol=1e-3)
    return {"cached": cached, "anew": time.process_time() - began, "frames": frames}


def measure_training(case: Case, folder: Path) -> dict[str, Any]:
    """Losses, seconds and peak memory of steps of AdamW, on our side or NeMo's."""
    ours, config = build_model(case, folder, codec=save_nemo_codec(folder / "codec.nemo"))
    batch = training_batch(ours, case)
    if case["work"] == "train":
        ours.train()
        model, loss_of = ours, lambda: ours.parts.loss.loss_fn(batch)["loss"]
    else:
        model = build_twin(ours, config).train()
        model.log_dict = lambda *values, **options: None  # there is no trainer to log to
        del ours
        loss_of = lambda: model.training_step(batch, 0)["loss"]  # noqa: E731
    return train(model, loss_of, steps=case["steps"])


def train(model: torch.nn.Module, loss_of: Callable[[], Tensor], *, steps: int) -> dict[str, Any]:
    """Steps on one batch over and over."""
    # Weights that are mapped from a file count as memory only once they were read.
    for tensor in model.state_dict().values():
        tensor.sum()
    reset_peak()
    base = resident_bytes()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    losses, timings = [], Timings()
    for _ in range(WARM_UP + steps):
        timings.start()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        timings.stop()
        losses.append(float(loss.detach()))
    peak = resident_bytes("VmHWM") - base
    return {"losses": losses, "seconds": timings.medians(skip=WARM_UP), "above_weights": peak}


WORK = {
    "session": measure_session,
    "without cache": measure_session,
    "llm": measure_llm,
    "train": measure_training,
    "train nemo": measure_training,
}


def main(case: Case) -> None:
    """Do the work of a case and print what was measured."""
    warnings.simplefilter("ignore")
    nemo_logging.setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = WORK[case["work"]](case, Path(folder))
    print(json.dumps({**result, "peak": resident_bytes("VmHWM")}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
