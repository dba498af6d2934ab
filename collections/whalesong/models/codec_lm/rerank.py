"""Reranking: several candidates of each row, scored, and the best one kept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whalesong.metrics.clap import TextAudioScorer, best_of, score_candidates
from whalesong.models.codec_lm.generation import AudioGenerator, GeneratedAudio
from whalesong.models.codec_lm.request import Request
from whalesong.modules.generation.generate import Progress
from whalesong.modules.generation.sampling import candidate_seeds


@dataclass(frozen=True)
class Reranked:
    """The best candidate of each row, and how all of them were scored."""

    best: GeneratedAudio
    scores: Tensor
    """(B, N)"""
    seeds: Tensor
    """(B, N): with its seed a candidate is generated again."""


def rerank(
    generator: AudioGenerator,
    request: Request,
    *,
    num_candidates: int,
    texts: Sequence[str] | None = None,
    scorer: TextAudioScorer | None = None,
    progress: Progress | None = None,
) -> Reranked:
    """Generate N candidates of each row as rows of one batch and keep the best of them.

    Args:
        generator: of the model.
        request: B rows; the first candidate of a row is what the row gives without reranking.
        num_candidates: N.
        texts: what the scorer compares each row with.
        scorer: of text and audio; without one the mean log-probability of the codes decides.
        progress: called with the steps that are done, and all steps.

    Raises:
        ValueError: a scorer without texts.
    """
    if num_candidates < 1:
        raise ValueError(f"`num_candidates` must be at least 1, but is {num_candidates}.")
    if scorer is not None and (texts is None or len(texts) != len(request)):
        given = "none" if texts is None else len(texts)
        raise ValueError(f"`texts` must be one for each of {len(request)} rows, but are {given}.")
    candidates = generator.generate(_candidates(request, num_candidates), progress=progress)
    groups = [
        candidates.audio[begin : begin + num_candidates]
        for begin in range(0, len(candidates.audio), num_candidates)
    ]
    if scorer is None:
        scores = torch.tensor(candidates.log_probs).view(-1, num_candidates)
    else:
        scores = score_candidates(scorer, texts, groups, generator.codec.sample_rate)
    kept = [row * num_candidates + n for row, n in enumerate(best_of(scores).tolist())]
    best = {name: [column[index] for index in kept] for name, column in vars(candidates).items()}
    seeds = torch.tensor(candidates.seeds).view(-1, num_candidates)
    return Reranked(GeneratedAudio(**best), scores, seeds)


def _candidates(request: Request, count: int) -> Request:
    """Each row N times, side by side, with seeds of their own."""

    def repeated(rows: Sequence | None) -> list | None:
        return None if rows is None else [row for row in rows for _ in range(count)]

    names = ("metadata", "negative", "begin", "seconds")
    rows = {name: repeated(getattr(request, name)) for name in names}
    return replace(request, **rows, seeds=candidate_seeds(request.seeds, count))
