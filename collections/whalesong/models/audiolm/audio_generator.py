"""Generation with all parts of AudioLM: from audio and raw conditions to audio."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from whalesong.models.audiolm.config import GenerationSettings
from whalesong.models.audiolm.generation import CodesGenerator, joined
from whalesong.models.audiolm.request import CodesRequest, Request, Variant, guided
from whalesong.models.audiolm.stream import AudioStream, Piece, decode_rows
from whalesong.modules.evaluating import evaluating
from whalesong.modules.generation.generate import Progress
from whalesong.modules.generation.sampling import SamplingSettings
from whalesong.sound.clips import tokenized, whole_frames
from whalesong.sound.rows import Clip, Metadata

if TYPE_CHECKING:
    from whalesong.models.audiolm.wrapper import AudioLMWrapper

SAMPLING = tuple(entry.name for entry in fields(SamplingSettings))
"""Settings of the first half's sampling."""

STREAM_CHUNK_SECONDS = 0.5
"""Of a stream, where the settings name no length."""


@dataclass(frozen=True)
class GeneratedAudio:
    """Rows of generated audio."""

    audio: list[Tensor]
    """(C, N) each: what was given before, new audio, what was given behind; or new audio alone."""
    codes: list[Tensor]
    """(K, F) each, of the same."""
    num_new: list[int]
    """Frames of each row that are new."""
    seeds: list[int]
    """One for each row: with it the row is generated again, in any batch."""
    candidate_seeds: list[list[int]]
    """Those of all candidates of each row."""
    candidate_log_probs: list[list[float]]
    """Mean log-probability of a code that each candidate has from the first half, before
    temperature and filters; the best candidate was taken. Minus infinity for one that ended at
    once, and none where the first half was not asked."""

    @property
    def log_probs(self) -> list[float]:
        """Those of the candidates that were taken."""
        return [max(candidates) for candidates in self.candidate_log_probs]


class AudioGenerator:
    """Generates with one model under fixed settings; see `CodesGenerator` for what it keeps.

    Args:
        model: all parts of the model.
        settings: of sampling, guidance and lengths.
    """

    def __init__(self, model: "AudioLMWrapper", settings: GenerationSettings) -> None:
        self.model, self.settings = model, settings
        self.codec = model.pretransform
        chunk = settings.nar_chunk_seconds
        self._codes = CodesGenerator(
            model.lm,
            sampling=SamplingSettings(**{name: getattr(settings, name) for name in SAMPLING}),
            nar_temperature=settings.nar_temperature,
            min_frames=self._frames(settings.min_seconds),
            stop_on_eos=settings.stop_on_eos,
            chunk_frames=None if chunk is None else max(self._frames(chunk), 1),
            compile=settings.compile,
            weight_dtype=settings.weight_dtype,
        )

    def generate(
        self, request: Request, *, num_candidates: int = 1, progress: Progress | None = None
    ) -> GeneratedAudio:
        """Generate all rows; each is what it is alone.

        Raises:
            ValueError: clips that are neither audio nor codes of the codec, a row without any where
                the model needs one, or a missing condition.
        """
        with evaluating(self.model):
            wanted = self._codes_request(request)
            made = self._codes.generate(wanted, num_candidates=num_candidates, progress=progress)
        picked = made.candidate_seeds.gather(1, made.best[:, None])[:, 0]
        rows = self._rows(wanted, made.codes, made.lens)
        audio = [self.codec.decode(row[None])[0] for row in rows]
        if not self.settings.return_prompt:
            begins, ends = wanted.left_lens, wanted.left_lens + made.lens
            ratio = self.codec.downsampling_ratio
            rows, audio = spans(rows, begins, ends), spans(audio, begins * ratio, ends * ratio)
        return GeneratedAudio(
            audio=audio,
            codes=rows,
            num_new=made.lens.tolist(),
            seeds=picked.tolist(),
            candidate_seeds=made.candidate_seeds.tolist(),
            candidate_log_probs=made.candidate_log_probs.tolist(),
        )

    def stream(self, request: Request, *, progress: Progress | None = None) -> AudioStream:
        """Audio as soon as it is settled; joined it is what `generate` gives with the same chunks.

        Where the settings name no length of chunks, they have half a second.

        Raises:
            ValueError: the request has clips to lead to; with the first piece, as `generate`.
        """
        if any(clip is not None for clip in request.end):
            raise ValueError("a stream must have nothing to lead to, but `end` has clips.")
        return AudioStream(self._pieces(request, progress), sample_rate=self.codec.sample_rate)

    def transfer_style(self, content: Sequence[Tensor], request: Request) -> GeneratedAudio:
        """Keep the first quantizers of clips; the others become as behind `request.begin`.

        Raises:
            ValueError: as `generate`; or the model has no second half.
        """
        lm = self.model.lm
        if lm.nar is None:
            raise ValueError("transfer of style needs a second half of the model, but "
                             f"`ar_quantizers` is all {lm.num_quantizers}.")  # fmt: skip
        with evaluating(self.model):
            clips = self._tokenized(content, name="content")
            codes, lens = self._padded(clips, name="content")
            wanted = replace(self._codes_request(request), max_frames=lens)
            made, _ = joined(self._codes.refine(wanted, codes[:, : lm.ar_quantizers]))
        rows = rows_of(made, lens)
        return GeneratedAudio(
            audio=[self.codec.decode(row[None])[0] for row in rows],
            codes=rows,
            num_new=lens.tolist(),
            seeds=list(request.seeds),
            candidate_seeds=[[seed] for seed in request.seeds],
            candidate_log_probs=[],
        )

    def _pieces(self, request: Request, progress: Progress | None) -> Iterator[Piece]:
        with evaluating(self.model):
            wanted = self._codes_request(request)
            prompts = rows_of(wanted.left, wanted.left_lens)
            chunk = max(self._frames(STREAM_CHUNK_SECONDS), 1)
            pieces = self._codes.stream(wanted, default_chunk_frames=chunk, progress=progress)
            yield from decode_rows(
                self.codec, prompts, pieces, with_prompts=self.settings.return_prompt
            )

    def _codes_request(self, request: Request) -> CodesRequest:
        """The request in codes.

        Raises:
            ValueError: see `generate`.
        """
        begin = self._tokenized(request.begin, name="begin")
        end = self._tokenized(request.end, name="end")
        left, left_lens = self._padded(begin, name="begin")
        right, right_lens = self._padded(end, name="end")
        self._check_prompts(left_lens + right_lens)
        frames = [max(self._frames(seconds), 1) for seconds in request.seconds]
        return CodesRequest(
            left=left,
            left_lens=left_lens,
            right=right,
            right_lens=right_lens,
            max_frames=left_lens.new_tensor(frames),
            exact=any(clip is not None for clip in request.end),
            seeds=request.seeds,
            variants=self._variants(request.metadata, len(request)),
        )

    def _check_prompts(self, lens: Tensor) -> None:
        if self.model.needs_prompt and 0 in (rows := lens.tolist()):
            raise ValueError(
                f"`begin` of row {rows.index(0)} must have at least one frame, for the model was "
                "trained with prompts only (`model.prompt.modes`), but has none."
            )

    @torch.no_grad()
    def _variants(self, metadata: Metadata | None, rows: int) -> list[Variant]:
        """Conditions and their weights in the guided logits."""
        condition = None if metadata is None else self.model.condition(metadata)
        return guided(condition, self.model.no_condition(rows), self.settings.guidance_scale)

    def _tokenized(self, clips: Sequence[Clip], *, name: str) -> list[Clip]:
        """Codes of clips; an end of audio that fills no frame is left out."""
        whole = [None if clip is None else whole_frames(clip, self.codec) for clip in clips]
        try:
            return tokenized(whole, self.codec, device=self.model.device)
        except ValueError as error:
            raise ValueError(f"`{name}`: {error}") from error

    def _padded(self, clips: Sequence[Clip], *, name: str) -> tuple[Tensor, Tensor]:
        """Codes (B, K, longest) and frames (B,)."""
        device = self.model.device
        lens = torch.tensor([0 if clip is None else clip.shape[1] for clip in clips], device=device)
        codes = lens.new_zeros(len(clips), self.model.lm.num_quantizers, int(lens.max()))
        for row, clip in enumerate(clips):
            if clip is not None:
                codes[row, :, : clip.shape[1]] = clip
        self.model.lm.check_codes(codes, lens, name=name)
        return codes, lens

    def _frames(self, seconds: float) -> int:
        return round(seconds * self.codec.frame_rate)

    def _rows(self, wanted: CodesRequest, new: Tensor, lens: Tensor) -> list[Tensor]:
        """What was given before, what is new, and what was given behind, of each row."""
        parts = (
            rows_of(wanted.left, wanted.left_lens),
            rows_of(new, lens),
            rows_of(wanted.right, wanted.right_lens),
        )
        return [torch.cat(row, dim=1) for row in zip(*parts, strict=True)]


def spans(rows: Sequence[Tensor], begins: Tensor, ends: Tensor) -> list[Tensor]:
    """A span of each row (C, N)."""
    bounds = zip(rows, begins.tolist(), ends.tolist(), strict=True)
    return [row[:, begin:end] for row, begin, end in bounds]


def rows_of(codes: Tensor, lens: Tensor) -> list[Tensor]:
    """Each row (K, F) of padded codes (B, K, longest)."""
    return [row[:, :count] for row, count in zip(codes, lens.tolist(), strict=True)]
