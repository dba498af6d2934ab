"""Generation with SALM: from a batch of prompts to text."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from whalesong.core.errors import ConfigError
from whalesong.core.parts import Batch
from whalesong.models.salm.model import SALMModel

PROMPT_INPUTS = ("input_ids", "attention_mask", "audio_mask")
OnText = Callable[[int, str], None]


class SALMPredictor:
    """Greedy, sampling or beam search by `transformers`; the LLM's own configuration is default.

    Args:
        model: the network.
        tokenizer: NeMo's `AutoTokenizer`.
        generation_config: defaults of `predict`.
    """

    def __init__(
        self, *, model: SALMModel, tokenizer: Any, generation_config: GenerationConfig
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.generation_config = generation_config

    def predict(
        self, batch: Batch, *, on_text: OnText | None = None, **generation: Any
    ) -> dict[str, Any]:
        """Generate an answer for each row of `batch["prompt"]`.

        Args:
            batch: with "prompt" (left-padded), "audio" and "audio_lens".
            on_text: called with (row, new text) as the answer is produced; not with beams.
            **generation: fields of `GenerationConfig` that differ from the defaults.

        Returns:
            "ids": token ids of each row up to its end; "text": the rows as text.

        Raises:
            ConfigError: an unknown generation field, or streaming with beams.
        """
        config = self._configured(generation)
        if on_text is not None and (config.num_beams or 1) > 1:
            raise ConfigError(
                f"`on_text` needs `num_beams` 1, but is used with {config.num_beams}."
            )
        prompt = batch["prompt"]
        ids = self.model.generate(
            **{key: prompt[key] for key in PROMPT_INPUTS},
            audio=batch["audio"],
            audio_lens=batch["audio_lens"],
            generation_config=config,
            streamer=None if on_text is None else TextStream(self._decode, config, on_text),
        )
        rows = [until_stop(row, config.eos_token_id) for row in ids.tolist()]
        return {"ids": rows, "text": [self._decode(row) for row in rows]}

    def to_dict(self, batch: Batch, preds: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of `{"id", "reference", "hypothesis"}`."""
        return [
            {"id": example_id, "reference": reference, "hypothesis": hypothesis}
            for example_id, reference, hypothesis in zip(
                batch["ids"], batch["references"], preds["text"], strict=False
            )
        ]

    def _configured(self, changes: dict[str, Any]) -> GenerationConfig:
        config = GenerationConfig.from_dict(self.generation_config.to_dict())
        unknown = config.update(**changes)
        if unknown:
            raise ConfigError(
                "`generation` must hold fields of GenerationConfig, "
                f"but holds '{next(iter(unknown))}'."
            )
        return config

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.tokenizer.decode(ids, skip_special_tokens=True).strip()


def until_stop(ids: list[int], stop_ids: list[int] | int | None) -> list[int]:
    """The ids before the first stop."""
    stops = {stop_ids} if isinstance(stop_ids, int) else set(stop_ids or ())
    end = next((index for index, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end]


class TextStream(BaseStreamer):
    """Turns the steps of `generate` into pieces of text for each row of the batch."""

    def __init__(
        self, decode: Callable[[list[int]], str], config: GenerationConfig, on_text: OnText
    ) -> None:
        self._decode = decode
        self._stop_ids = config.eos_token_id
        self._on_text = on_text
        self._ids: list[list[int]] = []
        self._sent: list[str] = []

    def put(self, value: Tensor) -> None:
        """Take one token of each row (B,); the empty prompt (B, 0) that comes first is no step."""
        if value.dim() != 1:
            return
        if not self._ids:
            self._ids = [[] for _ in value]
            self._sent = [""] * len(value)
        for row, token in enumerate(value.tolist()):
            self._ids[row].append(token)
            text = self._decode(until_stop(self._ids[row], self._stop_ids))
            # A character may need several tokens: until it is whole, a replacement sign shows.
            self._send(row, text, whole="\ufffd" not in text[len(self._sent[row]) :])

    def end(self) -> None:
        """Give out what was held back."""
        for row, ids in enumerate(self._ids):
            self._send(row, self._decode(until_stop(ids, self._stop_ids)), whole=True)

    def _send(self, row: int, text: str, *, whole: bool) -> None:
        sent = self._sent[row]
        if whole and len(text) > len(sent) and text.startswith(sent):
            self._on_text(row, text[len(sent) :])
            self._sent[row] = text
