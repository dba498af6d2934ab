"""What an evaluation of a codec language model found, as JSON and as a table."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from whalesong.core.atomic import atomic_write
from whalesong.metrics.frechet import FrechetDistance, FrechetInfinity

NAME_WIDTH, VALUE_WIDTH = 24, 11


@dataclass(frozen=True)
class Likelihoods:
    """Values of `CodeLikelihood` on the held-out set, and `bits_0`, ... of each codebook."""

    trained: dict[str, float]
    untrained: dict[str, float]
    """The same configuration before training, on the same pretrained parts."""
    unigram: dict[str, float] | None
    """A model that knows only how frequent each code is in the training set."""


@dataclass(frozen=True)
class SetDistance:
    """How far a set of clips is from the reference."""

    fad: FrechetDistance
    infinity: FrechetInfinity
    kad: float
    per_song: list[float | None]
    """The Frechet distance of each clip alone; None for a clip of one window."""


@dataclass(frozen=True)
class ClapScores:
    """Cosine similarities of captions and audio."""

    generated: list[float]
    """Of each generated clip."""
    real: list[float] | None
    """Of the recording of each caption; None if the set has no recordings."""
    shuffled: float | None
    """Mean of all generated clips with captions of others: the level of chance. None if all
    captions are the same."""


@dataclass(frozen=True)
class GeneratedClip:
    """Of which held-out clip the conditions were, and how the audio is generated again."""

    id: str
    caption: str
    seconds: float
    seed: int
    log_prob: float


@dataclass(frozen=True)
class EvaluationResult:
    """All values of one evaluation, and what is needed to have them again."""

    settings: dict[str, Any]
    generation: dict[str, Any]
    """Settings of generation, those of the model included."""
    versions: dict[str, str]
    codec: str
    embedder: str
    """Whose embeddings the distances compare."""
    num_reference: int
    """Clips of the reference."""
    likelihood: Likelihoods
    generated: SetDistance
    round_trip: SetDistance
    """Of as many clips of the reference, encoded and decoded: what the codec itself costs."""
    clap: ClapScores | None
    clips: list[GeneratedClip]
    notes: list[str]
    """What to know before the values are believed."""


def write_result(result: EvaluationResult, path: str | Path) -> None:
    """Write one JSON file whole or not at all; values that are not finite become null."""
    content = json.dumps(_finite(asdict(result)), indent=2, ensure_ascii=False).encode() + b"\n"
    with atomic_write(path, need=len(content)) as (sink, _):
        sink.write(content)


def format_table(result: EvaluationResult) -> str:
    """The values in lines of a name, the model's value, and what to compare it with."""
    title = f"{len(result.clips)} generated clips, {result.num_reference} of the reference"
    lines = [f"{'':<{NAME_WIDTH}}{'model':>{VALUE_WIDTH}}   compare with"]
    for name, value, others in _rows(result):
        compared = ", ".join(f"{key} {_number(other)}" for key, other in others.items())
        lines.append(f"{name:<{NAME_WIDTH}}{_number(value):>{VALUE_WIDTH}}   {compared}".rstrip())
    notes = [f"Note: {note}" for note in result.notes]
    return "\n".join([f"{title}; codec {result.codec}", *lines, *notes])


Row = tuple[str, float | None, dict[str, float | None]]


def _rows(result: EvaluationResult) -> Iterator[Row]:
    yield from _likelihood_rows(result.likelihood)
    yield from _distance_rows(result)
    if (clap := result.clap) is not None:
        real = {} if clap.real is None else {"real": fmean(clap.real)}
        yield "CLAP score", fmean(clap.generated), {**real, "shuffled captions": clap.shuffled}


def _likelihood_rows(likelihood: Likelihoods) -> Iterator[Row]:
    names = {"nll": "NLL (nats per code)", "ppl": "perplexity", "bits": "bits per code"}
    for index in range(sum(key.startswith("nll_") for key in likelihood.trained)):
        names[f"nll_{index}"] = f"NLL of codebook {index}"
    for key, name in names.items():
        baselines = {"untrained": likelihood.untrained, "unigram": likelihood.unigram}
        others = {label: values[key] for label, values in baselines.items() if values is not None}
        yield name, likelihood.trained[key], others


def _distance_rows(result: EvaluationResult) -> Iterator[Row]:
    model, codec = result.generated, result.round_trip
    yield f"FAD ({result.embedder})", model.fad.value, {"codec": codec.fad.value}
    yield "FAD infinity", model.infinity.value, {"codec": codec.infinity.value}
    yield "  r2 of its line", model.infinity.r2, {"codec": codec.infinity.r2}
    yield "FAD per song, median", _median(model), {"codec": _median(codec)}
    yield "KAD", model.kad, {"codec": codec.kad}


def _median(distance: SetDistance) -> float | None:
    known = [value for value in distance.per_song if value is not None]
    return median(known) if known else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _finite(value: Any) -> Any:
    """A copy of nested data without NaN and infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
