"""`CodecLMModel`: the ModelPT that names its four parts."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor, nn

from whalesong.core.config.job import PredictConfig
from whalesong.core.errors import ConfigError
from whalesong.core.freezing import freeze_parameters
from whalesong.core.parts import Batch, Evaluation, Parts
from whalesong.data.datamodule import build_loader
from whalesong.metrics.likelihood import CodeLikelihood
from whalesong.models.codec_lm.collator import CodecLMCollator
from whalesong.models.codec_lm.config import CodecLMConfig, SampleSettings
from whalesong.models.codec_lm.factory import build_audio_lm, check_audio_lm_config
from whalesong.models.codec_lm.generation import GeneratedAudio
from whalesong.models.codec_lm.loss import CodecLMLoss
from whalesong.models.codec_lm.predictor import CodecLMPredictor
from whalesong.models.codec_lm.use import answer, evaluate, log_fixed_prompts
from whalesong.models.codec_lm.wrapper import AudioLanguageModelWrapper
from whalesong.modules.conditioning.section import ConditionerSection
from whalesong.modules.lora import add_lora, canonical_name, is_lora, layer_settings
from whalesong.sound.assets import collect_assets
from whalesong.sound.codec_info import describe_codec
from whalesong.sound.conditions import condition_sources
from whalesong.sound.rows import Metadata
from whalesong.sound.sound_model import SoundModelPT

FACTORY_KEYS = ("lm", "pretransform", "conditioning")


class CodecLMModel(SoundModelPT):
    """Language model on codes of an audio codec, under text, audio and other conditions.

    Music models are configurations of it: a prefix of text before interleaved codes, or
    cross-attention to text and an audio prompt.
    """

    config_schema = CodecLMConfig
    sharding_methods = ("score",)

    def build_parts(self, assets: Mapping[str, bytes] | None) -> Parts:
        """Build codec, conditioners and language model, add LoRA, freeze, and compose."""
        section = OmegaConf.to_container(self.cfg, resolve=True)
        try:
            container = check_audio_lm_config(factory_config(section))
            model = build_audio_lm(container, assets=assets)
        except (AssertionError, NotImplementedError, ValueError, OSError) as error:
            raise ConfigError(f"`model`: {error}") from error
        if assets is None:
            self.assets = collect_assets(model.pretransform, model.conditioner)
        if section.get("lora") is not None:
            add_lora(model.lm.backbone, layer_settings(section["lora"], model.lm.backbone))
            model.lm.embedding.requires_grad_(False)
            model.lm.heads.requires_grad_(False)
        freeze_parameters(
            model,
            freeze=section.get("freeze_params") or [],
            keep=section.get("prevent_freeze_params") or [],
            names_of=lambda name: [] if is_lora(name) else [canonical_name(name)],
        )
        if section.get("activation_checkpointing"):
            model.lm.backbone.transformer.checkpointing = True
        config = CodecLMConfig.model_validate(section)
        self.conditions, self.samples = used_conditions(config), config.samples
        return self._compose(model, config)

    def generate_audio(
        self, conditioning: Metadata | None = None, **generation: Any
    ) -> GeneratedAudio:
        """Generate with the settings of `model.generation`, which keywords change.

        See `AudioLanguageModelWrapper.generate_audio`.
        """
        return self.model.generate_audio(conditioning, **{**self._generation(), **generation})

    def stream_audio(
        self, conditioning: Metadata | None = None, **generation: Any
    ) -> Iterator[Tensor]:
        """Yield audio while it is generated; see `AudioLanguageModelWrapper.stream_audio`."""
        return self.model.stream_audio(conditioning, **{**self._generation(), **generation})

    def log_samples(self, settings: SampleSettings) -> None:
        """Generate for the prompts of `model.samples`."""
        log_fixed_prompts(self, settings)

    def evaluate(self, loader: Iterable[Batch], *, description: str) -> Evaluation:
        """Likelihood of the codes of a test set."""
        return evaluate(self, loader, description=description)

    def answer(self, request: PredictConfig) -> Iterator[dict[str, Any]]:
        """Generate audio for prompts and conditions into wav files."""
        return answer(self, request)

    def _generation(self) -> dict[str, Any]:
        settings = self.parts.predictor.settings.model_dump()
        return {**settings, "window_seconds": self.parts.predictor.window_seconds}

    def sharding_blocks(self) -> Iterable[nn.Module]:
        """Layers of the backbone."""
        return self.model.lm.backbone.transformer.layers

    def _compose(self, model: AudioLanguageModelWrapper, config: CodecLMConfig) -> Parts:
        window = config.window_seconds
        codec = describe_codec(model.pretransform)
        keys = {} if config.conditioning is None else config.conditioning.default_keys
        shared = {
            "max_frames": None if window is None else codec.num_frames(window),
            "strict": config.strict_audio,
            **condition_sources(self.conditions, keys),
        }
        return Parts(
            model=model,
            loss=CodecLMLoss(model=model),
            predictor=CodecLMPredictor(
                model=model, settings=config.generation, window_seconds=window
            ),
            train_collator=CodecLMCollator(codec, training=True, **shared),
            validation_collator=CodecLMCollator(codec, training=False, **shared),
            make_loader=build_loader,
            loss_metrics={"likelihood": CodeLikelihood(codec.num_codebooks)},
        )


def factory_config(section: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the `model` section that `create_audio_lm_from_config` takes."""
    model = {key: section[key] for key in FACTORY_KEYS if section.get(key) is not None}
    return {"model": model, "sample_rate": section["sample_rate"]}


def used_conditions(config: CodecLMConfig) -> list[ConditionerSection]:
    """The conditioners that the language model names."""
    if config.conditioning is None:
        return []
    return [item for item in config.conditioning.configs if item.id in config.lm.cond_ids]
