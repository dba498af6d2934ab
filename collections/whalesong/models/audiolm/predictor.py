"""Generation from a batch: what follows the prompt of each row."""

from math import isfinite
from typing import Any

from whalesong.core.parts import Batch
from whalesong.models.audiolm.audio_generator import AudioGenerator
from whalesong.models.audiolm.config import GenerationSettings, generation_settings
from whalesong.models.audiolm.request import make_request
from whalesong.models.audiolm.wrapper import AudioLMWrapper

COLUMNS = ("audio", "codes", "num_new", "seeds", "log_probs")
"""What a prediction gives of each row."""


class AudioLMPredictor:
    """Generates with the settings of the model; single settings can be changed for a call.

    Args:
        model: all parts of the model.
        settings: `model.generation`.
    """

    def __init__(self, *, model: AudioLMWrapper, settings: GenerationSettings) -> None:
        self.model = model
        self.settings = settings

    def predict(self, batch: Batch, **generation: Any) -> dict[str, Any]:
        """Go on from what is before the target in each row, under the conditions of the row.

        Args:
            batch: see `AudioLMCollator`; the target and what is behind it is not looked at.
            **generation: keys of `model.generation`, and `seeds`.

        Returns:
            "audio": waveforms (C, N); "codes": (K, F); "num_new": new frames; "seeds"; "log_probs".
        """
        seeds = generation.pop("seeds", None)
        generator = self.generator(**generation)
        arrangement = self.model.arrangement(batch)
        begin = [
            codes[:, :end]
            for codes, end in zip(arrangement.codes, arrangement.begins.tolist(), strict=True)
        ]
        request = make_request(
            begin=begin,
            conditioning=batch["metadata"],
            seconds=generator.settings.max_seconds,
            seeds=seeds,
        )
        made = generator.generate(request)
        return {name: getattr(made, name) for name in COLUMNS}

    def generator(self, **changes: Any) -> AudioGenerator:
        """A generator with some settings changed.

        Raises:
            ValueError: an unknown setting, or a wrong value.
        """
        merged = generation_settings(**{**self.settings.model_dump(), **changes})
        return AudioGenerator(self.model, merged)

    def to_dict(self, batch: Batch, preds: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of `{"id", "seed", "log_prob", "codes"}`; codes as nested lists.

        "log_prob" is None where a row has ended at once.
        """
        columns = zip(batch["ids"], preds["seeds"], preds["log_probs"], preds["codes"], strict=True)
        return [
            {
                "id": example_id,
                "seed": seed,
                "log_prob": log_prob if isfinite(log_prob) else None,
                "codes": codes.tolist(),
            }
            for example_id, seed, log_prob, codes in columns
        ]
