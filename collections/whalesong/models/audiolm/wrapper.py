"""`AudioLMWrapper`: codec, conditioners and AudioLM as one module, from batch to logits."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from whalesong.models.audiolm.ar import Score
from whalesong.models.audiolm.arrangement import Arrangement, arrange
from whalesong.models.audiolm.audio_generator import AudioGenerator, GeneratedAudio
from whalesong.models.audiolm.config import generation_settings
from whalesong.models.audiolm.model import AudioLM
from whalesong.models.audiolm.request import make_request
from whalesong.models.audiolm.stream import AudioStream
from whalesong.modules.codec.codec import Codec
from whalesong.modules.conditioning.conditioner import side_by_side
from whalesong.modules.conditioning.multi import MultiConditioner
from whalesong.modules.generation.generate import Progress
from whalesong.sound.progress import reporter
from whalesong.sound.rows import Clip, Metadata

Stages = int | Tensor | None
"""A stage of all rows, or of each (B,); None where the second half is not wanted."""


class AudioLMWrapper(nn.Module):
    """All parts of the model, from audio or codes and raw conditions on.

    Attributes:
        pretransform: the codec, frozen and in fp32.
        lm: the language model on codes.
        conditioner: embeds the conditions; None without conditions.
        needs_prompt: training has never been without one, so that generation must not be.
    """

    def __init__(
        self,
        *,
        pretransform: Codec,
        lm: AudioLM,
        conditioner: MultiConditioner | None,
        needs_prompt: bool = True,
    ) -> None:
        super().__init__()
        self.pretransform = pretransform
        self.lm = lm
        self.conditioner = conditioner
        self.needs_prompt = needs_prompt

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return self.pretransform.sample_rate

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.pretransform.frame_rate

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm.ar.heads.weight.device

    def forward(self, batch: Mapping[str, Any]) -> list[Score]:
        """What is learned of a batch by the first half and by each stage; see `score`."""
        nar = [] if self.lm.nar is None else list(self.lm.nar.stages)
        return self.score(batch, ar=True, stages=nar)[1]

    def score(
        self, batch: Mapping[str, Any], *, ar: bool, stages: Sequence[int | Tensor]
    ) -> tuple[int, list[Score]]:
        """Frames that count of a batch, and the logits of what is learned of them.

        Args:
            batch: see `AudioLMCollator`.
            ar: with the first half.
            stages: of the second half; each of all rows, or of each row (B,).
        """
        arrangement = self.arrangement(batch)
        condition = self.condition(batch["metadata"])
        scores = [self.lm.ar.score(arrangement, condition)] if ar else []
        scores += [self.lm.nar.score(arrangement, stage, condition) for stage in stages]
        return int(arrangement.scored_mask.sum()), scores

    def arrangement(self, batch: Mapping[str, Any]) -> Arrangement:
        """Which frames are prompt and which are target; audio is tokenized here."""
        codes = dict(batch)
        for prefix in ("", "prompt_"):
            if f"{prefix}audio" in batch:
                audio, lens = batch[f"{prefix}audio"], batch[f"{prefix}audio_lens"]
                made = self.pretransform.encode(audio, lens)
                codes[f"{prefix}codes"], codes[f"{prefix}codes_lens"] = made
        return arrange(codes)

    def condition(self, metadata: Metadata) -> Tensor | None:
        """Embed the conditions of each row, (B, G).

        Raises:
            ValueError: a row lacks a condition.
        """
        if self.conditioner is None:
            return None
        return side_by_side(self.conditioner(metadata), self._ids)

    def no_condition(self, batch_size: int) -> Tensor | None:
        """The null conditions of each row, (B, G)."""
        if self.conditioner is None:
            return None
        return side_by_side(self.conditioner.null(batch_size), self._ids)

    # -- generation -------------------------------------------------------------------------------

    def generate_audio(
        self,
        begin: Sequence[Clip] | None = None,
        *,
        conditioning: Metadata | None = None,
        seconds: float | Sequence[float] | None = None,
        batch_size: int | None = None,
        seeds: int | Sequence[int] | None = None,
        num_candidates: int = 1,
        progress: bool | Progress = False,
        **settings: Any,
    ) -> GeneratedAudio:
        """Go on from prompts; each row is what it would be alone.

        Args:
            begin: for each row audio (C, N) at `sample_rate`, or codes (K, F), to go on from; None
                where the model was trained without prompts, too. The rest of audio that fills no
                frame is left out.
            conditioning: conditions of each row by id; None generates without conditions.
            seconds: longest new audio, of all rows or of each; `max_seconds` if None.
            batch_size: rows, where nothing else tells.
            seeds: one for each row, or that of the first row, which counts on; random ones if None.
            num_candidates: continuations that are drawn for each row; the one whose first
                quantizers have the highest mean log-probability is taken.
            progress: True shows a bar; a function is called with the steps that are done, and all.
            **settings: keys of `GenerationSettings`, such as `temperature`, `nar_temperature`,
                `stop_on_eos`, `guidance_scale` and `return_prompt`.

        Raises:
            ValueError: rows that do not fit together, a wrong value, a missing prompt or condition.
        """
        generator = AudioGenerator(self, generation_settings(**settings))
        request = make_request(
            begin=begin,
            conditioning=conditioning,
            seconds=generator.settings.max_seconds if seconds is None else seconds,
            batch_size=batch_size,
            seeds=seeds,
        )
        return generator.generate(
            request, num_candidates=num_candidates, progress=reporter(progress)
        )

    def stream_audio(
        self,
        begin: Sequence[Clip] | None = None,
        *,
        conditioning: Metadata | None = None,
        seconds: float | Sequence[float] | None = None,
        batch_size: int | None = None,
        seeds: int | Sequence[int] | None = None,
        **settings: Any,
    ) -> AudioStream:
        """Give out audio while it is generated, in pieces: a list of (C, n), one for each row.

        Joined the pieces are what `generate_audio` gives with the same `nar_chunk_seconds`, half a
        second by default; the other arguments are those of `generate_audio`. The stream knows how
        soon its first piece came, and how fast it is.
        """
        generator = AudioGenerator(self, generation_settings(**settings))
        request = make_request(
            begin=begin,
            conditioning=conditioning,
            seconds=generator.settings.max_seconds if seconds is None else seconds,
            batch_size=batch_size,
            seeds=seeds,
        )
        return generator.stream(request)

    def infill_audio(
        self,
        left: Sequence[Clip],
        right: Sequence[Clip],
        seconds: float | Sequence[float],
        *,
        conditioning: Metadata | None = None,
        seeds: int | Sequence[int] | None = None,
        num_candidates: int = 1,
        **settings: Any,
    ) -> GeneratedAudio:
        """Generate what lies between two clips; train with the prompt mode `infill` for it.

        Args:
            left: for each row audio (C, N) or codes (K, F) before the gap.
            right: the same behind it.
            seconds: length of the gap, of all rows or of each.
            conditioning: as in `generate_audio`.
            seeds: as in `generate_audio`.
            num_candidates: as in `generate_audio`.
            **settings: as in `generate_audio`; no row ends before its length.

        Raises:
            ValueError: as `generate_audio`.
        """
        request = make_request(
            begin=left, end=right, conditioning=conditioning, seconds=seconds, seeds=seeds
        )
        generator = AudioGenerator(self, generation_settings(**settings))
        return generator.generate(request, num_candidates=num_candidates)

    def transfer_style(
        self,
        content: Sequence[Tensor],
        style: Sequence[Clip],
        *,
        conditioning: Metadata | None = None,
        seeds: int | Sequence[int] | None = None,
        **settings: Any,
    ) -> GeneratedAudio:
        """Give clips the sound of others: the first quantizers stay, the second half does the rest.

        Args:
            content: for each row audio (C, N) or codes (K, F) whose course is kept.
            style: for each row the prompt of the second half; not part of what comes out.
            conditioning: as in `generate_audio`.
            seeds: as in `generate_audio`; without `nar_temperature` they have no influence.
            **settings: as in `generate_audio`.

        Raises:
            ValueError: as `generate_audio`; or the model has no second half.
        """
        request = make_request(
            begin=style,
            conditioning=conditioning,
            seconds=1.0,
            batch_size=len(content),
            seeds=seeds,
        )
        generator = AudioGenerator(self, generation_settings(**settings))
        return generator.transfer_style(content, request)

    @property
    def _ids(self) -> list[str]:
        return list(self.conditioner.output_dims)
