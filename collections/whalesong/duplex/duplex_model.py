"""`DuplexModelPT`: what the ModelPTs of both duplex families have in common."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor, nn

from whalesong.core.config.job import PredictConfig
from whalesong.core.errors import CheckpointError, ConfigError
from whalesong.core.fingerprint import fingerprint
from whalesong.core.freezing import freeze_parameters
from whalesong.core.language_model import LanguageModelPT
from whalesong.core.parallel import checkpoint_activations
from whalesong.core.parts import Batch, Evaluation, Parts
from whalesong.core.schema import validate
from whalesong.data.datamodule import build_loader
from whalesong.duplex.build import build_audio_codec, check_codebooks, freezable_names, text_ids
from whalesong.duplex.collator import DuplexCollator
from whalesong.duplex.config import DuplexConfig
from whalesong.duplex.loss import DuplexLoss
from whalesong.duplex.model import DuplexModel
from whalesong.duplex.predictor import DuplexPredictor, duplex_metrics
from whalesong.duplex.scoring import ScoringASR
from whalesong.duplex.session import DuplexSession
from whalesong.duplex.use import answer, evaluate
from whalesong.metrics.channel_accuracy import ChannelAccuracy
from whalesong.modules.llm import decoder_layers
from whalesong.modules.lora import add_lora
from whalesong.modules.perception import frame_counter
from whalesong.sound.assets import CODEC_ASSETS
from whalesong.speech.pretrained import (
    build_llm,
    build_perception,
    build_tokenizer,
    collect_assets,
)

CODEC_WEIGHTS = "model.audio_codec."
CODEC_FINGERPRINT = "audio_codec_fingerprint"


class DuplexModelPT(LanguageModelPT):
    """Listens to one channel and speaks on the other, in text and codes, frame by frame.

    Subclasses set `config_schema` and build their network from the parts.
    """

    config_schema: type[DuplexConfig]
    sharding_methods = ("encode_source", "step")

    @abstractmethod
    def build_model(self, config: Any, **parts: Any) -> DuplexModel:
        """The network of the family from `parts`, the arguments of `DuplexModel`."""

    def build_parts(self, assets: Mapping[str, bytes] | None) -> Parts:
        """Load or rebuild LLM, tokenizer, perception and codec, add LoRA, freeze, and compose."""
        cfg = self.cfg
        config = validate(self.config_schema, OmegaConf.to_container(cfg), path="model")
        codec = build_audio_codec(cfg, assets)
        check_codebooks(config, codec)
        plain = _without_codec(assets)
        self.tokenizer = build_tokenizer(cfg, plain)
        ids = text_ids(self.tokenizer, config.special_tokens)
        llm = build_llm(cfg, plain)
        if assets is None:
            files = {CODEC_ASSETS + name: data for name, data in codec.assets.items()}
            self.assets = collect_assets(llm, self.tokenizer) | files
        perception = build_perception(cfg, llm, restored=assets is not None)
        if config.lora is not None:
            add_lora(llm, OmegaConf.to_container(cfg.lora, resolve=True))
        try:
            model = self.build_model(
                config,
                llm=llm,
                perception=perception,
                counter=frame_counter(perception),
                audio_codec=codec,
                ids=ids,
                user_channel_weight=config.duplex_user_channel_weight,
                attention_window=config.attention_window,
            )
        except ValueError as error:
            raise ConfigError(f"`model`: {error}") from error
        freeze_parameters(
            model,
            freeze=config.freeze_params,
            keep=config.prevent_freeze_params,
            names_of=freezable_names(llm),
        )
        codec.requires_grad_(False)  # whatever `prevent_freeze_params` says
        if config.activation_checkpointing:
            checkpoint_activations([*decoder_layers(llm), *perception.encoder.layers])
        return self._compose(model, config)

    @property
    def sample_rate(self) -> int:
        """Samples per second of the user's audio."""
        return self.model.counter.sample_rate

    @property
    def target_sample_rate(self) -> int:
        """Samples per second of the agent's audio."""
        return self.model.audio_codec.sample_rate

    def sharding_blocks(self) -> Iterable[nn.Module]:
        """Layers of the LLM and of the encoder."""
        return [*decoder_layers(self.model.llm), *self.model.perception.encoder.layers]

    # -- checkpoints: the codec does not change, and so is in none of them ------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the codec's weights out; keep what tells it."""
        super().on_save_checkpoint(checkpoint)
        state = checkpoint.get("state_dict", {})
        for name in [name for name in state if name.startswith(CODEC_WEIGHTS)]:
            del state[name]
        checkpoint[CODEC_FINGERPRINT] = fingerprint(self.model.audio_codec.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the codec's weights from the codec.

        Raises:
            CheckpointError: it is not the one of the checkpoint.
        """
        super().on_load_checkpoint(checkpoint)
        codec = self.model.audio_codec.state_dict()
        then, now = checkpoint.get(CODEC_FINGERPRINT), fingerprint(codec)
        if then != now:
            raise CheckpointError(
                f"the checkpoint was trained with a codec of fingerprint {then}, but "
                f"`model.pretrained_audio_codec` '{self.cfg.pretrained_audio_codec}' has {now}."
            )
        state = checkpoint.get("state_dict", {})
        state |= {CODEC_WEIGHTS + name: tensor for name, tensor in codec.items()}

    # -- use --------------------------------------------------------------------------------------

    def offline_inference(
        self,
        input_signal: Tensor,
        input_signal_lens: Tensor,
        decode_audio: bool = True,
        **generation: Any,
    ) -> dict[str, Any]:
        """Answer whole recordings.

        Args:
            input_signal: the user's audio (B, N) at `sample_rate`.
            input_signal_lens: samples of each row (B,).
            decode_audio: also give the agent's waveforms.
            **generation: keys of `model.generation` that differ.

        Returns:
            "text": list of str, the agent's turns joined by spaces; "turns": its turns with times,
            lists of `Turn`; "tokens_text" (B, F), of which the token at index t belongs to frame
            t + 1; "tokens_audio" (B, F, K), control codes included; "tokens_len" (B,);
            and with `decode_audio` "audio" (B, N') at `target_sample_rate` and "audio_len" (B,).

        Raises:
            ConfigError: an unknown key, or a value out of range.
            ValueError: a recording is longer than the LLM's context.
        """
        batch = {"source_audio": input_signal, "source_audio_lens": input_signal_lens}
        batch = {key: value.to(self.device) for key, value in batch.items()}
        return self.parts.predictor.predict(
            {"prompt": batch}, decode_audio=decode_audio, score=False, **generation
        )

    def start_session(self, **generation: Any) -> DuplexSession:
        """Begin a conversation that is heard and answered piece by piece.

        Args:
            **generation: keys of `model.generation` that differ.

        Raises:
            ConfigError: an unknown key, or an encoder that looks ahead.
        """
        settings = self.parts.predictor.configured(generation)
        try:
            return DuplexSession(self.model, tokenizer=self.tokenizer, generation=settings)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def evaluate(self, loader: Iterable[Batch], *, description: str) -> Evaluation:
        """Answer every conversation; the summary tells text, speech and turn-taking."""
        return evaluate(self, loader, description=description)

    def answer(self, request: PredictConfig) -> Iterator[dict[str, Any]]:
        """Answer audio files: text with times, the agent's audio, and both channels."""
        return answer(self, request)

    def _compose(self, model: DuplexModel, config: DuplexConfig) -> Parts:
        scoring = None if config.scoring_asr is None else ScoringASR(config.scoring_asr)
        shared = {
            "tokenizer": self.tokenizer,
            "ids": model.ids,
            "counter": model.counter,
            "codec": model.audio_codec,
            "frame_length": model.frame_length,
        }
        generates = config.validation_generation
        return Parts(
            model=model,
            loss=DuplexLoss(model=model, config=config),
            predictor=DuplexPredictor(
                model=model,
                tokenizer=self.tokenizer,
                ids=model.ids,
                scoring=scoring,
                settings=config.generation,
            ),
            train_collator=DuplexCollator(**shared, with_prompts=False),
            validation_collator=DuplexCollator(**shared, with_prompts=True),
            make_loader=build_loader,
            metrics=duplex_metrics(scoring) if generates else {},
            loss_metrics={"channels": ChannelAccuracy(model.num_codebooks)},
        )


def _without_codec(assets: Mapping[str, bytes] | None) -> dict[str, bytes] | None:
    """The files of the LLM and its tokenizer."""
    if assets is None:
        return None
    return {name: data for name, data in assets.items() if not name.startswith(CODEC_ASSETS)}
