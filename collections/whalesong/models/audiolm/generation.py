"""Generation of codes with AudioLM: first quantizers step by step, the others piece by piece."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from whalesong.models.audiolm.ar import ceil_div
from whalesong.models.audiolm.ar_steps import PromptedNetwork
from whalesong.models.audiolm.refiner import Refiner
from whalesong.models.audiolm.request import CodesRequest
from whalesong.modules.generation.ending import Ending
from whalesong.modules.generation.generate import Progress, generate_codes, stream_codes
from whalesong.modules.generation.guided import STEPS_THAT_PAY, GuidedStepModel, PackedWeights
from whalesong.modules.generation.packed_linear import WeightDtype
from whalesong.modules.generation.sampling import SamplingSettings, candidate_seeds

if TYPE_CHECKING:
    from whalesong.models.audiolm.model import AudioLM


class GeneratedCodes(NamedTuple):
    """New codes of B rows, each the best of N candidates."""

    codes: Tensor
    """(B, K, n), 0 behind the end of a row."""
    lens: Tensor
    """(B,) new frames."""
    candidate_seeds: Tensor
    """(B, N): with its seed a candidate is generated again."""
    candidate_log_probs: Tensor
    """(B, N) mean log-probability of a code of the first half, before temperature and filters;
    minus infinity where a candidate has ended in its first step."""

    @property
    def best(self) -> Tensor:
        """(B,) number of the candidate of each row that was taken."""
        return self.candidate_log_probs.argmax(1)


class CodesGenerator:
    """Generates codes with one model under fixed settings.

    The weights are packed for the first request and kept for all that have as many rows: make
    another generator when the model has been trained on.

    Args:
        lm: in evaluation mode while it generates.
        sampling: of the first half.
        nar_temperature: of the second half; 0 takes the most probable codes.
        min_frames: new frames before which no row ends; rounded up to whole steps.
        stop_on_eos: rows end where the model ends them.
        chunk_frames: the second half takes new frames in pieces of this length; None at once.
        compile: "auto" captures a step as one CUDA graph where there is a GPU.
        weight_dtype: see `pack_linear`.
    """

    def __init__(
        self,
        lm: "AudioLM",
        *,
        sampling: SamplingSettings,
        nar_temperature: float = 0.0,
        min_frames: int = 0,
        stop_on_eos: bool = True,
        chunk_frames: int | None = None,
        compile: str = "auto",
        weight_dtype: WeightDtype | None = None,
    ) -> None:
        self.lm, self.chunk_frames = lm, chunk_frames
        self._sampling, self._nar_temperature = sampling, nar_temperature
        self._min_frames, self._stop_on_eos = min_frames, stop_on_eos
        self._compile, self._weight_dtype = compile, weight_dtype
        self._packed: PackedWeights | None = None

    @torch.no_grad()
    def generate(
        self, request: CodesRequest, *, num_candidates: int = 1, progress: Progress | None = None
    ) -> GeneratedCodes:
        """Generate all rows; each is what it is alone.

        Candidates differ in the first half, which also chooses among them.

        Raises:
            ValueError: no candidates at all.
        """
        if num_candidates < 1:
            raise ValueError(f"`num_candidates` must be at least 1, but is {num_candidates}.")
        rows = torch.arange(len(request.seeds)).repeat_interleave(num_candidates)
        seeds = candidate_seeds(request.seeds, num_candidates)
        request = replace(request.select(rows), seeds=seeds)
        made = generate_codes(**self._arguments(request, progress))
        steps = made.lens.clamp(min=1) * self.lm.ar.num_columns
        log_probs = made.log_probs.flatten(1).sum(1) / steps
        log_probs = log_probs.masked_fill(made.lens == 0, -torch.inf).view(-1, num_candidates)
        best = log_probs.argmax(1).cpu() + torch.arange(len(log_probs)) * num_candidates
        coarse = self.lm.ar.from_columns(made.codes[best.to(made.codes.device)])
        codes, lens = joined(self.refine(request.select(best), coarse))
        return GeneratedCodes(
            codes, lens, torch.tensor(seeds).view(-1, num_candidates), log_probs.cpu()
        )

    def stream(
        self,
        request: CodesRequest,
        *,
        default_chunk_frames: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield new codes (B, K, n) and their frames (B,), piece by piece as soon as they stand.

        Joined they are what `generate` gives with the same chunks, which are `default_chunk_frames`
        long where the settings do not say.
        """
        stretches = stream_codes(**self._arguments(request, progress))
        size = self.chunk_frames or default_chunk_frames
        return self._pieces(request, map(self.lm.ar.from_columns, stretches), size)

    def refine(self, request: CodesRequest, coarse: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Add the other quantizers to given ones (B, k, n), `max_frames` of which count."""
        return self._pieces(request, [coarse], None if request.exact else self.chunk_frames)

    # -- both halves ------------------------------------------------------------------------------

    def _arguments(self, request: CodesRequest, progress: Progress | None) -> dict[str, Any]:
        """Of `generate_codes`, for the first half."""
        ar = self.lm.ar
        steps = ceil_div(request.max_frames, ar.ar_group).cpu()
        shape = (len(steps), ar.num_columns, int(steps.max()))
        may_end = self._stop_on_eos and not request.exact
        min_steps = -(-self._min_frames // ar.ar_group) if may_end else shape[2]
        return {
            "model": self._step_model(request, ar.pattern.layout(shape[2]).num_steps),
            "provider": ar.pattern,
            "known": torch.full(shape, -1, device=request.left.device),
            "lens": steps,
            "seeds": request.seeds,
            "settings": self._sampling,
            "ending": Ending(codebooks=slice(0, ar.ar_group), min_frames=min_steps),
            "progress": progress,
        }

    @torch.no_grad()
    def _step_model(self, request: CodesRequest, max_steps: int) -> GuidedStepModel:
        conditions, weights = zip(*request.variants, strict=True)
        return GuidedStepModel(
            PromptedNetwork(self.lm.ar, request.arrange_nothing(), conditions, max_steps=max_steps),
            weights=weights,
            packed=self._packed_weights(len(request.seeds), len(weights), max_steps),
            compile=self._compile,
        )

    def _packed_weights(self, batch_size: int, num_variants: int, max_steps: int) -> PackedWeights:
        """Those of the last request, if they fit."""
        rows = (batch_size, num_variants)
        if self._packed is None or self._packed.rows != rows:
            self._packed = PackedWeights(
                self.lm.ar.transformer,
                self.lm.ar.heads,
                batch_size=batch_size,
                num_variants=num_variants,
                weight_dtype=self._weight_dtype,
                copy_large=max_steps >= STEPS_THAT_PAY,
            )
        return self._packed

    def _pieces(
        self, request: CodesRequest, stretches: Iterable[Tensor], size: int | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """From stretches (B, k, f), which hold id V where a row has ended, to pieces of all codes.

        They have `size` frames, or None for all.
        """
        refiner = Refiner(self.lm.nar, request, temperature=self._nar_temperature)
        left = request.max_frames
        for coarse in in_chunks(stretches, size):
            lens = torch.minimum(frames_before_end(coarse, self.lm.codebook_size), left)
            left = torch.where(lens < coarse.shape[2], 0, left - lens)
            yield refiner.refine(coarse, lens), lens


def joined(pieces: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Codes (B, K, n) and frames (B,) of all pieces together."""
    codes, lens = zip(*pieces, strict=True)
    total = torch.stack(lens).sum(0)
    return torch.cat(codes, dim=2)[:, :, : int(total.max())], total


def in_chunks(stretches: Iterable[Tensor], size: int | None) -> Iterator[Tensor]:
    """Cut stretches (B, k, f) anew into chunks of `size` frames, or into one; the last is shorter.

    Even of nothing there is one chunk.
    """
    waiting: list[Tensor] = []
    count, given = 0, False
    for stretch in stretches:
        waiting.append(stretch)
        count += stretch.shape[2]
        while size is not None and count >= size:
            joined = torch.cat(waiting, dim=2)
            yield joined[:, :, :size]
            waiting, count, given = [joined[:, :, size:]], count - size, True
    if count or not given:
        yield torch.cat(waiting, dim=2)


def frames_before_end(coarse: Tensor, end_id: int) -> Tensor:
    """Frames (B,) of codes (B, k, f) before the first in which the first quantizer ends the row."""
    return (coarse[:, 0] != end_id).long().cumprod(1).sum(1)
