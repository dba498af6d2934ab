"""Using a trained AudioLM: its accuracy on a test set, and requests for audio."""

from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from whalesong.core.config.job import PredictConfig
from whalesong.core.errors import ConfigError, DataError
from whalesong.core.parts import Batch, Evaluation
from whalesong.core.training.totals import EvaluationTotals
from whalesong.models.audiolm.audio_generator import AudioGenerator
from whalesong.models.audiolm.config import AudioLMSamples
from whalesong.models.audiolm.request import Request, make_request
from whalesong.sound.conditions import printable, row_conditions
from whalesong.sound.progress import StepBar
from whalesong.sound.rows import Clip, read_clips, spread
from whalesong.sound.samples import log_samples
from whalesong.sound.wav import write_wav

if TYPE_CHECKING:
    from whalesong.models.audiolm.audiolm import AudioLMModel

FILES = ("begin", "end", "audio")
"""Keys of a request that are audio files."""


@torch.no_grad()
def evaluate(model: "AudioLMModel", loader: Iterable[Batch], *, description: str) -> Evaluation:
    """Losses and accuracies of both halves, all stages of the second one included."""
    totals = EvaluationTotals({}, loss_metrics=model.parts.loss_metrics)
    for batch in tqdm(loader, desc=description, unit="batch"):
        batch = model.transfer_batch_to_device(batch, model.device, 0)
        totals.add_loss(model.parts.loss.loss_fn(batch))
    values = totals.compute(totals.counts())
    return Evaluation(summary_of(values), [values])


def summary_of(values: dict[str, float]) -> str:
    """Loss, and top-1 accuracy of the halves that were evaluated."""
    shares = [
        f"{half.upper()} top-1 {100 * values[key]:.1f} %"
        for half in ("ar", "nar")
        if (key := f"{half}_top1") in values
    ]
    return ", ".join([f"loss {values['loss']:.3f} nats", *shares])


def answer(model: "AudioLMModel", request: PredictConfig) -> Iterator[dict[str, Any]]:
    """Generate what `predict` asks for into wav files, all rows as one batch.

    `begin` is gone on from. With `end` what lies between both is filled in, `max_seconds` long.
    With `audio` that is kept, in the style of `begin`.

    Raises:
        ConfigError: the request does not fit the model.
        DataError: an audio file cannot be read.
    """
    check_files(request)
    settings = dict(request.generation)
    seed = settings.pop("seed", None)
    num_candidates = settings.pop("num_candidates", 1)
    streams = settings.pop("stream", False)
    codec = model.model.pretransform
    rows = max(len(getattr(request, key)) for key in ("conditions", "prompts", *FILES))
    plain = request.model_copy(update={"audio": []})  # it is no condition here
    metadata = row_conditions(model, plain, rows=rows, codec=codec)
    clips = {key: read_clips(getattr(request, key), rows, key=key, codec=codec) for key in FILES}
    try:
        generator = model.parts.predictor.generator(**settings)
        wanted = make_request(
            begin=clips["begin"],
            end=clips["end"],
            conditioning=metadata,
            seconds=generator.settings.max_seconds,
            seeds=seed,
        )
        if request.audio:
            made = _restyled(generator, wanted, clips["audio"])
        elif streams:
            made = _streamed(generator, wanted, num_candidates)
        else:
            made = _generated(generator, wanted, num_candidates)
    except (ValueError, OSError) as error:
        raise ConfigError(f"`predict`: {str(error).splitlines()[0]}") from error
    names = {
        key: spread(getattr(request, key), rows, key=key) for key in FILES if getattr(request, key)
    }
    folder = Path(request.output_dir or "generated")
    for row, (audio, facts) in enumerate(made):
        path = folder / f"{row + 1:03d}.wav"
        write_wav(path, audio, model.sample_rate)
        files = {key: paths[row] for key, paths in names.items()}
        print(f"{', '.join(files.values()) or 'audio'}: {path}")
        yield {"wav": str(path), **files, "conditions": printable(metadata[row]), **facts}


def check_files(request: PredictConfig) -> None:
    """Refuse files that do not go together.

    Raises:
        ConfigError: naming the key.
    """
    if request.audio and not request.begin:
        raise ConfigError("`predict.begin` must name the style of `predict.audio`, but is empty.")
    if request.audio and request.end:
        raise ConfigError("`predict.end` must be empty where `predict.audio` is given, but is not.")


Made = list[tuple[Tensor, dict[str, Any]]]
"""Audio (C, N) of each row, and what else is to be told of it."""


def _generated(generator: AudioGenerator, request: Request, num_candidates: int) -> Made:
    made = generator.generate(request, num_candidates=num_candidates, progress=StepBar())
    facts = zip(made.seeds, made.candidate_seeds, made.candidate_log_probs, strict=True)
    return [
        (
            audio,
            {
                "seed": seed,
                "seeds": seeds,
                "scores": [round(score, 4) if isfinite(score) else None for score in scores],
            },
        )
        for audio, (seed, seeds, scores) in zip(made.audio, facts, strict=True)
    ]


def _streamed(generator: AudioGenerator, request: Request, num_candidates: int) -> Made:
    if num_candidates != 1:
        raise ValueError(f"`num_candidates` must be 1 in a stream, but is {num_candidates}.")
    stream = generator.stream(request)
    rows = [torch.zeros(generator.codec.num_channels, 0)] * len(request)
    for piece in stream:
        rows = [torch.cat((row, new.cpu()), dim=1) for row, new in zip(rows, piece, strict=True)]
    if stream.real_time_factor is not None:
        print(f"first audio after {stream.first_audio_seconds:.2f} s, in all "
              f"{stream.real_time_factor:.2f} s for each new second")  # fmt: skip
    return [(audio, {"seed": seed}) for audio, seed in zip(rows, request.seeds, strict=True)]


def _restyled(generator: AudioGenerator, request: Request, content: list[Clip]) -> Made:
    made = generator.transfer_style(content, request)
    return [(audio, {"seed": seed}) for audio, seed in zip(made.audio, made.seeds, strict=True)]


def check_samples(settings: AudioLMSamples) -> None:
    """Refuse recordings that do not exist.

    Raises:
        DataError: naming the first one.
    """
    for path in settings.begin:
        if not Path(path).is_file():
            raise DataError(f"`model.samples.begin`: the audio file '{path}' does not exist.")


def log_continuations(model: "AudioLMModel", settings: AudioLMSamples) -> None:
    """Go on from the same recordings with the same seed as ever, and log what comes out.

    Raises:
        ConfigError: the conditions do not fit the model.
        DataError: a recording cannot be read.
    """
    codec, rows = model.model.pretransform, len(settings.begin)
    request = PredictConfig(conditions=[settings.conditions])
    metadata = row_conditions(model, request, rows=rows, codec=codec)
    begin = read_clips(settings.begin, rows, key="begin", codec=codec)
    try:
        made = model.generate_audio(begin, conditioning=metadata, seeds=settings.seed)
    except ValueError as error:
        raise ConfigError(f"`model.samples`: {error}") from error
    for number, (path, audio) in enumerate(zip(settings.begin, made.audio, strict=True), start=1):
        log_samples(
            model.trainer.loggers,
            f"continuation_{number}",
            audio,
            model.sample_rate,
            step=model.trainer.global_step,
            caption=Path(path).name,
        )
