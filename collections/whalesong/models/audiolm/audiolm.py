"""`AudioLMModel`: the ModelPT that names its four parts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from whalesong.core.config.job import PredictConfig
from whalesong.core.errors import ConfigError
from whalesong.core.freezing import freeze_parameters
from whalesong.core.optim import drop_zero_gradients
from whalesong.core.parts import Batch, Evaluation, Parts
from whalesong.core.schema import validate
from whalesong.data.datamodule import build_loader
from whalesong.metrics.stage_accuracy import StageAccuracy
from whalesong.models.audiolm.audio_generator import GeneratedAudio
from whalesong.models.audiolm.build import build_wrapper, conditions_of
from whalesong.models.audiolm.collator import AudioLMCollator
from whalesong.models.audiolm.config import AudioLMConfig, AudioLMSamples
from whalesong.models.audiolm.loss import AudioLMLoss
from whalesong.models.audiolm.predictor import AudioLMPredictor
from whalesong.models.audiolm.stream import AudioStream
from whalesong.models.audiolm.use import answer, check_samples, evaluate, log_continuations
from whalesong.models.audiolm.wrapper import AudioLMWrapper
from whalesong.modules.lora import add_lora, canonical_name, is_lora, layer_settings
from whalesong.sound.assets import collect_assets
from whalesong.sound.codec_info import describe_codec
from whalesong.sound.conditions import condition_sources
from whalesong.sound.rows import Clip
from whalesong.sound.sound_model import SoundModelPT

DRAWS = "stage_draws"
"""Key of a checkpoint."""


class AudioLMModel(SoundModelPT):
    """Goes on from a prompt of audio codes: first quantizers autoregressive, others all at once.

    There is no semantic stage as in Google's AudioLM; it is VALL-E with audio in the place of text.
    """

    config_schema = AudioLMConfig
    sharding_methods = ("score",)

    def build_parts(self, assets: Mapping[str, bytes] | None) -> Parts:
        """Build codec, conditioners and language model, add LoRA, freeze, and compose."""
        section = OmegaConf.to_container(self.cfg, resolve=True)
        config = validate(AudioLMConfig, section, path="model")
        try:
            model = build_wrapper(config, section, assets=assets)
        except (AssertionError, NotImplementedError, ValueError, OSError) as error:
            raise ConfigError(f"`model`: {error}") from error
        if assets is None:
            self.assets = collect_assets(model.pretransform, model.conditioner)
        if config.lora is not None:
            model.lm.requires_grad_(False)
            for half in halves(model):
                add_lora(half.transformer, layer_settings(section["lora"], half.transformer))
        freeze_stage(model, config.train_stage)
        freeze_parameters(
            model,
            freeze=config.freeze_params,
            keep=config.prevent_freeze_params,
            names_of=lambda name: [] if is_lora(name) else [canonical_name(name)],
        )
        for half in halves(model):
            half.transformer.checkpointing = config.activation_checkpointing
        self.conditions, self.samples = conditions_of(config), config.samples
        return self._compose(model, config)

    # -- training ---------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Refuse recordings of `model.samples` that do not exist before they are needed."""
        if self.samples is not None:
            check_samples(self.samples)
        super().on_fit_start()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Average, leave alone what belongs to stages that were not drawn, and draw others."""
        super().on_before_optimizer_step(optimizer)
        self.parts.loss.draws.advance()
        nar = self.model.lm.nar
        if nar is not None:
            drop_zero_gradients([*nar.stage_vectors, *nar.embeddings.parameters()])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep where the draws of stages are."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[DRAWS] = self.parts.loss.draws.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the draws of stages."""
        super().on_load_checkpoint(checkpoint)
        if DRAWS in checkpoint:
            self.parts.loss.draws.load_state_dict(checkpoint[DRAWS])

    def log_samples(self, settings: AudioLMSamples) -> None:
        """Go on from the recordings of `model.samples`."""
        log_continuations(self, settings)

    def sharding_blocks(self) -> Iterable[nn.Module]:
        """Layers of both halves."""
        return [layer for half in halves(self.model) for layer in half.transformer.layers]

    # -- use --------------------------------------------------------------------------------------

    def generate_audio(
        self, begin: Sequence[Clip] | None = None, **generation: Any
    ) -> GeneratedAudio:
        """Go on from prompts with the settings of `model.generation`, which keywords change.

        See `AudioLMWrapper.generate_audio`, also for the next three.
        """
        return self.model.generate_audio(begin, **self._settings(generation))

    def stream_audio(self, begin: Sequence[Clip] | None = None, **generation: Any) -> AudioStream:
        """Give out audio while it is generated."""
        return self.model.stream_audio(begin, **self._settings(generation))

    def infill_audio(
        self,
        left: Sequence[Clip],
        right: Sequence[Clip],
        seconds: float | Sequence[float],
        **generation: Any,
    ) -> GeneratedAudio:
        """Generate what lies between two clips."""
        return self.model.infill_audio(left, right, seconds, **self._settings(generation))

    def transfer_style(
        self, content: Sequence[Tensor], style: Sequence[Clip], **generation: Any
    ) -> GeneratedAudio:
        """Give clips the sound of others."""
        return self.model.transfer_style(content, style, **self._settings(generation))

    def evaluate(self, loader: Iterable[Batch], *, description: str) -> Evaluation:
        """Losses and accuracies of all stages on a test set."""
        return evaluate(self, loader, description=description)

    def answer(self, request: PredictConfig) -> Iterator[dict[str, Any]]:
        """Continue, fill in or restyle audio into wav files."""
        return answer(self, request)

    def _settings(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.parts.predictor.settings.model_dump(), **changes}

    def _compose(self, model: AudioLMWrapper, config: AudioLMConfig) -> Parts:
        window = config.window_seconds
        codec = describe_codec(model.pretransform)
        keys = {} if config.conditioning is None else config.conditioning.default_keys
        shared = {
            "prompt": config.prompt,
            "max_frames": None if window is None else codec.num_frames(window),
            "condition_keys": condition_sources(self.conditions, keys)["condition_keys"],
            "predict_eos": config.predict_eos,
            "codebook_sizes": model.lm.codebook_sizes,
            "strict": config.strict_audio,
        }
        lm = model.lm
        return Parts(
            model=model,
            loss=AudioLMLoss(
                model=model, nar_stage=config.nar_stage, train_stage=config.train_stage
            ),
            predictor=AudioLMPredictor(model=model, settings=config.generation),
            train_collator=AudioLMCollator(codec, training=True, **shared),
            validation_collator=AudioLMCollator(codec, training=False, **shared),
            make_loader=build_loader,
            loss_metrics={"accuracy": StageAccuracy(lm.num_quantizers, lm.ar_quantizers)},
        )


def halves(model: AudioLMWrapper) -> list[nn.Module]:
    """The halves that there are."""
    return [half for half in (model.lm.ar, model.lm.nar) if half is not None]


def freeze_stage(model: AudioLMWrapper, train_stage: int) -> None:
    """Freeze what a stage does not train; the conditions belong to the first half's training."""
    if train_stage == 1 and model.lm.nar is not None:
        model.lm.nar.requires_grad_(False)
    if train_stage == 2:
        model.lm.ar.requires_grad_(False)
        if model.conditioner is not None:
            model.conditioner.requires_grad_(False)
