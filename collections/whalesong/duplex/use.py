"""Using a trained duplex model: its scores on a test set, and answers to audio files."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from whalesong.core.config.job import PredictConfig, check_unused
from whalesong.core.errors import ConfigError
from whalesong.core.parts import Batch, Evaluation
from whalesong.core.training.totals import EvaluationTotals
from whalesong.data.turns import Turn, joined
from whalesong.duplex.picture import draw_conversation
from whalesong.duplex.predictor import duplex_metrics, plain
from whalesong.sound.progress import StepBar
from whalesong.sound.wav import read_clip, write_wav

if TYPE_CHECKING:
    from whalesong.duplex.duplex_model import DuplexModelPT

_LOG = logging.getLogger(__name__)

SUMMARY = {
    "bleu": "BLEU {:.2f}",
    "asr_bleu": "ASR-BLEU {:.2f}",
    "asr_wer": "ASR-WER {:.2%}",
    "response_latency": "latency {:.2f} s",
    "false_starts": "false starts {:.1%}",
    "missed_responses": "missed {:.1%}",
    "barge_in_success": "barge-ins {:.1%}",
}
"""What the line of an evaluation says of each value, in this order."""


def evaluate(model: "DuplexModelPT", loader: Iterable[Batch], *, description: str) -> Evaluation:
    """Answer every conversation of a test set; without its recognizer only the text is scored."""
    predictor = model.parts.predictor
    scoring = predictor.scoring
    if scoring is not None:
        try:
            scoring.load()
        except ConfigError as error:
            _LOG.warning("The agent's audio is not scored: %s", error)
            scoring = None
    totals, rows = EvaluationTotals(duplex_metrics(scoring)), []
    for batch in tqdm(loader, desc=description, unit="batch"):
        batch = model.transfer_batch_to_device(batch, model.device, 0)
        preds = predictor.predict(batch, decode_audio=scoring is not None)
        rows += predictor.to_dict(batch, preds)
    totals.add_rows(rows)
    return Evaluation(summary_of(totals.compute(totals.counts()), len(rows)), rows)


def summary_of(values: dict[str, float], num_rows: int) -> str:
    """The values that there are, in one line."""
    shown = [form.format(values[key]) for key, form in SUMMARY.items() if key in values]
    return f"{', '.join(shown)} over {num_rows} conversations"


@dataclass(frozen=True)
class Outputs:
    """The files of one answer."""

    agent: Path
    stereo: Path
    picture: Path

    @classmethod
    def in_folder(cls, folder: Path, number: int) -> "Outputs":
        """`001_agent.wav`, `001_stereo.wav` and `001.png` for the first one."""
        names = (f"{number:03d}_agent.wav", f"{number:03d}_stereo.wav", f"{number:03d}.png")
        return cls(*(folder / name for name in names))

    def check_new(self) -> None:
        """Refuse to write over files.

        Raises:
            ConfigError: naming the first one that exists.
        """
        for path in (self.agent, self.stereo, self.picture):
            if path.exists():
                raise ConfigError(f"`predict.output_dir` must hold no '{path.name}', but "
                                  f"'{path}' exists.")  # fmt: skip

    def as_dict(self) -> dict[str, str]:
        """Paths for a JSON line."""
        return {key: str(path) for key, path in vars(self).items()}


@dataclass
class Answer:
    """What the agent said to one recording."""

    turns: list[Turn]
    audio: Tensor
    """(N,) at the codec's rate."""
    facts: dict[str, Any]
    """What else is to be told."""


def answer(model: "DuplexModelPT", request: PredictConfig) -> Iterator[dict[str, Any]]:
    """Answer audio files one after the other, into wav files and pictures.

    Each gives the agent's audio, user (left) and agent (right) in stereo, both at the codec's rate,
    and a picture of both. With `predict.generation.stream` a file is heard in pieces of one frame,
    and the agent's words are printed as they come.

    Raises:
        ConfigError: the request does not fit the model, or its files exist.
        DataError: an audio file cannot be read.
    """
    check_unused(request, ("prompts", "conditions", "begin", "end"), family="duplex models")
    if not request.audio:
        raise ConfigError("`predict.audio` must name at least one file, but is empty.")
    settings = dict(request.generation)
    reply = _streamed if settings.pop("stream", False) else _whole
    model.parts.predictor.configured(settings)
    folder = Path(request.output_dir or "generated")
    outputs = [Outputs.in_folder(folder, n) for n in range(1, len(request.audio) + 1)]
    for files in outputs:
        files.check_new()
    for path, files in zip(request.audio, outputs, strict=True):
        user = read_clip(path, sample_rate=model.sample_rate, num_channels=1)[0]
        made = reply(model, path, user, settings)
        _write(model, path, files, made)
        print(f"  written to {files.agent}, {files.stereo} and {files.picture}")
        said = {"audio": path, "answer": joined(made.turns), "turns": plain(made.turns)}
        yield {**said, **files.as_dict(), **made.facts}


def timed(turn: Turn) -> str:
    """A turn with its times, `[2.40 - 3.60] seven`; without an end where it has not ended."""
    end = "" if turn.end is None else f"{turn.end:.2f}"
    return f"[{turn.begin:.2f} - {end}] {turn.text}"


def _whole(model: "DuplexModelPT", path: str, user: Tensor, settings: dict[str, Any]) -> Answer:
    made = model.offline_inference(
        user[None], torch.tensor([len(user)]), on_frame=StepBar(), **settings
    )
    print(f"{path}:", *map(timed, made["turns"][0]), sep="\n  ")
    return Answer(made["turns"][0], made["audio"][0].cpu(), {})


def _streamed(model: "DuplexModelPT", path: str, user: Tensor, settings: dict[str, Any]) -> Answer:
    session = model.start_session(**settings)
    pieces = []
    print(f"{path}: ", end="", flush=True)
    for samples in user.split(model.model.counter.samples_per_frame):
        text, audio = session.step(samples)
        print(text, end="", flush=True)
        pieces.append(audio)
    text, audio = session.finish()
    report = session.report()
    print(f"{text}\n{report}")
    return Answer(session.turns, torch.cat([*pieces, audio]).cpu(), {"report": report})


def _write(model: "DuplexModelPT", path: str, files: Outputs, made: Answer) -> None:
    rate = model.target_sample_rate
    user = read_clip(path, sample_rate=rate, num_channels=1)[0]
    write_wav(files.agent, made.audio[None], rate)
    write_wav(files.stereo, stereo(user, made.audio), rate)
    draw_conversation(
        user,
        made.audio,
        turns=made.turns,
        sample_rates=(rate, rate),
        path=files.picture,
        title=Path(path).name,
    )


def stereo(left: Tensor, right: Tensor) -> Tensor:
    """Two waveforms (N,) and (M,) as channels (2, max(N, M)), the shorter one with silence."""
    length = max(len(left), len(right))
    return torch.stack(
        [torch.nn.functional.pad(channel, (0, length - len(channel))) for channel in (left, right)]
    )
