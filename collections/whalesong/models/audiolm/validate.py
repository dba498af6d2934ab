"""Checks before a training: manifests, durations, codes, forward pass, first loss, gradients."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, log
from random import Random
from typing import Any

import torch
from torch import Tensor

from whalesong.core.errors import DataError, UserError
from whalesong.core.parts import Batch
from whalesong.data.config import DataConfig
from whalesong.data.conversation import Example
from whalesong.data.datamodule import check_inputs
from whalesong.data.faults import cause
from whalesong.data.plan import BatchPlan, make_plan
from whalesong.models.audiolm.audiolm import AudioLMModel
from whalesong.sound.codec_info import describe_codec

NUM_CLIPS = 32
"""Clips of each data set whose codes are read."""

BATCH_SIZE = 2
"""Clips that go through the model at once."""

LEAST_KEPT = 0.5
"""Share of the clips below which the filters are wrong for the data."""

NUM_BATCHES = 4
"""Batches whose loss is looked at."""

LOSS_TOLERANCE = 2.0
"""Nats by which the first loss of a quantizer may be off a guess. Tied heads are about 0.5 off, and
1 more by chance where few clips hold few different codes; wrong tables are off by tens."""


@dataclass(frozen=True)
class Finding:
    """What one check has found, in one line."""

    check: str
    found: str
    is_wrong: bool = False

    def __str__(self) -> str:
        return f"{'WRONG' if self.is_wrong else 'ok':<6}{self.check:<12}{self.found}"


@dataclass
class Survey:
    """One data set by its metadata."""

    name: str
    plan: BatchPlan
    num_clips: int = 0
    lengths: list[float] = field(default_factory=list)
    """Seconds of the clips that the filters keep."""
    sample: list[Example] = field(default_factory=list)
    """Some of them."""


def check_training(
    section: Mapping[str, Any], data: DataConfig, *, seed: int = 0, device: str = "cpu"
) -> Iterator[Finding]:
    """Look at everything that a training needs; ends at the first check that later ones rest on.

    Args:
        section: the `model` section.
        data: the `data` section.
        seed: of the untrained weights.
        device: where the model runs.
    """
    try:
        check_inputs(data, ("train_ds", "validation_ds"))
    except UserError as error:
        yield Finding("manifests", str(error), is_wrong=True)
        return
    torch.manual_seed(seed)
    try:
        model = AudioLMModel(section).to(device).eval()
    except UserError as error:
        yield Finding("model", str(error), is_wrong=True)
        return
    yield from check_model(model, data)


def check_model(model: AudioLMModel, data: DataConfig) -> Iterator[Finding]:
    """As `check_training`, of a model in evaluation that is there."""
    yield Finding("model", _describe(model))
    check = "manifests"
    try:
        surveys = [survey(name, plan) for name, plan in _plans(model, data)]
        yield _manifests(surveys)
        yield _durations(surveys)
        if not surveys[0].sample:
            return
        check = "codes"
        batches = {item.name: list(_batches(model, item)) for item in surveys}
        yield _codes(model, [batch for group in batches.values() for batch in group])
        check = "forward"
        yield from _learning(model, batches["train"][:NUM_BATCHES])
    except UserError as error:
        yield Finding(check, str(error), is_wrong=True)
    except (RuntimeError, ValueError) as error:
        yield Finding(check, f"{type(error).__name__}: {cause(error)}.", is_wrong=True)


def survey(name: str, plan: BatchPlan) -> Survey:
    """Read the metadata of all clips of a plan.

    Raises:
        DataError: a manifest cannot be read, or the filters leave nothing.
    """
    found, rng = Survey(name, plan), Random(0)
    for source in plan.sources:
        for example in source.iterate(0, shuffle=False, buffer_size=1):
            found.num_clips += 1
            if not plan.filters.keeps(example):
                continue
            found.lengths.append(example.duration)
            if len(found.sample) < NUM_CLIPS:
                found.sample.append(example)
            elif (place := rng.randrange(len(found.lengths))) < NUM_CLIPS:
                found.sample[place] = example
    return found


def _plans(model: AudioLMModel, data: DataConfig) -> Iterator[tuple[str, BatchPlan]]:
    """The plans of the training set and of each validation set."""
    sets = {"train": ("data.train_ds", data.train_ds)}
    if data.validation_ds is not None:
        named = data.validation_ds.named_sets(path="data.validation_ds")
        sets |= {name: (f"data.validation_ds.datasets.{name}", one) for name, one in named.items()}
    for name, (path, dataset) in sets.items():
        yield (
            name,
            make_plan(
                dataset,
                path=path,
                shuffle=False,
                on_bad_cut=data.on_bad_cut,
                measure_tokens=model.parts.train_collator.measure_tokens,
            ),
        )


def _describe(model: AudioLMModel) -> str:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    codec = describe_codec(model.model.pretransform)
    return f"{trained / 1e6:.1f} M parameters to train; codec {codec}"


def _manifests(surveys: Sequence[Survey]) -> Finding:
    parts, lost = [], 0
    for one in surveys:
        parts.append(f"{one.name}: {one.num_clips} clips")
        lost += one.plan.faults.total
    left_out = f"; {lost} entries left out, see above" if lost else ""
    return Finding("manifests", ", ".join(parts) + left_out)


def _durations(surveys: Sequence[Survey]) -> Finding:
    parts, is_wrong = [], False
    for one in surveys:
        share = len(one.lengths) / max(one.num_clips, 1)
        text = f"{one.name}: {share:.0%} kept"
        if one.lengths:
            hours = sum(one.lengths) / 3600
            text += f", {min(one.lengths):.1f} to {max(one.lengths):.1f} s, {hours:.2f} h"
        if one.plan.filters.dropped:
            text += f" ({one.plan.filters.summary()})"
        is_wrong |= share < LEAST_KEPT
        parts.append(text)
    return Finding("durations", "; ".join(parts), is_wrong)


def _batches(model: AudioLMModel, found: Survey) -> Iterator[Batch]:
    """The sample of a data set, read and put into small batches.

    Raises:
        DataError: a clip cannot be read, or its codes do not fit the codec, unless `on_bad_cut`
            leaves such clips out.
    """
    collator, clips = model.parts.validation_collator, []
    for example in found.sample:
        try:
            clips.append(collator.load(example))
        except DataError as error:
            found.plan.faults.report(str(error))
    for first in range(0, len(clips), BATCH_SIZE):
        batch = collator(clips[first : first + BATCH_SIZE])
        yield model.transfer_batch_to_device(batch, model.device, 0)


@torch.no_grad()
def _codes(model: AudioLMModel, batches: Sequence[Batch]) -> Finding:
    """Quantizers, range and frame rate; codes that are all the same are no codes of audio."""
    lm, rate = model.model.lm, model.model.frame_rate
    seen = [torch.zeros(size, dtype=torch.bool) for size in lm.codebook_sizes]
    for batch in batches:
        arrangement = model.model.arrangement(batch)
        lm.check_codes(arrangement.codes, arrangement.lens, name="codes")
        for used, codes in zip(seen, arrangement.codes.unbind(1), strict=True):
            used[codes[arrangement.mask].cpu()] = True
    counts = [int(used.sum()) for used in seen]
    used = f"{', '.join(map(str, counts))} of {_distinct(lm.codebook_sizes)}"
    found = f"{len(seen)} quantizers at {rate:g} frames/s; ids in use: {used}"
    return Finding("codes", found, is_wrong=min(counts) < 2)


def _learning(model: AudioLMModel, batches: Sequence[Batch]) -> Iterator[Finding]:
    """Loss of some batches in all stages, and what goes back from it."""
    loss, num_clips, num_frames = 0.0, 0, 0
    sums: dict[str, Tensor] = {}
    for batch in batches:
        outputs = model.parts.loss.loss_fn(batch)
        num_clips += len(batch["ids"])
        num_frames += int(outputs["num_targets"])
        loss += float(outputs["loss"].detach()) / len(batches)
        sums = {name: sums.get(name, 0) + value for name, value in outputs["sums"].items()}
        outputs["loss"].backward()
    found = f"{num_clips} clips, {num_frames} frames to learn, loss {loss:.3f}"
    is_wrong = not isfinite(loss) or num_frames == 0
    yield Finding("forward", found, is_wrong)
    if not is_wrong:
        yield _first_loss(model, sums)
        yield _gradients(model)
    model.zero_grad(set_to_none=True)


def _first_loss(model: AudioLMModel, sums: Mapping[str, Tensor]) -> Finding:
    """The loss of each quantizer beside that of a guess."""
    guesses = [log(size) for size in model.model.lm.codebook_sizes]
    parts, furthest = [], 0.0
    for quantizer, guess in enumerate(guesses):
        if (count := float(sums["codes"][quantizer])) == 0:
            continue
        nats = float(sums["nll"][quantizer]) / count
        parts.append(f"q{quantizer} {nats:.2f}")
        furthest = max(furthest, abs(nats - guess))
    found = f"{', '.join(parts)} nats; a guess: {_distinct(f'{guess:.2f}' for guess in guesses)}"
    if (start := model.cfg.get("init_from")) is not None:
        return Finding("first loss", f"{found}; goes on from {start}")
    return Finding("first loss", found, is_wrong=furthest > LOSS_TOLERANCE)


def _gradients(model: AudioLMModel) -> Finding:
    """Every gradient must be finite, and one must be there."""
    trained = [(name, p.grad) for name, p in model.named_parameters() if p.requires_grad]
    given = [(name, grad) for name, grad in trained if grad is not None]
    for name, grad in given:
        if not grad.isfinite().all():
            return Finding("gradients", f"{name} has one that is not finite", is_wrong=True)
    norm = float(torch.stack([grad.norm() for _, grad in given]).norm()) if given else 0.0
    found = f"finite in {len(given)} of {len(trained)} tensors, norm {norm:.3g}"
    return Finding("gradients", found, is_wrong=norm == 0)


def _distinct(values: Iterable[object]) -> str:
    """One value where all are the same, else all."""
    texts = list(map(str, values))
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)
