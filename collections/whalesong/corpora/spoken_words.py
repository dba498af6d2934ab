"""Utterances that teach a recognizer the words of the dialogues: in any order, and in sentences."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from lhotse import MonoCut

from whalesong.corpora.dialogues import AGENT, trim
from whalesong.corpora.espeak import Synthesizer
from whalesong.corpora.questions import VOCABULARY, draw_questions
from whalesong.corpora.recordings import as_cut
from whalesong.corpora.spoken_commands import draw_manner
from whalesong.data.shar import SharSummary, write_shar

_SENTENCE_SHARE = 0.4
_AGENT_SHARE = 0.15
_MOST_WORDS = 4
_SILENCE_BEFORE_S = (0.05, 0.5)
_SILENCE_BEHIND_S = (0.2, 0.5)


def write_spoken_words(
    folder: str | Path,
    *,
    count: int,
    seed: int = 0,
    shard_size: int = 1000,
    sample_rate: int = 16000,
) -> SharSummary:
    """Write `count` utterances of the training voices and the agent as lhotse shar.

    Most are a few random words, of which a recognizer learns sooner what each sounds like than from
    sentences that it can guess; the others are training questions and answers. Equal arguments
    write equal cuts.

    Args:
        folder: a new folder.
        count: how many utterances.
        seed: what words and voices are drawn from.
        shard_size: utterances per shard.
        sample_rate: in Hz.

    Raises:
        DataError: `folder` exists, `count` is 0, or espeak-ng cannot be loaded.
    """
    return write_shar(
        speak_words(count=count, seed=seed, sample_rate=sample_rate),
        folder,
        shard_size=shard_size,
        total=count,
    )


def speak_words(*, count: int, seed: int, sample_rate: int) -> Iterator[MonoCut]:
    """Synthesize utterances as cuts with their audio in memory."""
    rng = random.Random(f"words {seed}")
    synthesizer = Synthesizer(sample_rate=sample_rate)
    texts = _texts(rng)
    for index in range(count):
        text, is_agent = next(texts)
        manner = AGENT if is_agent else draw_manner(rng, split="train")
        silences = (rng.uniform(*_SILENCE_BEFORE_S), rng.uniform(*_SILENCE_BEHIND_S))
        padding = [round(seconds * sample_rate) for seconds in silences]
        waveform = np.pad(trim(synthesizer.speak(text, **manner)), padding)
        yield as_cut(f"words-{index:06d}", waveform, sample_rate, text=text)


def _texts(rng: random.Random) -> Iterator[tuple[str, bool]]:
    """A text, and whether it is the agent who says it."""
    questions = draw_questions(rng, split="train")
    while True:
        is_agent = rng.random() < _AGENT_SHARE
        if rng.random() < _SENTENCE_SHARE:
            question = next(questions)
            yield question.answer if is_agent else question.text, is_agent
        else:
            yield " ".join(rng.choices(VOCABULARY, k=rng.randint(1, _MOST_WORDS))), is_agent
