"""Generation from a batch: codes and waveforms for the conditions of each row."""

from typing import Any

from whalesong.core.parts import Batch
from whalesong.models.codec_lm.config import GenerationSettings, generation_settings
from whalesong.models.codec_lm.generation import AudioGenerator
from whalesong.models.codec_lm.request import make_request
from whalesong.models.codec_lm.wrapper import AudioLanguageModelWrapper


class CodecLMPredictor:
    """Generates with the settings of the model; single settings can be changed for a call.

    Args:
        model: all parts of the model.
        settings: `model.generation`.
        window_seconds: `model.window_seconds`.
    """

    def __init__(
        self,
        *,
        model: AudioLanguageModelWrapper,
        settings: GenerationSettings,
        window_seconds: float | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.window_seconds = window_seconds

    def predict(self, batch: Batch, **generation: Any) -> dict[str, Any]:
        """Generate for each row of `batch["metadata"]`.

        Args:
            batch: with "metadata"; other keys are not read.
            **generation: keys of `model.generation`, and `seeds`.

        Returns:
            "audio": waveforms (C, N); "codes": (K, F); "seeds"; "log_probs".
        """
        seeds = generation.pop("seeds", None)
        generator = self.generator(**generation)
        seconds = generator.settings.seconds
        request = make_request(batch["metadata"], seconds=seconds, seeds=seeds)
        return vars(generator.generate(request))

    def generator(self, **changes: Any) -> AudioGenerator:
        """A generator with some settings changed.

        Raises:
            ValueError: an unknown setting, or a wrong value.
        """
        merged = generation_settings(**{**self.settings.model_dump(), **changes})
        return AudioGenerator(self.model, merged, window_seconds=self.window_seconds)

    def to_dict(self, batch: Batch, preds: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of `{"id", "seed", "log_prob", "codes"}`; codes as nested lists."""
        columns = zip(batch["ids"], preds["seeds"], preds["log_probs"], preds["codes"], strict=True)
        return [
            {"id": example_id, "seed": seed, "log_prob": log_prob, "codes": codes.tolist()}
            for example_id, seed, log_prob, codes in columns
        ]
