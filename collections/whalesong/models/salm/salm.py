"""`SALM`: the ModelPT that names its four parts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from nemo.collections.speechlm2.modules.perception import AudioPerceptionModule
from omegaconf import OmegaConf
from torch import Tensor, nn

from whalesong.core.config.job import PredictConfig, check_unused
from whalesong.core.freezing import freeze_parameters
from whalesong.core.language_model import LanguageModelPT
from whalesong.core.parallel import checkpoint_activations
from whalesong.core.parts import Batch, Evaluation, Parts
from whalesong.data.datamodule import build_loader
from whalesong.data.prompts import PromptEncoder
from whalesong.metrics.text import WordErrorRate, word_error_rate
from whalesong.models.salm.collator import SALMCollator, pad_audio
from whalesong.models.salm.config import GenerationSettings, SALMConfig
from whalesong.models.salm.loss import SALMLoss
from whalesong.models.salm.model import SALMModel
from whalesong.models.salm.predictor import SALMPredictor
from whalesong.models.salm.requests import Prompt, read_requests
from whalesong.models.salm.use import answer, generate_rows
from whalesong.modules.frames import FrameCounter
from whalesong.modules.llm import context_length, decoder_layers, generation_defaults
from whalesong.modules.lora import add_lora
from whalesong.modules.perception import frame_counter
from whalesong.speech.names import canonical_names
from whalesong.speech.pretrained import (
    build_llm,
    build_perception,
    build_tokenizer,
    collect_assets,
)


class SALM(LanguageModelPT):
    """Speech-augmented language model (arXiv 2310.09424).

    A speech encoder and a modality adapter turn audio into frames that stand in the prompt of a
    pretrained LLM, in place of a tag; the LLM answers in text.
    """

    config_schema = SALMConfig

    def build_parts(self, assets: Mapping[str, bytes] | None) -> Parts:
        """Load or rebuild the LLM, its tokenizer and perception, add LoRA, freeze, and compose."""
        cfg = self.cfg
        self.tokenizer = build_tokenizer(cfg, assets)
        tags = {"additional_special_tokens": [self.audio_locator_tag]}
        self.tokenizer.add_special_tokens(tags)
        prompts = PromptEncoder(
            self.tokenizer,
            prompt_format=cfg.get("prompt_format"),
            audio_locator_tag=self.audio_locator_tag,
        )
        llm = build_llm(cfg, assets)
        if assets is None:
            self.assets = collect_assets(llm, self.tokenizer)
        perception = build_perception(cfg, llm, restored=assets is not None)
        if cfg.get("lora") is not None:
            add_lora(llm, OmegaConf.to_container(cfg.lora, resolve=True))
        self.counter = self._frame_counter(perception)
        model = SALMModel(llm=llm, perception=perception, counter=self.counter)
        freeze_parameters(
            model,
            freeze=cfg.get("freeze_params") or [],
            keep=cfg.get("prevent_freeze_params") or [],
            names_of=canonical_names(llm),
        )
        if cfg.get("activation_checkpointing"):
            checkpoint_activations([*decoder_layers(llm), *perception.encoder.layers])
        return self._compose(model, prompts)

    @property
    def audio_locator_tag(self) -> str:
        """Stands for one audio in the text of a prompt."""
        return self.cfg.get("audio_locator_tag", "<audio>")

    @property
    def sample_rate(self) -> int:
        """Samples per second that the encoder expects."""
        return self.counter.sample_rate

    def sharding_blocks(self) -> Iterable[nn.Module]:
        """Layers of the LLM and of the encoder."""
        return [*decoder_layers(self.model.llm), *self.model.perception.encoder.layers]

    def generate(
        self,
        prompts: Sequence[Prompt] | Tensor,
        audios: Tensor | None = None,
        audio_lens: Tensor | None = None,
        **generation: Any,
    ) -> list[str]:
        """Answer text, or text mixed with audio.

        Args:
            prompts: one dialog each, as in
                `[{"role": "user", "content": "Transcribe: <audio>", "audio": ["a.wav"]}]`;
                the content names each audio by the tag.
            audios: waveforms (A, N) in reading order, instead of "audio" in the prompts.
            audio_lens: samples of each (A,).
            **generation: fields of `GenerationConfig`, and `on_text(row, text)` for streaming.

        Returns:
            One answer for each prompt.

        Raises:
            DataError: tags and audios do not pair up, or an audio cannot be read.
        """
        dialogs, waveforms = read_requests(
            prompts, self.parts.validation_collator, audios=audios, audio_lens=audio_lens
        )
        batch = {
            "prompt": self.parts.validation_collator.pad_dialogs(dialogs, side="left"),
            **pad_audio(waveforms),
        }
        batch = self._to_device(batch)
        return self.parts.predictor.predict(batch, **generation)["text"]

    def transcribe(
        self,
        audio: Sequence[str | Path | Tensor],
        *,
        prompt: str = "Transcribe the following:",
        batch_size: int = 8,
        **generation: Any,
    ) -> list[str]:
        """Ask the same of several audios.

        Args:
            audio: files, or waveforms (N,) at `sample_rate`.
            prompt: the question; the audio follows it.
            batch_size: audios at a time.
            **generation: as in `generate`.
        """
        content = f"{prompt} {self.audio_locator_tag}".strip()
        answers: list[str] = []
        for begin in range(0, len(audio), batch_size):
            piece = audio[begin : begin + batch_size]
            dialogs = [[{"role": "user", "content": content, "audio": [item]}] for item in piece]
            answers += self.generate(dialogs, **generation)
        return answers

    def evaluate(self, loader: Iterable[Batch], *, description: str) -> Evaluation:
        """Generate for every example; the summary is the word error rate."""
        rows = list(generate_rows(self, loader, description=description))
        rate = word_error_rate([r["reference"] for r in rows], [r["hypothesis"] for r in rows])
        return Evaluation(f"WER {100 * rate:.2f} % over {len(rows)} examples", rows)

    def answer(self, request: PredictConfig) -> Iterator[dict[str, Any]]:
        """Answer prompts about audio files."""
        unused = ("conditions", "begin", "end", "output_dir", "generation")
        check_unused(request, unused, family="SALM")
        return answer(self, request)

    def _frame_counter(self, perception: AudioPerceptionModule) -> FrameCounter:
        counter = frame_counter(perception)
        if (seconds := self.cfg.get("encoder_chunk_size_seconds")) is None:
            return counter
        return counter.in_chunks(
            chunk_seconds=seconds,
            context_seconds=self.cfg.get("encoder_chunk_overlap_seconds", 0.0),
        )

    def _compose(self, model: SALMModel, prompts: PromptEncoder) -> Parts:
        settings = GenerationSettings(**(self.cfg.get("generation") or {}))
        pad_id = pad_token_id(self.tokenizer)
        defaults = generation_defaults(
            model.llm,
            stop_ids=prompts.stop_ids or [self.tokenizer.eos_id],
            pad_id=pad_id,
            max_new_tokens=settings.max_new_tokens,
        )
        chosen = settings.model_dump(exclude_none=True, exclude={"max_new_tokens"})
        if "generation" in self.cfg:
            chosen["max_new_tokens"] = settings.max_new_tokens
        defaults.update(**chosen)
        shared = {
            "prompts": prompts,
            "counter": self.counter,
            "pad_id": pad_id,
            "max_length": context_length(model.llm),
        }
        generates = self.cfg.get("validation_wer", True)
        return Parts(
            model=model,
            loss=SALMLoss(model=model),
            predictor=SALMPredictor(
                model=model, tokenizer=self.tokenizer, generation_config=defaults
            ),
            train_collator=SALMCollator(**shared, with_prompts=False),
            validation_collator=SALMCollator(**shared, with_prompts=True),
            make_loader=build_loader,
            metrics={"wer": WordErrorRate()} if generates else {},
        )

    def _to_device(self, batch: Any) -> Any:
        if isinstance(batch, dict):
            return {key: self._to_device(value) for key, value in batch.items()}
        return batch.to(self.device) if isinstance(batch, torch.Tensor) else batch


def pad_token_id(tokenizer: Any) -> int:
    """The id written at padding; masks tell padding, so any id will do where there is none."""
    pad = tokenizer.tokenizer.pad_token_id
    return pad if pad is not None else tokenizer.eos_id
