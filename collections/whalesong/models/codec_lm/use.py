"""Using a trained codec language model: its likelihood of a test set, and requests for audio."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import soundfile
import torch
from lhotse import Recording
from torch import Tensor
from tqdm import tqdm

from whalesong.core.atomic import atomic_path
from whalesong.core.errors import ConfigError, DataError
from whalesong.core.job_config import PredictConfig
from whalesong.core.parts import Batch, Evaluation
from whalesong.core.totals import EvaluationTotals
from whalesong.data.channels import load_channels
from whalesong.metrics.clap import ClapScorer
from whalesong.models.codec_lm.config import SampleSettings
from whalesong.models.codec_lm.progress import StepBar
from whalesong.models.codec_lm.request import Clip, make_request
from whalesong.models.codec_lm.rerank import rerank
from whalesong.models.codec_lm.samples import log_samples

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
    settings = dict(request.generation)
    seed = settings.pop("seed", None)
    num_candidates = settings.pop("num_candidates", 1)
    clap = settings.pop("clap", None)
    metadata = _metadata(model, request)
    folder = Path(request.output_dir or "generated")
    try:
        generator = model.parts.predictor.generator(**settings)
        wanted = make_request(
            metadata,
            begin=_clips(model, request.begin, len(metadata)),
            seconds=generator.settings.seconds,
            seeds=seed,
        )
        result = rerank(
            generator,
            wanted,
            num_candidates=num_candidates,
            texts=None if clap is None else [_text(model, row) for row in metadata],
            scorer=None if clap is None else ClapScorer(clap),
            progress=StepBar(),
        )
    except (ValueError, OSError) as error:
        raise ConfigError(f"`predict`: {str(error).splitlines()[0]}") from error
    for row, audio in enumerate(result.best.audio):
        path = folder / f"{row + 1:03d}.wav"
        write_wav(path, audio, model.sample_rate)
        print(f"{_text(model, metadata[row]) or 'audio'}: {path}")
        yield {
            "wav": str(path),
            "conditions": _printable(metadata[row]),
            "seed": result.best.seeds[row],
            "seeds": result.seeds[row].tolist(),
            "scores": [round(score, 4) for score in result.scores[row].tolist()],
        }


def log_fixed_prompts(model: "CodecLMModel", settings: SampleSettings) -> None:
    """Generate for the same prompts with the same seed as ever, and log what comes out.

    Raises:
        ConfigError: the prompts do not fit the model.
    """
    metadata = _metadata(model, PredictConfig(conditions=settings.prompts))
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
            caption=str(_printable(row)),
        )


def read_clip(path: str | Path, *, sample_rate: int, num_channels: int) -> Tensor:
    """The audio of a file as (C, N) at this rate.

    Raises:
        DataError: naming the file.
    """
    if not Path(path).is_file():
        raise DataError(f"the audio file '{path}' does not exist.")
    cut = Recording.from_file(path).to_cut()
    return load_channels(cut, sample_rate=sample_rate, num_channels=num_channels)


def write_wav(path: Path, audio: Tensor, sample_rate: int) -> None:
    """Write audio (C, N) whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as unfinished:
        soundfile.write(unfinished, audio.clamp(-1, 1).T.cpu().numpy(), sample_rate, format="WAV")


def _metadata(model: "CodecLMModel", request: PredictConfig) -> list[dict[str, Any]]:
    """Conditions of each row: those of the request, with prompts and audio at their ids.

    A recording is the path of its file in the request, and is read here.
    """
    count = max(map(len, (request.conditions, request.prompts, request.audio, request.begin)))
    nothing = dict.fromkeys(model.condition_ids)
    rows = [{**nothing, **row} for row in _spread(request.conditions or [{}], count, "conditions")]
    if request.prompts:
        text_id = _id_of(model.text_ids, "prompts", "text")
        for row, text in zip(rows, _spread(request.prompts, count, "prompts"), strict=True):
            row[text_id] = text
    if request.audio:
        audio_id = _id_of(model.recording_ids, "audio", "audio prompt")
        for row, clip in zip(rows, _clips(model, request.audio, count), strict=True):
            row[audio_id] = clip
    for row in rows:
        if unknown := [name for name in row if name not in nothing]:
            known = ", ".join(nothing) or "none"
            raise ConfigError(
                f"`predict.conditions` names '{unknown[0]}', but the model's conditions are: "
                f"{known}."
            )
        for name in model.recording_ids:
            if isinstance(row[name], str):
                (row[name],) = _clips(model, [row[name]], 1)
    return rows


def _id_of(ids: Sequence[str], key: str, kind: str) -> str:
    if not ids:
        raise ConfigError(f"`predict.{key}` needs a model with a condition of type {kind}, "
                          "but this one has none.")  # fmt: skip
    return ids[0]


def _spread(values: Sequence[Any], count: int, key: str) -> list[Any]:
    """One value for each row: as they are, or the only one for all."""
    if len(values) not in (1, count):
        raise ConfigError(f"`predict.{key}` must have one entry, or one for each of {count} rows, "
                          f"but has {len(values)}.")  # fmt: skip
    return list(values) * count if len(values) == 1 else list(values)


def _clips(model: "CodecLMModel", paths: Sequence[str], count: int) -> list[Clip]:
    if not paths:
        return [None] * count
    codec = model.model.pretransform
    clips = {
        path: read_clip(path, sample_rate=codec.sample_rate, num_channels=codec.num_channels)
        for path in dict.fromkeys(paths)
    }
    return [clips[path] for path in _spread(paths, count, "begin")]


def _text(model: "CodecLMModel", row: dict[str, Any]) -> str:
    return str(row.get(model.text_ids[0]) or "") if model.text_ids else ""


def _printable(row: dict[str, Any]) -> dict[str, Any]:
    """The conditions that are no tensors."""
    return {name: value for name, value in row.items() if not isinstance(value, Tensor)}
