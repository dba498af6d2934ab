"""Generation with the codec language model: from raw conditions to codes and waveforms."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from whalesong.models.codec_lm.config import GenerationSettings
from whalesong.models.codec_lm.guidance import guidance_variants
from whalesong.models.codec_lm.request import Request
from whalesong.models.codec_lm.step_model import GuidedStepModel, PackedWeights
from whalesong.modules.conditioning.conditioner import Condition
from whalesong.modules.evaluating import evaluating
from whalesong.modules.generation.generate import (
    Progress,
    Windows,
    generate_codes,
    stream_codes,
)
from whalesong.modules.generation.guided import STEPS_THAT_PAY
from whalesong.modules.generation.infill import infill
from whalesong.modules.generation.sampling import SamplingSettings
from whalesong.sound.clips import tokenized
from whalesong.sound.rows import Clip, Metadata

if TYPE_CHECKING:
    from whalesong.models.codec_lm.wrapper import AudioLanguageModelWrapper


@dataclass(frozen=True)
class GeneratedAudio:
    """Rows of generated audio."""

    audio: list[Tensor]
    """(C, N) each."""
    codes: list[Tensor]
    """(K, F) each."""
    seeds: list[int]
    """One for each row: with it the row is generated again, in any batch."""
    log_probs: list[float]
    """Mean log-probability of a generated code of each row, before temperature and filters; of
    in-filling, the log-probability of what the model finds behind the span."""


class AudioGenerator:
    """Generates with one model under fixed settings.

    The weights are packed for the first request and kept for all that have as many rows: make
    another generator when the model has been trained on.

    Args:
        model: in evaluation mode.
        settings: of sampling, guidance and lengths.
        window_seconds: length that the model was trained on; None for no limit.
    """

    def __init__(
        self,
        model: "AudioLanguageModelWrapper",
        settings: GenerationSettings,
        *,
        window_seconds: float | None = None,
    ) -> None:
        self.model = model
        self.codec = model.pretransform
        self.settings = settings
        self.window_seconds = window_seconds
        self.sampling = SamplingSettings(
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            min_p=settings.min_p,
        )
        self._packed: PackedWeights | None = None

    def generate(self, request: Request, *, progress: Progress | None = None) -> GeneratedAudio:
        """Generate all rows; each is what it is alone."""
        known, lens = self.known_codes(request)
        with evaluating(self.model):
            arguments = self._arguments(request, known, lens, progress)
            made = generate_codes(**arguments, windows=self._windows())
        fresh = (known < 0) & (torch.arange(known.shape[2]) < lens[:, None])[:, None].to(
            known.device
        )
        counts = fresh.flatten(1).sum(1).clamp_min(1)
        means = (made.log_probs * fresh).flatten(1).sum(1) / counts
        return self._collect(request, made.codes, lens, means)

    def stream(self, request: Request, *, progress: Progress | None = None) -> Iterator[Tensor]:
        """Yield audio (B, C, n) as soon as it is settled; joined it is what `generate` gives.

        Raises:
            ValueError: rows of different lengths.
        """
        known, lens = self.known_codes(request)
        if len(lens.unique()) > 1:
            raise ValueError(f"`seconds` must be the same in all rows of a stream, but is "
                             f"{list(request.seconds)}.")  # fmt: skip
        with evaluating(self.model):
            arguments = self._arguments(request, known, lens, progress)
            decoder = self.codec.streaming_decoder()
            for codes in stream_codes(**arguments, windows=self._windows()):
                if (audio := decoder.push(codes)).shape[2]:
                    yield audio
        if (audio := decoder.flush()).shape[2]:
            yield audio

    def infill(
        self,
        request: Request,
        *,
        begin_seconds: float,
        end_seconds: float,
        num_candidates: int,
        progress: Progress | None = None,
    ) -> GeneratedAudio:
        """Generate the span of each clip `request.begin` anew so that what follows it fits.

        Raises:
            ValueError: the span lies outside of a clip.
        """
        clips = tokenized(request.begin, self.codec, device=self.model.device)
        begin, end = (round(s * self.codec.frame_rate) for s in (begin_seconds, end_seconds))
        lens = torch.tensor([0 if clip is None else clip.shape[1] for clip in clips])
        if not 0 <= begin < end <= int(lens.min()):
            raise ValueError(
                f"the span must lie inside of every clip (0 to {int(lens.min())} frames), "
                f"but goes from {begin} to {end}."
            )
        known = self._padded(clips, int(lens.max()))
        known[:, :, begin:end] = -1
        with evaluating(self.model):
            arguments = self._arguments(request, known, lens, progress, copies=num_candidates)
            filled = infill(**arguments, num_candidates=num_candidates)
        return self._collect(request, filled.codes, lens, filled.log_weights.amax(1))

    def known_codes(self, request: Request) -> tuple[Tensor, Tensor]:
        """Codes (B, K, F) with -1 where they are to be generated, and frames of each row (B,).

        Raises:
            ValueError: what a row goes on from is neither audio nor codes of the codec, or as long
                as what is asked for.
        """
        clips = tokenized(request.begin, self.codec, device=self.model.device)
        lens = [max(round(seconds * self.codec.frame_rate), 1) for seconds in request.seconds]
        for row, (clip, length) in enumerate(zip(clips, lens, strict=True)):
            if clip is not None and clip.shape[1] >= length:
                raise ValueError(
                    f"`begin` of row {row} must be shorter than `seconds` ({length} frames), "
                    f"but has {clip.shape[1]} frames."
                )
        return self._padded(clips, max(lens)), torch.tensor(lens)

    def _padded(self, clips: Sequence[Clip], num_frames: int) -> Tensor:
        shape = (len(clips), self.model.num_quantizers, num_frames)
        known = torch.full(shape, -1, device=self.model.device)
        for row, clip in enumerate(clips):
            if clip is not None:
                known[row, :, : clip.shape[1]] = clip
        return known

    def _arguments(
        self,
        request: Request,
        known: Tensor,
        lens: Tensor,
        progress: Progress | None,
        *,
        copies: int = 1,
    ) -> dict[str, Any]:
        return {
            "model": self._step_model(request, known.shape[2], copies=copies),
            "provider": self.model.pattern_provider,
            "known": known,
            "lens": lens,
            "seeds": request.seeds,
            "settings": self.sampling,
            "progress": progress,
        }

    @torch.no_grad()
    def _step_model(self, request: Request, num_frames: int, *, copies: int) -> GuidedStepModel:
        """The language model under the conditions of the request, each row `copies` times."""
        conditions = self._conditions(request.metadata, len(request))
        negative = self._conditions(request.negative, len(request))
        scale = self.settings.guidance_scale if request.metadata is not None else 1.0
        variants = [
            ({name: _repeated(condition, copies) for name, condition in part.items()}, weight)
            for part, weight in guidance_variants(conditions, negative, scale)
        ]
        frames = min(num_frames, self._window_frames() or num_frames)
        batch_size = len(request) * copies
        max_steps = self.model.pattern_provider.layout(frames).num_steps
        return GuidedStepModel(
            self.model.lm,
            variants,
            batch_size=batch_size,
            max_steps=max_steps,
            compile=self.settings.compile,
            packed=self._packed_weights(batch_size, len(variants), max_steps),
        )

    def _packed_weights(self, batch_size: int, num_variants: int, max_steps: int) -> PackedWeights:
        """Those of the last request, if they fit."""
        rows = (batch_size, num_variants)
        if self._packed is None or self._packed.rows != rows:
            self._packed = PackedWeights(
                self.model.lm,
                batch_size=batch_size,
                num_variants=num_variants,
                weight_dtype=self.settings.weight_dtype,
                copy_large=max_steps >= STEPS_THAT_PAY,
            )
        return self._packed

    def _conditions(self, metadata: Metadata | None, rows: int) -> dict[str, Condition]:
        if metadata is None:
            return self.model.no_condition(rows)
        return self.model.condition(metadata)

    def _window_frames(self) -> int | None:
        return self.window_seconds and round(self.window_seconds * self.codec.frame_rate)

    def _windows(self) -> Windows | None:
        """For clips longer than the window."""
        frames = self._window_frames()
        if frames is None:
            return None
        stride = self.settings.stride_seconds
        new = frames // 2 if stride is None else round(stride * self.codec.frame_rate)
        return Windows(max_frames=frames, stride=new)

    def _collect(
        self, request: Request, codes: Tensor, lens: Tensor, log_probs: Tensor
    ) -> GeneratedAudio:
        rows = [row[:, :length] for row, length in zip(codes, lens.tolist(), strict=True)]
        return GeneratedAudio(
            audio=[self.codec.decode(row[None])[0] for row in rows],
            codes=rows,
            seeds=list(request.seeds),
            log_probs=log_probs.tolist(),
        )


def _repeated(condition: Condition, copies: int) -> Condition:
    """Each row this many times, its copies side by side."""
    if copies == 1:
        return condition
    return Condition(*(tensor.repeat_interleave(copies, dim=0) for tensor in condition))
