"""Using a trained codec language model: its likelihood of a test set, and requests for audio."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from whalesong.core.config.job import PredictConfig, check_unused
from whalesong.core.errors import ConfigError
from whalesong.core.parts import Batch, Evaluation
from whalesong.core.training.totals import EvaluationTotals
from whalesong.metrics.clap import ClapScorer
from whalesong.models.codec_lm.config import SampleSettings
from whalesong.models.codec_lm.request import make_request
from whalesong.models.codec_lm.rerank import rerank
from whalesong.sound.conditions import printable, row_conditions, text_of
from whalesong.sound.progress import StepBar
from whalesong.sound.rows import read_clips
from whalesong.sound.samples import log_samples
from whalesong.sound.wav import write_wav

if TYPE_CHECKING:
    from whalesong.models.codec_lm.codec_lm import CodecLMModel


@torch.no_grad()
def evaluate(model: "CodecLMModel", loader: Iterable[Batch], *, description: str) -> Evaluation:
    """Negative log-likelihood and perplexity, of all codes and of each codebook."""
    totals = EvaluationTotals({}, loss_metrics=model.parts.loss_metrics)
    for batch in tqdm(loader, desc=description, unit="batch"):
        batch = model.transfer_batch_to_device(batch, model.device, 0)
        totals.add_loss(model.parts.loss.loss_fn(batch))
    values = totals.compute(totals.counts())
    summary = f"NLL {values['nll']:.3f} nats, perplexity {values['ppl']:.1f} of a code"
    return Evaluation(summary, [values])


def answer(model: "CodecLMModel", request: PredictConfig) -> Iterator[dict[str, Any]]:
    """Generate what `predict` asks for into wav files, all rows as one batch.

    Raises:
        ConfigError: the request does not fit the model.
        DataError: an audio file cannot be read.
    """
    check_unused(request, ("end",), family="a codec language model")
    settings = dict(request.generation)
    seed = settings.pop("seed", None)
    num_candidates = settings.pop("num_candidates", 1)
    clap = settings.pop("clap", None)
    codec = model.model.pretransform
    rows = max(map(len, (request.conditions, request.prompts, request.audio, request.begin)))
    metadata = row_conditions(model, request, rows=rows, codec=codec)
    folder = Path(request.output_dir or "generated")
    try:
        generator = model.parts.predictor.generator(**settings)
        wanted = make_request(
            metadata,
            begin=read_clips(request.begin, rows, key="begin", codec=codec),
            seconds=generator.settings.seconds,
            seeds=seed,
        )
        result = rerank(
            generator,
            wanted,
            num_candidates=num_candidates,
            texts=None if clap is None else [text_of(model, row) for row in metadata],
            scorer=None if clap is None else ClapScorer(clap),
            progress=StepBar(),
        )
    except (ValueError, OSError) as error:
        raise ConfigError(f"`predict`: {str(error).splitlines()[0]}") from error
    for row, audio in enumerate(result.best.audio):
        path = folder / f"{row + 1:03d}.wav"
        write_wav(path, audio, model.sample_rate)
        print(f"{text_of(model, metadata[row]) or 'audio'}: {path}")
        yield {
            "wav": str(path),
            "conditions": printable(metadata[row]),
            "seed": result.best.seeds[row],
            "seeds": result.seeds[row].tolist(),
            "scores": [round(score, 4) for score in result.scores[row].tolist()],
        }


def log_fixed_prompts(model: "CodecLMModel", settings: SampleSettings) -> None:
    """Generate for the same prompts with the same seed as ever, and log what comes out.

    Raises:
        ConfigError: the prompts do not fit the model.
    """
    request = PredictConfig(conditions=settings.prompts)
    metadata = row_conditions(
        model, request, rows=len(settings.prompts), codec=model.model.pretransform
    )
    changes = {} if settings.seconds is None else {"seconds": settings.seconds}
    try:
        made = model.generate_audio(metadata, seeds=settings.seed, **changes)
    except ValueError as error:
        raise ConfigError(f"`model.samples`: {error}") from error
    for number, (row, audio) in enumerate(zip(metadata, made.audio, strict=True), start=1):
        log_samples(
            model.trainer.loggers,
            f"sample_{number}",
            audio,
            model.sample_rate,
            step=model.trainer.global_step,
            caption=str(printable(row)),
        )
