"""Evaluating a trained codec language model: likelihood, distances to real audio, CLAP scores."""

import importlib.metadata
import platform
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from tqdm import tqdm

from whalesong import __version__
from whalesong.core.errors import ConfigError, DataError
from whalesong.core.schema import Schema
from whalesong.metrics.clap import ClapScorer
from whalesong.metrics.embeddings import Embedder, LogMelStatistics
from whalesong.metrics.frechet import (
    frechet_distance,
    frechet_distance_infinity,
    frechet_distance_per_song,
    kernel_distance,
)
from whalesong.models.codec_lm.codec_lm import CodecLMModel
from whalesong.models.codec_lm.evaluation.baselines import measure_likelihoods
from whalesong.models.codec_lm.evaluation.report import (
    ClapScores,
    EvaluationResult,
    GeneratedClip,
    Likelihoods,
    SetDistance,
    write_result,
)
from whalesong.models.codec_lm.evaluation.sets import (
    LEAST_CLIPS,
    ClipReader,
    RealClip,
    Reference,
    embed,
    embed_reference,
    open_shar,
    read_clips,
    read_held_out,
    through_codec,
)
from whalesong.models.codec_lm.generation import AudioGenerator, GeneratedAudio
from whalesong.models.codec_lm.request import make_request
from whalesong.models.codec_lm.rerank import rerank
from whalesong.sound.codec_info import describe_codec
from whalesong.sound.wav import write_wav

NUM_SAMPLES = 5
"""Clips that are written as wav files."""

PACKAGES = ("torch", "transformers", "lhotse", "numpy")
"""Whose versions may change a value."""


class EvaluationSettings(Schema):
    """What to evaluate, on what, and how."""

    archive: Path
    """The `.nemo` of a `CodecLMModel`."""
    held_out: Path
    """Shar that was not trained on: all of it is scored, and its conditions are generated for."""
    output: Path
    """JSON file for the result."""
    num_clips: int = Field(100, ge=LEAST_CLIPS)
    """Clips to generate, at most: one for each of the first ones of `held_out`."""
    seconds: float | None = Field(None, gt=0)
    """Length of generated and real clips; null for that of each held-out clip."""
    batch_size: int = Field(8, gt=0)
    """Clips at once; without influence on any value but for rounding."""
    guidance_scale: float | None = None
    """null for that of the model."""
    temperature: float | None = Field(None, ge=0)
    """null for that of the model."""
    seed: int = Field(0, ge=0)
    """Of the first clip; the next ones count on."""
    candidates: int = Field(1, gt=0)
    """Clips to choose each one from: by its CLAP score if there is `clap`, else by likelihood."""
    clap: str | None = None
    """Folder of a `transformers.ClapModel` with its tokenizer and feature extractor."""
    embedder: Literal["clap", "mel"] | None = None
    """What distances compare; null for clap if it is there, else mel."""
    reference: Path | None = None
    """Shar of real audio; null for the clips of `held_out` that are generated for."""
    train: Path | None = None
    """Shar that was trained on, for the unigram baseline."""
    samples: Path | None = None
    """Folder for a few generated, real and re-coded clips as wav files."""

    @model_validator(mode="after")
    def _check(self) -> "EvaluationSettings":
        if self.embedder == "clap" and self.clap is None:
            raise ValueError("has the `embedder` clap, but no `clap`")
        return self

    @property
    def embeds_with(self) -> str:
        """The embedder, "clap" or "mel"."""
        return self.embedder or ("mel" if self.clap is None else "clap")


def evaluate(settings: EvaluationSettings) -> EvaluationResult:
    """Evaluate as the settings say, and write the result and samples.

    Raises:
        ConfigError: a setting does not fit the model, or names nothing that exists.
        DataError: a set has no recordings, no captions or too few clips, or cannot be read.
        ArchiveError: there is no such model.
    """
    _check_files(settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scorer = None if settings.clap is None else load_scorer(settings.clap, device)
    model = CodecLMModel.restore_from(settings.archive, map_location=device)
    if scorer is not None and not model.text_ids:
        raise ConfigError("`clap` scores captions, but no condition of the model is a text.")
    generator = build_generator(model, settings)
    embedder = LogMelStatistics() if settings.embeds_with == "mel" else scorer.embed_windows
    clips, reference = read_sets(model, settings, embedder)
    likelihood = score_held_out(model, settings)
    captions = [str(clip.conditions[model.text_ids[0]]) for clip in clips] if model.text_ids else []
    made = generate_clips(generator, clips, settings, captions=captions, scorer=scorer)
    if settings.samples is not None:
        write_samples(settings.samples, model, made.audio, clips)
    songs = [embed(audio, model.sample_rate, embedder) for audio in made.audio]
    generated, notes = measure_distance(reference.rows, songs)
    round_trip, more_notes = measure_distance(reference.rows, reference.round_trip)
    scores = None
    if scorer is not None:
        real = [clip.audio for clip in clips]
        scores = measure_clap(scorer, captions, made.audio, real, model.sample_rate)
    result = EvaluationResult(
        settings=settings.model_dump(mode="json"),
        generation=generator.settings.model_dump(),
        versions=_versions(),
        codec=str(describe_codec(model.model.pretransform)),
        embedder=settings.embeds_with,
        num_reference=reference.num_clips,
        likelihood=likelihood,
        generated=generated,
        round_trip=round_trip,
        clap=scores,
        clips=_describe(clips, captions, made),
        notes=list(dict.fromkeys([*notes, *more_notes, *_notes(model, settings)])),
    )
    write_result(result, settings.output)
    return result


def load_scorer(name: str, device: torch.device) -> ClapScorer:
    """The CLAP model of a folder.

    Raises:
        ConfigError: it holds none.
    """
    try:
        return ClapScorer(name, device=device)
    except (OSError, ValueError) as error:
        raise ConfigError(
            "`clap` must be the folder of a ClapModel with its tokenizer and feature extractor, "
            f"but is '{name}'."
        ) from error


def build_generator(model: CodecLMModel, settings: EvaluationSettings) -> AudioGenerator:
    """A generator with what the settings change."""
    changes = {name: getattr(settings, name) for name in ("guidance_scale", "temperature")}
    given = {name: value for name, value in changes.items() if value is not None}
    return model.parts.predictor.generator(**given)


def read_sets(
    model: CodecLMModel, settings: EvaluationSettings, embedder: Embedder
) -> tuple[list[RealClip], Reference]:
    """The held-out clips to generate for, and the reference, embedded.

    Raises:
        DataError: see `read_held_out` and `embed_reference`.
    """
    collator = model.parts.validation_collator
    folder = settings.reference or settings.held_out
    clips = read_held_out(
        settings.held_out,
        ClipReader(collator, seconds=settings.seconds),
        num_clips=settings.num_clips,
        needs_audio=settings.reference is None,
    )
    real: Any = clips
    if settings.reference is not None:
        reader = ClipReader(collator, seconds=settings.seconds, with_conditions=False)
        real = read_clips(folder, reader)
    return clips, embed_reference(real, folder, model.model, embedder, num_decoded=len(clips))


def score_held_out(model: CodecLMModel, settings: EvaluationSettings) -> Likelihoods:
    """The likelihood of the whole held-out set, and that of the baselines."""
    collator, size = model.parts.validation_collator, settings.batch_size
    held_out = open_shar(settings.held_out, collator, batch_size=size)
    train = None
    if settings.train is not None:
        train = open_shar(settings.train, collator, batch_size=size)
    return measure_likelihoods(model, held_out, train=train, seed=settings.seed)


def generate_clips(
    generator: AudioGenerator,
    clips: Sequence[RealClip],
    settings: EvaluationSettings,
    *,
    captions: Sequence[str] = (),
    scorer: ClapScorer | None = None,
) -> GeneratedAudio:
    """Generate a clip for the conditions of each held-out one, each with a seed of its own."""
    scorer = scorer if settings.candidates > 1 else None
    parts = []
    with tqdm(total=len(clips), desc="generating", unit="clip") as bar:
        for begin in range(0, len(clips), settings.batch_size):
            batch = clips[begin : begin + settings.batch_size]
            request = make_request(
                [clip.conditions for clip in batch],
                batch_size=None,
                negative=None,
                begin=None,
                seconds=[clip.seconds for clip in batch],
                seeds=settings.seed + begin,
            )
            texts = captions[begin : begin + len(batch)]
            chosen = rerank(
                generator, request, num_candidates=settings.candidates, texts=texts, scorer=scorer
            )
            parts.append(chosen.best)
            bar.update(len(batch))
    return GeneratedAudio(
        audio=[audio.cpu() for part in parts for audio in part.audio],
        codes=[codes.cpu() for part in parts for codes in part.codes],
        seeds=[seed for part in parts for seed in part.seeds],
        log_probs=[value for part in parts for value in part.log_probs],
    )


def measure_distance(
    reference: np.ndarray, songs: Sequence[np.ndarray]
) -> tuple[SetDistance, list[str]]:
    """All distances of clips to the reference, and what to know before they are believed.

    Args:
        reference: embeddings (N, D).
        songs: embeddings (n, D) of the windows of each clip.

    Raises:
        DataError: the reference has no variety, such as that of silence.
    """
    rows = np.concatenate(songs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        fad = frechet_distance(reference, rows)
    try:
        kad = kernel_distance(reference, rows)
    except ValueError as error:
        raise DataError(f"the reference: {error}") from error
    several = [song for song in songs if len(song) > 1]
    values = iter(frechet_distance_per_song(reference, several))
    per_song = [next(values) if len(song) > 1 else None for song in songs]
    infinity = frechet_distance_infinity(reference, rows)
    return SetDistance(fad, infinity, kad, per_song), [str(item.message) for item in caught]


def measure_clap(
    scorer: ClapScorer,
    captions: Sequence[str],
    generated: Sequence[Tensor],
    real: Sequence[Tensor | None],
    sample_rate: int,
) -> ClapScores:
    """Score generated clips and, where all are there, real ones by their captions.

    Args:
        scorer: of text and audio.
        captions: one for each clip.
        generated: waveforms (C, N).
        real: the same, or None.
        sample_rate: of all of them.
    """
    texts = scorer.embed_text(captions)
    cosines = scorer.embed_audio(generated, sample_rate) @ texts.T  # (clips, captions)
    others = torch.tensor([[a != b for b in captions] for a in captions])
    known = [audio for audio in real if audio is not None]
    return ClapScores(
        generated=cosines.diagonal().tolist(),
        real=scorer.score(captions, known, sample_rate).tolist()
        if len(known) == len(captions)
        else None,
        shuffled=float(cosines[others].mean()) if others.any() else None,
    )


def write_samples(
    folder: Path, model: CodecLMModel, generated: Sequence[Tensor], clips: Sequence[RealClip]
) -> None:
    """Write the first clips as `001_generated.wav`, `001_real.wav` and `001_codec.wav`."""
    pairs = zip(generated[:NUM_SAMPLES], clips, strict=False)
    for number, (audio, clip) in enumerate(pairs, start=1):
        versions = {"generated": audio}
        if clip.audio is not None:
            versions |= {"real": clip.audio, "codec": through_codec(clip.audio, model.model)}
        for name, version in versions.items():
            write_wav(folder / f"{number:03d}_{name}.wav", version, model.sample_rate)


def _check_files(settings: EvaluationSettings) -> None:
    """Look for everything that will be read, before a model is loaded."""
    if not settings.archive.is_file():
        raise ConfigError(f"`archive` must be an existing file, but '{settings.archive}' is not.")
    if settings.output.is_dir():
        raise ConfigError(f"`output` must be a file, but '{settings.output}' is a folder.")
    for folder in (settings.held_out, settings.reference, settings.train):
        if folder is not None:
            open_shar(folder, None)


def _describe(
    clips: Sequence[RealClip], captions: Sequence[str], made: GeneratedAudio
) -> list[GeneratedClip]:
    texts = captions or [""] * len(clips)
    columns = zip(clips, texts, made.seeds, made.log_probs, strict=True)
    return [
        GeneratedClip(clip.id, text, clip.seconds, seed, log_prob)
        for clip, text, seed, log_prob in columns
    ]


def _notes(model: CodecLMModel, settings: EvaluationSettings) -> Iterator[str]:
    for name in model.recording_ids:
        yield (
            f"the condition '{name}' is heard: where a clip has no prompt of its own, it is the "
            "beginning of the real clip."
        )
    if settings.embeds_with == "mel":
        yield "mel embeddings follow no listener: compare these FAD and KAD with their like only."
    if settings.clap is not None and settings.candidates > 1:
        yield "the CLAP model that scores the clips has also chosen them among candidates."


def _versions() -> dict[str, str]:
    installed = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "whalesong": __version__, **installed}
