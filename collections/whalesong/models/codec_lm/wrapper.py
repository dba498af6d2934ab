"""`AudioLanguageModelWrapper`: codec, pattern, conditioner and language model as one module."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from whalesong.models.codec_lm.config import generation_settings
from whalesong.models.codec_lm.generation import AudioGenerator, GeneratedAudio
from whalesong.models.codec_lm.model import AudioLanguageModel, LMOutput
from whalesong.models.codec_lm.request import make_request
from whalesong.modules.codebook_patterns import PatternProvider
from whalesong.modules.codec.codec import Codec
from whalesong.modules.conditioning.conditioner import Condition
from whalesong.modules.conditioning.multi import MultiConditioner
from whalesong.modules.generation.generate import Progress
from whalesong.sound.progress import reporter
from whalesong.sound.rows import Clip, Metadata


class AudioLanguageModelWrapper(nn.Module):
    """All parts of an audio language model, from waveform and raw conditions to waveform.

    Attributes:
        pretransform: the codec, frozen and in fp32.
        pattern_provider: order of the codes.
        backbone: the transformer inside `lm`.
        lm: the language model on codes.
        conditioner: embeds the conditions; None without conditions.
        sample_rate: samples per second.
        min_input_length: samples of one frame.
    """

    def __init__(
        self,
        *,
        pretransform: Codec,
        lm: AudioLanguageModel,
        conditioner: MultiConditioner | None,
        sample_rate: int,
    ) -> None:
        super().__init__()
        self.pretransform = pretransform
        self.lm = lm
        self.conditioner = conditioner
        self.sample_rate = sample_rate
        self.min_input_length = pretransform.downsampling_ratio

    @property
    def pattern_provider(self) -> PatternProvider:
        """Order of the codes."""
        return self.lm.pattern_provider

    @property
    def backbone(self) -> nn.Module:
        """The transformer."""
        return self.lm.backbone

    @property
    def num_quantizers(self) -> int:
        """Codes per frame."""
        return self.lm.num_codebooks

    @property
    def codebook_size(self) -> int:
        """Ids of one codebook."""
        return self.lm.codebook_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm.heads.weight.device

    def forward(
        self, codes: Tensor, codes_lens: Tensor | None = None, metadata: Metadata | None = None
    ) -> LMOutput:
        """Logits of all codes (B, K, F) under the conditions of each row; None for no conditions.

        Raises:
            ValueError: a row lacks a condition, or there are not as many as rows of codes.
        """
        if metadata is None:
            return self.lm(codes, codes_lens, self.no_condition(len(codes)))
        if len(metadata) != len(codes):
            raise ValueError(f"`metadata` must have one entry for each of {len(codes)} rows, "
                             f"but has {len(metadata)}.")  # fmt: skip
        return self.lm(codes, codes_lens, self.condition(metadata))

    def condition(self, metadata: Metadata) -> dict[str, Condition]:
        """Embed the conditions of each row.

        Raises:
            ValueError: a row lacks a condition.
        """
        return {} if self.conditioner is None else self.conditioner(metadata)

    def no_condition(self, batch_size: int) -> dict[str, Condition]:
        """The null conditions of each row."""
        return {} if self.conditioner is None else self.conditioner.null(batch_size)

    def codes_of(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Codes (B, K, F) and frames (B,) of a batch; audio is tokenized here."""
        if "codes" in batch:
            return batch["codes"], batch["codes_lens"]
        return self.pretransform.encode(batch["audio"], batch["audio_lens"])

    def score(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Logits (K, M, V) of all codes of a batch, and these codes (K, M), over M real frames.

        Args:
            batch: see `CodecLMLoss.loss_fn`.
        """
        codes, codes_lens = self.codes_of(batch)
        hidden, mask = self.lm.hidden(codes, codes_lens, self.condition(batch["metadata"]))
        rows = hidden.transpose(0, 1)[:, mask]  # (K, M, D)
        logits = torch.bmm(rows, self.lm.head_weights().transpose(1, 2))
        return logits, codes.transpose(0, 1)[:, mask]

    # -- generation -------------------------------------------------------------------------------

    def generate_audio(
        self,
        conditioning: Metadata | None = None,
        *,
        batch_size: int | None = None,
        negative: Metadata | None = None,
        begin: Sequence[Clip] | None = None,
        seconds: float | Sequence[float] = 10.0,
        seeds: int | Sequence[int] | None = None,
        window_seconds: float | None = None,
        progress: bool | Progress = False,
        **settings: Any,
    ) -> GeneratedAudio:
        """Generate rows of audio; each row is what it would be alone.

        Args:
            conditioning: conditions of each row by id; None generates without conditions.
            batch_size: rows, where nothing else tells.
            negative: conditions to be led away from, instead of none; with guidance only.
            begin: for each row audio (C, N) at `sample_rate`, or codes (K, F), to go on from; None
                in a row begins anew. It is part of what comes out.
            seconds: length, of all rows or of each.
            seeds: one for each row, or that of the first row, which counts on; random ones if None.
            window_seconds: longer clips are generated window by window of this length.
            progress: True shows a bar; a function is called with the steps that are done, and all.
            **settings: keys of `GenerationSettings`, such as `temperature`, `top_k`, `top_p`,
                `guidance_scale` (one for all conditions, or one for each by its id) and
                `stride_seconds`.

        Raises:
            ValueError: rows that do not fit together, a wrong value, or a missing condition.
        """
        request = make_request(
            conditioning,
            batch_size=batch_size,
            negative=negative,
            begin=begin,
            seconds=seconds,
            seeds=seeds,
        )
        generator = AudioGenerator(
            self, generation_settings(**settings), window_seconds=window_seconds
        )
        return generator.generate(request, progress=reporter(progress))

    def stream_audio(
        self,
        conditioning: Metadata | None = None,
        *,
        batch_size: int | None = None,
        negative: Metadata | None = None,
        begin: Sequence[Clip] | None = None,
        seconds: float = 10.0,
        seeds: int | Sequence[int] | None = None,
        window_seconds: float | None = None,
        **settings: Any,
    ) -> Iterator[Tensor]:
        """Yield audio (B, C, n) as it is generated; joined it is what `generate_audio` gives.

        The arguments are those of `generate_audio`; all rows have one length.
        """
        request = make_request(
            conditioning,
            batch_size=batch_size,
            negative=negative,
            begin=begin,
            seconds=seconds,
            seeds=seeds,
        )
        generator = AudioGenerator(
            self, generation_settings(**settings), window_seconds=window_seconds
        )
        return generator.stream(request)

    def infill_audio(
        self,
        clips: Sequence[Tensor],
        *,
        begin_seconds: float,
        end_seconds: float,
        conditioning: Metadata | None = None,
        num_candidates: int = 8,
        seeds: int | Sequence[int] | None = None,
        **settings: Any,
    ) -> GeneratedAudio:
        """Generate a span of each clip anew, so that what follows it fits.

        Args:
            clips: audio (C, N) or codes (K, F), one for each row.
            begin_seconds: where the span begins.
            end_seconds: where it ends.
            conditioning: as in `generate_audio`.
            num_candidates: spans that are drawn for each clip; the one under which the model finds
                what follows the most probable is taken.
            seeds: as in `generate_audio`.
            **settings: as in `generate_audio`.

        Raises:
            ValueError: the span lies outside of a clip.
        """
        request = make_request(
            conditioning,
            batch_size=len(clips),
            begin=clips,
            seconds=1.0,
            seeds=seeds,
        )
        return AudioGenerator(self, generation_settings(**settings)).infill(
            request,
            begin_seconds=begin_seconds,
            end_seconds=end_seconds,
            num_candidates=num_candidates,
        )
