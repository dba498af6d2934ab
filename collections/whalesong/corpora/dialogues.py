"""Spoken dialogues of two channels: users ask in many voices, and an agent answers in one."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from lhotse import MonoCut, Recording, SupervisionSegment

from whalesong.core.atomic import atomic_folder
from whalesong.core.errors import ConfigError
from whalesong.corpora.espeak import Synthesizer
from whalesong.corpora.grammar import Split
from whalesong.corpora.questions import Question, draw_questions
from whalesong.corpora.recordings import recording_in_memory
from whalesong.corpora.splits import split_counts
from whalesong.corpora.spoken_commands import draw_manner
from whalesong.data.shar import SharSummary, write_shar

FRAME_LENGTH = 0.08
"""Seconds; the agent's turns begin and end on multiples of it."""

AGENT = {"voice": "en-us", "variant": "announcer", "rate_wpm": 160, "pitch": 50}
"""How the agent speaks; no user has its variant."""

RESPONSE_DELAY_S = 0.4
"""The agent begins on the first frame that is so long behind the user's last word."""

REACTION_S = 0.3
"""An agent that is interrupted is silent from the first frame so long behind the user's begin."""

_TWO_QUESTIONS_SHARE = 0.3
_BARGE_IN_SHARE = 0.4
_LONG_SILENCE_SHARE = 0.1
_SHORT_SILENCE_S = (0.2, 0.9)
_LONG_SILENCE_S = (1.5, 3.0)
_SPOKEN_BEFORE_BARGE_IN_S = (0.6, 0.9)
_AUDIBLE = 1e-3


@dataclass(frozen=True)
class _Utterance:
    """What one of the two says.

    Attributes:
        begin: seconds from the beginning of the dialogue.
        waveform: (N,) at the rate of the role's channel.
        duration: seconds.
    """

    role: Literal["user", "agent"]
    text: str
    begin: float
    waveform: np.ndarray
    duration: float

    @property
    def end(self) -> float:
        return self.begin + self.duration


@dataclass
class _Voices:
    """The voices of one split: any user's, and the agent's, who says the same only once."""

    split: Split
    rng: random.Random
    user: Synthesizer
    agent: Synthesizer
    spoken: dict[str, np.ndarray] = field(default_factory=dict)

    def ask(self, text: str, manner: dict[str, str | int], begin: float) -> _Utterance:
        waveform = trim(self.user.speak(text, **manner))
        return _Utterance("user", text, begin, waveform, len(waveform) / self.user.sample_rate)

    def answer(self, text: str, begin: float) -> _Utterance:
        if text not in self.spoken:
            words = trim(self.agent.speak(text, **AGENT))
            self.spoken[text] = _on_whole_frames(words, self.agent.sample_rate)
        waveform = self.spoken[text]
        return _Utterance("agent", text, begin, waveform, len(waveform) / self.agent.sample_rate)


def write_dialogues(
    folder: str | Path,
    *,
    num_train: int,
    num_validation: int,
    num_test: int,
    seed: int = 0,
    shard_size: int = 500,
    source_sample_rate: int = 16000,
    target_sample_rate: int = 22050,
) -> dict[Split, SharSummary]:
    """Write `folder/{train,validation,test}` as lhotse shar.

    The user's channel is the cut's `recording`, the agent's is its `target_audio`; the
    supervisions of the turns have the speakers "user" and "agent". Some dialogues begin with a long
    silence, some have two questions, and in some of these the second interrupts the answer to the
    first. No voice variant, rate or pitch of a user, and no command, is in two splits. Equal
    arguments write equal cuts.

    Args:
        folder: a new or empty folder; it appears only when all of it is written.
        num_train: how many training dialogues.
        num_validation: how many validation dialogues.
        num_test: how many test dialogues.
        seed: what questions, voices and silences are drawn from.
        shard_size: dialogues per shard.
        source_sample_rate: of the user's channel, in Hz.
        target_sample_rate: of the agent's channel, in Hz.

    Raises:
        ConfigError: a count is below 1, or a frame of 80 ms has no whole number of samples.
        DataError: `folder` is not empty, or espeak-ng cannot be loaded.
    """
    counts = split_counts(
        num_train=num_train, num_validation=num_validation, num_test=num_test, shard_size=shard_size
    )
    rates = {"source_sample_rate": source_sample_rate, "target_sample_rate": target_sample_rate}
    _check_rates(rates)
    fields = {"recording": "flac", "target_audio": "flac"}
    with atomic_folder(folder) as partial:
        summaries = {
            split: write_shar(
                speak_dialogues(split=split, count=count, seed=seed, **rates),
                partial / split,
                fields=fields,
                shard_size=shard_size,
                total=count,
            )
            for split, count in counts.items()
        }
    return {
        split: replace(summary, folder=Path(folder) / split) for split, summary in summaries.items()
    }


def speak_dialogues(
    *, split: Split, count: int, seed: int, source_sample_rate: int, target_sample_rate: int
) -> Iterator[MonoCut]:
    """Synthesize the dialogues of one split as cuts with their audio in memory."""
    rng = random.Random(f"{split} {seed}")
    user = Synthesizer(sample_rate=source_sample_rate)
    agent = Synthesizer(sample_rate=target_sample_rate)
    voices = _Voices(split, rng, user, agent)
    questions = draw_questions(rng, split=split)
    for index in range(count):
        turns = _converse(questions, voices)
        duration = _on_grid(turns[-1].end + rng.uniform(*_SHORT_SILENCE_S))
        yield _as_cut(f"{split}-{index:06d}", turns, duration, user, agent)


def _converse(questions: Iterator[Question], voices: _Voices) -> list[_Utterance]:
    """The turns of one dialogue."""
    rng = voices.rng
    manner = draw_manner(rng, split=voices.split)
    silence = _LONG_SILENCE_S if rng.random() < _LONG_SILENCE_SHARE else _SHORT_SILENCE_S
    turns = _exchange(next(questions), voices, manner, rng.uniform(*silence))
    if rng.random() >= _TWO_QUESTIONS_SHARE:
        return turns
    question, answer = turns
    if rng.random() >= _BARGE_IN_SHARE:
        begin = answer.end + rng.uniform(*_SHORT_SILENCE_S)
        return [*turns, *_exchange(next(questions), voices, manner, begin)]
    begin = answer.begin + rng.uniform(*_SPOKEN_BEFORE_BARGE_IN_S)
    interrupted = _cut_off(answer, begin + REACTION_S, voices.agent.sample_rate)
    return [question, interrupted, *_exchange(next(questions), voices, manner, begin)]


def _exchange(
    question: Question, voices: _Voices, manner: dict[str, str | int], begin: float
) -> list[_Utterance]:
    asked = voices.ask(question.text, manner, begin)
    return [asked, voices.answer(question.answer, _on_grid(asked.end + RESPONSE_DELAY_S))]


def _cut_off(answer: _Utterance, end: float, sample_rate: int) -> _Utterance:
    """An answer that stops on the first frame behind `end`."""
    num_samples = round((_on_grid(end) - answer.begin) * sample_rate)
    waveform = answer.waveform[:num_samples]
    return _Utterance(answer.role, answer.text, answer.begin, waveform, len(waveform) / sample_rate)


def _as_cut(
    cut_id: str,
    turns: list[_Utterance],
    duration: float,
    user: Synthesizer,
    agent: Synthesizer,
) -> MonoCut:
    recordings = {
        role: _recording(cut_id, [turn for turn in turns if turn.role == role], duration, rate)
        for role, rate in (("user", user.sample_rate), ("agent", agent.sample_rate))
    }
    supervisions = [
        SupervisionSegment(
            id=f"{cut_id}-{number}",
            recording_id=cut_id,
            start=round(turn.begin, 4),
            duration=round(turn.duration, 4),
            text=turn.text,
            language="en",
            speaker=turn.role,
        )
        for number, turn in enumerate(turns)
    ]
    return MonoCut(
        id=cut_id,
        start=0.0,
        duration=recordings["user"].duration,
        channel=0,
        recording=recordings["user"],
        supervisions=supervisions,
        custom={"target_audio": recordings["agent"]},
    )


def _recording(
    recording_id: str, turns: list[_Utterance], duration: float, sample_rate: int
) -> Recording:
    """One channel, in memory."""
    channel = np.zeros(round(duration * sample_rate), dtype=np.float32)
    for turn in turns:
        begin = round(turn.begin * sample_rate)
        channel[begin : begin + len(turn.waveform)] = turn.waveform
    return recording_in_memory(channel, recording_id, sample_rate)


def _on_whole_frames(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Words between a silent frame, in which a model marks the begin of its turn, and the next end.

    So that equal words have equal codes, in whatever dialogue.
    """
    frame = round(FRAME_LENGTH * sample_rate)
    return np.pad(waveform, (frame, -len(waveform) % frame))


def trim(waveform: np.ndarray) -> np.ndarray:
    """Without the silence around the words."""
    (audible,) = np.nonzero(np.abs(waveform) > _AUDIBLE)
    return waveform[audible[0] : audible[-1] + 1]


def _on_grid(seconds: float) -> float:
    """The first multiple of `FRAME_LENGTH` that is not before."""
    return math.ceil(seconds / FRAME_LENGTH - 1e-6) * FRAME_LENGTH


def _check_rates(rates: dict[str, int]) -> None:
    for name, rate in rates.items():
        samples = rate * FRAME_LENGTH
        if rate < 1 or abs(samples - round(samples)) > 1e-6:
            raise ConfigError(
                f"`{name}` must give a whole number of samples in {FRAME_LENGTH:g} s, "
                f"but is {rate} instead."
            )
