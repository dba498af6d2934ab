import random

import numpy as np
import pytest
from lhotse import CutSet

from whalesong.core.errors import ConfigError
from whalesong.corpora.dialogues import FRAME_LENGTH, REACTION_S, RESPONSE_DELAY_S, write_dialogues
from whalesong.corpora.grammar import split_of
from whalesong.corpora.questions import VOCABULARY, all_questions, draw_questions
from whalesong.corpora.spoken_words import write_spoken_words

COUNTS = {"num_train": 40, "num_validation": 4, "num_test": 6}
SAMPLES = 1764


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "dialogues"
    summary = write_dialogues(folder, **COUNTS, seed=1, shard_size=20)
    return folder, summary


@pytest.fixture(scope="module")
def dialogues(corpus):
    return list(CutSet.from_shar(in_dir=str(corpus[0] / "train")))


def agent_samples(cut, turn):
    begin, end = (round(seconds * 22050) for seconds in (turn.start, turn.end))
    return cut.load_target_audio()[0, begin:end]


def pairs(cut):
    """Questions and answers in turn."""
    return list(zip(cut.supervisions[::2], cut.supervisions[1::2], strict=True))


def test_two_channels_read_back_with_their_turns(corpus, dialogues):
    assert len(dialogues) == COUNTS["num_train"] == corpus[1]["train"].num_cuts
    assert corpus[1]["train"].folder == corpus[0] / "train"
    answers = {question.text: question.answer for question in all_questions()}
    for cut in dialogues:
        assert (cut.sampling_rate, cut.target_audio.sampling_rate) == (16000, 22050)
        assert cut.load_audio().shape[1] * 22050 == cut.load_target_audio().shape[1] * 16000
        for asked, answered in pairs(cut):
            assert (asked.speaker, answered.speaker) == ("user", "agent")
            assert answers[asked.text] == answered.text
            assert asked.end < answered.start < answered.end <= cut.duration


def test_the_agent_begins_on_a_frame_soon_after_the_user(dialogues):
    for cut in dialogues:
        for asked, answered in pairs(cut):
            for seconds in (answered.start, answered.end):
                assert seconds / FRAME_LENGTH == pytest.approx(round(seconds / FRAME_LENGTH))
            delay = answered.start - asked.end
            assert RESPONSE_DELAY_S - 1e-3 <= delay <= RESPONSE_DELAY_S + FRAME_LENGTH + 1e-3


def test_each_speaks_in_its_turns_only(dialogues):
    for cut in dialogues:
        for role, audio, rate in (
            ("user", cut.load_audio()[0], 16000),
            ("agent", cut.load_target_audio()[0], 22050),
        ):
            silent = np.ones(len(audio), dtype=bool)
            for turn in cut.supervisions:
                if turn.speaker == role:
                    part = slice(round(turn.start * rate), round(turn.end * rate))
                    assert np.abs(audio[part]).max() > 0.05
                    silent[max(part.start - 2, 0) : part.stop + 2] = False
            assert not audio[silent].any()


def test_an_answer_sounds_the_same_in_every_dialogue(dialogues):
    heard = {}
    for cut in dialogues:
        for _, turn in pairs(cut):
            heard.setdefault(turn.text, []).append(agent_samples(cut, turn))
    repeated = [sounds for sounds in heard.values() if len(sounds) > 1]
    assert repeated
    for sounds in repeated:
        for sound in sounds:
            shortest = min(map(len, sounds))
            assert not sound[:SAMPLES].any()  # where the model marks the begin of its turn
            np.testing.assert_array_equal(sound[:shortest], sounds[0][:shortest])


def test_some_questions_interrupt_the_agent_who_stops_soon(dialogues):
    interrupted = 0
    for cut in dialogues:
        if len(cut.supervisions) < 4:
            continue
        _, answer, second, _ = cut.supervisions
        if second.start < answer.end:
            interrupted += 1
            assert -1e-3 <= answer.end - second.start - REACTION_S <= FRAME_LENGTH + 1e-3
    assert interrupted
    assert interrupted < len(dialogues) / 2


def test_no_command_is_in_two_splits(corpus):
    answers = {}
    for split in ("train", "validation", "test"):
        cuts = CutSet.from_shar(in_dir=str(corpus[0] / split))
        answers[split] = {
            turn.text for cut in cuts for turn in cut.supervisions if turn.speaker == "agent"
        }
        commands = {text for text in answers[split] if "plus" not in text}
        assert commands
        assert {split_of(text) for text in commands} == {split}


def test_training_questions_hold_every_word():
    questions = draw_questions(random.Random(0), split="train")
    words = {
        word
        for question, _ in zip(questions, range(2000), strict=False)
        for word in f"{question.text} {question.answer}".split()
    }
    assert words == set(VOCABULARY)


def test_equal_arguments_write_equal_dialogues(corpus, tmp_path):
    write_dialogues(tmp_path / "again", **COUNTS, seed=1, shard_size=20)
    ours, theirs = (
        list(CutSet.from_shar(in_dir=str(folder / "test")))
        for folder in (corpus[0], tmp_path / "again")
    )
    for cut, other in zip(ours, theirs, strict=True):
        assert cut.supervisions == other.supervisions
        np.testing.assert_array_equal(cut.load_audio(), other.load_audio())
        np.testing.assert_array_equal(cut.load_target_audio(), other.load_target_audio())


def test_a_rate_without_whole_frames_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="`target_sample_rate` must give a whole number"):
        write_dialogues(tmp_path / "x", **COUNTS, target_sample_rate=22051)
    assert not (tmp_path / "x").exists()


def test_spoken_words_have_one_text_each(tmp_path):
    summary = write_spoken_words(tmp_path / "words", count=30)
    cuts = list(CutSet.from_shar(in_dir=str(tmp_path / "words")))
    assert len(cuts) == summary.num_cuts == 30
    for cut in cuts:
        (supervision,) = cut.supervisions
        assert supervision.text
        assert set(supervision.text.split()) <= set(VOCABULARY)
        assert cut.load_audio().any()
