"""From the user's audio to what the agent says: text, turns, codes and audio."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from whalesong.core.errors import ConfigError
from whalesong.core.parts import Batch, Metric
from whalesong.core.schema import validate
from whalesong.data.text_channel import TextIds
from whalesong.data.turns import Turn
from whalesong.duplex.config import DuplexGeneration
from whalesong.duplex.decoding import Conversation, converse
from whalesong.duplex.model import DuplexModel
from whalesong.duplex.scoring import ScoringASR
from whalesong.duplex.turn_decoder import decode_turns
from whalesong.metrics.bleu import Bleu
from whalesong.metrics.text import WordErrorRate, spoken_words
from whalesong.metrics.turn_taking import TurnTaking
from whalesong.modules.evaluating import evaluating
from whalesong.modules.generation.generate import Progress


class DuplexPredictor:
    """Answers whole recordings with the settings of the model; a call may change some of them.

    Args:
        model: the network.
        tokenizer: NeMo's `AutoTokenizer` of the LLM.
        ids: control tokens of the text channel.
        scoring: listens to the agent, where the collator gives what it should have said.
        settings: `model.generation`.
    """

    def __init__(
        self,
        *,
        model: DuplexModel,
        tokenizer: Any,
        ids: TextIds,
        scoring: ScoringASR | None,
        settings: DuplexGeneration,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.ids = ids
        self.scoring = scoring
        self.settings = settings

    def predict(
        self,
        batch: Batch,
        *,
        decode_audio: bool = True,
        score: bool = True,
        on_frame: Progress | None = None,
        **generation: Any,
    ) -> dict[str, Any]:
        """Answer the audio of `batch["prompt"]`.

        Args:
            batch: see `DuplexCollator`.
            decode_audio: also give the audio.
            score: with a scoring recognizer, also give what it hears.
            on_frame: called with the frames that are done and their total.
            **generation: keys of `model.generation`.

        Returns:
            "text": of all turns of a row; "turns": lists of Turn; "tokens_text" (B, F), the one at
            index t of frame t + 1; "tokens_audio" (B, F, K), with control codes; "tokens_len" (B,);
            "audio" (B, N) at the codec's rate; "audio_len" (B,); "asr_text".

        Raises:
            ConfigError: an unknown setting, or a recording longer than the LLM's context.
        """
        settings = self.configured(generation)
        prompt = batch["prompt"]
        with evaluating(self.model):
            try:
                made = converse(
                    self.model,
                    prompt["source_audio"],
                    prompt["source_audio_lens"],
                    settings,
                    on_frame=on_frame,
                )
            except ValueError as error:
                raise ConfigError(str(error)) from error
            preds = self._as_text(made)
            if decode_audio:
                preds |= self._as_audio(made)
        if decode_audio and score and self.scoring is not None:
            audios = [row[:n] for row, n in zip(preds["audio"], preds["audio_len"], strict=True)]
            rate = self.model.audio_codec.sample_rate
            preds["asr_text"] = self.scoring.transcribe(audios, rate)
        return preds

    def to_dict(self, batch: Batch, preds: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of `{"id", "reference", "hypothesis", "user_turns", "agent_turns",
        "reference_turns"}` and, where it was scored, "asr_hypothesis".
        """
        rows = []
        for index, example_id in enumerate(batch["ids"]):
            row = {
                "id": example_id,
                "reference": batch["target_texts"][index],
                "hypothesis": preds["text"][index],
                "user_turns": plain(batch["source_turns"][index]),
                "agent_turns": plain(preds["turns"][index]),
                "reference_turns": plain(batch["target_turns"][index]),
            }
            if "asr_text" in preds:
                row["asr_hypothesis"] = preds["asr_text"][index]
            rows.append(row)
        return rows

    def configured(self, changes: dict[str, Any]) -> DuplexGeneration:
        """The settings with some changed.

        Raises:
            ConfigError: an unknown setting, or a wrong value.
        """
        return validate(
            DuplexGeneration, {**self.settings.model_dump(), **changes}, path="generation"
        )

    def _as_text(self, made: Conversation) -> dict[str, Any]:
        rows = [
            decode_turns(
                tokens[:count],
                tokenizer=self.tokenizer,
                ids=self.ids,
                frame_length=self.model.frame_length,
            )
            for tokens, count in zip(made.text.tolist(), made.lens.tolist(), strict=True)
        ]
        return {
            "text": [row.text for row in rows],
            "turns": [row.turns for row in rows],
            "tokens_text": made.text,
            "tokens_audio": made.codes.transpose(1, 2),
            "tokens_len": made.lens,
        }

    def _as_audio(self, made: Conversation) -> dict[str, Tensor]:
        """Rows of one length are decoded together: what is behind a row may change its end."""
        codec = self.model.audio_codec
        audio_lens = made.lens * codec.downsampling_ratio
        size = (len(audio_lens), int(audio_lens.max()))
        audio = torch.zeros(size, dtype=torch.float32, device=made.codes.device)
        codes = self.model.playable(made.codes)
        for count in made.lens.unique().tolist():
            rows = (made.lens == count).nonzero().squeeze(1)
            decoded = codec.decode(codes[rows, :, :count])  # (b, C, n)
            audio[rows, : decoded.shape[2]] = decoded.mean(dim=1)
        return {"audio": audio, "audio_len": audio_lens}


def duplex_metrics(scoring: ScoringASR | None) -> dict[str, Metric]:
    """Metrics over the rows of `DuplexPredictor.to_dict`.

    Upper case and punctuation count in `bleu`, but not where a recognizer has listened.
    """
    metrics: dict[str, Metric] = {"bleu": Bleu(), "turn_taking": TurnTaking()}
    if scoring is not None:
        heard = ("reference", "asr_hypothesis")
        metrics["asr_bleu"] = Bleu(*heard, "asr_bleu", normalize=spoken_words)
        metrics["asr_wer"] = WordErrorRate(*heard, "asr_wer", normalize=spoken_words)
    return metrics


def plain(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Turns as dictionaries, times in milliseconds' precision."""
    return [
        {
            "begin": round(turn.begin, 3),
            "end": None if turn.end is None else round(turn.end, 3),
            "text": turn.text,
        }
        for turn in turns
    ]
