"""In-filling: a span between known codes, chosen among candidates by what comes after it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from whalesong.modules.codebook_patterns import PatternProvider
from whalesong.modules.generation.generate import Progress, check_request, own_frames
from whalesong.modules.generation.loop import Plan, StepModel, Window
from whalesong.modules.generation.sampling import (
    RowNoise,
    SamplingSettings,
    candidate_seeds,
    redraw_seeds,
)


class Infilled(NamedTuple):
    """The best candidate of each of B rows, and how all N candidates were weighed."""

    codes: Tensor
    """(B, K, F), known codes as they were, 0 behind the end of a row."""
    log_weights: Tensor
    """(B, N): log-probability of the known codes that the model saw each candidate lead to."""
    seeds: Tensor
    """(B, N): the seeds of the candidates."""


@torch.no_grad()
def infill(
    model: StepModel,
    provider: PatternProvider,
    *,
    known: Tensor,
    lens: Tensor | Sequence[int],
    seeds: Sequence[int],
    settings: SamplingSettings,
    num_candidates: int = 8,
    right_frames: int | None = None,
    progress: Progress | None = None,
) -> Infilled:
    """Fill the span that is not known so that what comes after it follows.

    A causal model generates the span from its left side only. As
    p(span | left, right) ~ p(span | left) p(right | span, left), candidates drawn from the left
    are weighed by the probability of the known codes that they lead to, and the best is taken.
    Where a pattern puts known codes before the span (coarse codes first), candidates see them.

    Args:
        model: gives the logits of B * N rows, the N candidates of a row side by side.
        provider: the codebook pattern that the model was trained with.
        known: codes (B, K, F), -1 = to be generated.
        lens: frames of each row (B,).
        seeds: one for each row; its first candidate is what `generate_codes` gives.
        settings: how to sample.
        num_candidates: N.
        right_frames: known frames behind the last generated one that count; all if None. Decoding
            ends with them.
        progress: is told how far it is.

    Raises:
        ValueError: shapes or codes that do not fit, or NaN or infinite logits.
    """
    lens = torch.as_tensor(lens).cpu()
    check_request(model, provider, known=known, lens=lens, seeds=seeds)
    if num_candidates < 1:
        raise ValueError(f"`num_candidates` must be at least 1, but is {num_candidates}.")
    known = own_frames(known, lens)
    unknown = known < 0
    candidates = torch.tensor(candidate_seeds(seeds, num_candidates)).view(-1, num_candidates)
    if not unknown.any():
        return Infilled(known, torch.zeros(candidates.shape, device=known.device), candidates)
    counted = _counted(unknown, lens, right_frames)
    rows = torch.arange(len(known)).repeat_interleave(num_candidates)  # (B * N,)
    window, stop = _open(
        model, provider, known[rows], lens[rows], candidates, counted[rows], settings
    )
    for step in window.run(model):
        if progress is not None:
            progress(step + 1 - window.plan.first_step, stop + 1 - window.plan.first_step)
        if step == stop:
            break
    log_probs = window.log_probs(slice(None)).masked_fill(~counted[rows], 0)
    log_weights = log_probs.flatten(1).sum(1).view(-1, num_candidates)
    best = log_weights.argmax(1) + torch.arange(len(known), device=known.device) * num_candidates
    return Infilled(window.codes(slice(None))[best], log_weights, candidates)


def _counted(unknown: Tensor, lens: Tensor, right_frames: int | None) -> Tensor:
    """The known codes whose probability counts, (B, K, F)."""
    frames = torch.arange(unknown.shape[2])
    behind = frames >= lens[:, None]
    if right_frames is not None:
        last = (unknown.cpu().any(1) * frames).amax(1, keepdim=True)
        behind |= frames > last + right_frames
    return ~unknown & ~behind[:, None].to(unknown.device)


def _open(
    model: StepModel,
    provider: PatternProvider,
    known: Tensor,
    lens: Tensor,
    seeds: Tensor,
    counted: Tensor,
    settings: SamplingSettings,
) -> tuple[Window, int]:
    """The window over all candidates, and the step after which nothing is left to be seen."""
    unknown = (known < 0).cpu()
    layout = provider.batch_layout(lens, num_frames=known.shape[2])
    own = seeds.flatten().tolist()
    kinds = [own, redraw_seeds(own)] if settings.repetition_window else [own]
    noise = [RowNoise(kind, provider.num_codebooks).frames(0, known.shape[2]) for kind in kinds]
    window = Window(
        Plan(layout, unknown),
        known,
        noise[0],
        settings=settings,
        special_id=model.codebook_size,
        redraws=noise[1] if settings.repetition_window else None,
    )
    return window, int((layout.step_of * (unknown | counted.cpu())).max())
