"""One case of the AudioLM benchmark, in a process of its own.

`audiolm_side.py CASE`: CASE is JSON, and so is what was measured, the last line printed.
"""

import json
import sys
import time
import warnings
from statistics import median
from typing import Any

import torch
from measure import Timings, reset_peak, resident_bytes
from torch import Tensor
from torch.nn import functional

from whalesong.models.audiolm.arrangement import Arrangement
from whalesong.models.audiolm.generation import CodesGenerator, CodesRequest, GeneratedCodes
from whalesong.models.audiolm.model import AudioLM
from whalesong.modules.generation.guided import STEPS_THAT_PAY
from whalesong.modules.generation.sampling import SamplingSettings

QUANTIZERS, CODEBOOK_SIZE = 4, 1024
PROMPT_FRAMES, TARGET_FRAMES = 150, 225
WARM_UP, STEPS = 1, 5

Case = dict[str, Any]


def build_model(case: Case) -> AudioLM:
    """A random model; both halves are of the same size."""
    width = case["d_model"]
    return AudioLM(
        width,
        max(width // 64, 2),
        case["num_layers"],
        QUANTIZERS,
        codebook_size=CODEBOOK_SIZE,
        dropout=0.0,
    )


def random_codes(case: Case, frames: int) -> Tensor:
    """Codes (B, K, frames)."""
    return torch.randint(CODEBOOK_SIZE, (case["rows"], QUANTIZERS, frames))


def request_of(prompt: Tensor, frames: int) -> CodesRequest:
    """New frames behind a prompt (B, K, f)."""
    lens = torch.full((len(prompt),), prompt.shape[2])
    return CodesRequest.onward(
        prompt,
        lens,
        max_frames=torch.full_like(lens, frames),
        seeds=range(len(prompt)),
        variants=[(None, 1.0)],
    )


def generate(
    generator: CodesGenerator, request: CodesRequest
) -> tuple[GeneratedCodes, dict[str, float]]:
    """What is generated, and CPU seconds: of the prompt and the first frame, of each further frame
    of the first half, and of all frames of the second half."""
    marks = [time.process_time()]
    made = generator.generate(request, progress=lambda *_: marks.append(time.process_time()))
    end, frames = time.process_time(), int(request.max_frames.max())
    return made, {
        "prompt": marks[1] - marks[0],
        "frame": (marks[-1] - marks[1]) / (frames - 1),
        "second_half": end - marks[-1],
    }


def time_generation(case: Case) -> dict[str, Any]:
    """Seconds of generations of several lengths."""
    model, prompt = build_model(case).eval(), random_codes(case, PROMPT_FRAMES)
    generator = CodesGenerator(
        model,
        sampling=SamplingSettings(top_k=0),
        stop_on_eos=False,
        weight_dtype=case["weight_dtype"],
    )
    generate(generator, request_of(prompt, STEPS_THAT_PAY))  # packs the weights
    turns = [
        [generate(generator, request_of(prompt, frames))[1] for frames in case["frames"]]
        for _ in range(case["turns"])
    ]
    lengths = list(zip(*turns, strict=True))
    return {
        part: [median(run[part] for run in runs) for runs in lengths]
        for part in ("prompt", "frame", "second_half")
    }


def time_without_cache(case: Case) -> dict[str, Any]:
    """Seconds of a greedy generation, and of its first half without any cache.

    Raises:
        RuntimeError: they do not give the same codes.
    """
    model, prompt = build_model(case).eval(), random_codes(case, PROMPT_FRAMES)
    generator = CodesGenerator(model, sampling=SamplingSettings(temperature=0.0), stop_on_eos=False)
    (frames,) = case["frames"]
    request = request_of(prompt, frames)
    generate(generator, request)
    made, seconds = generate(generator, request)
    began = time.process_time()
    codes = decode_without_cache(model, prompt, frames)
    without_cache = time.process_time() - began
    if not torch.equal(codes, made.codes[:, 0]):
        raise RuntimeError("greedy codes must be the same with and without a cache, but are not.")
    return {part: [value] for part, value in seconds.items()} | {"without_cache": [without_cache]}


@torch.no_grad()
def decode_without_cache(model: AudioLM, prompt: Tensor, frames: int) -> Tensor:
    """Greedy codes (B, n) of the first quantizer, everything computed anew for each frame."""
    codes, begins = prompt, torch.full((len(prompt),), prompt.shape[2])
    for _ in range(frames):
        codes = functional.pad(codes, (0, 1))
        ends = torch.full_like(begins, codes.shape[2])
        is_last = torch.arange(codes.shape[2]) == codes.shape[2] - 1
        never = torch.zeros_like(begins, dtype=torch.bool)
        arrangement = Arrangement(codes, ends, begins, ends, is_last.expand(len(codes), -1), never)
        logits = model.ar.score(arrangement).logits[:, :CODEBOOK_SIZE]
        codes[:, 0, -1] = logits.argmax(1)
    return codes[:, 0, prompt.shape[2] :]


def time_training(case: Case) -> dict[str, Any]:
    """Losses and seconds of steps of AdamW: the first half, and one stage of the second."""
    model = build_model(case).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    codes = random_codes(case, PROMPT_FRAMES + TARGET_FRAMES).transpose(1, 2)
    prompt, target = codes.split((PROMPT_FRAMES, TARGET_FRAMES), dim=1)
    lens = [torch.full((len(codes),), part.shape[1]) for part in (prompt, target)]
    losses, timings = [], Timings()
    for step in range(WARM_UP + STEPS):
        timings.start()
        stage = 1 + step % (QUANTIZERS - 1)
        output = model(prompt, lens[0], target, lens[1], nar_stage=stage)
        halves = [output.ar, *output.nar]
        loss = sum(functional.cross_entropy(half.logits, half.labels) for half in halves) / 2
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        timings.stop()
        losses.append(float(loss.detach()))
    return {"losses": losses, "step": timings.medians(skip=WARM_UP)["cpu"]}


WORK = {
    "generate": time_generation,
    "without cache": time_without_cache,
    "train": time_training,
}


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
