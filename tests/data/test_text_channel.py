"""Text on a grid of frames: where turns begin and end, what does not fit, who speaks."""

import logging
import math
from typing import Any

import numpy as np
import pytest
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

from whalesong.core.errors import DataError
from whalesong.data.text_channel import (
    NO_EVENT,
    TURN_BEGINS,
    TURN_ENDS,
    TextChannel,
    TextIds,
    frame_at,
    place_turns,
)
from whalesong.data.turns import Turn, turns_of

IDS = TextIds(bos=1, eos=2, pad=0)
BOS, EOS, PAD = IDS.bos, IDS.eos, IDS.pad


def letters(text: str) -> list[int]:
    """One token a letter, from 10 on."""
    return [ord(letter) - ord("a") + 10 for letter in text if letter != " "]


def place(
    *turns: tuple[float, float | None, str], num_frames: int = 12, ids: TextIds = IDS
) -> TextChannel:
    return place_turns(
        [Turn(*turn) for turn in turns],
        num_frames=num_frames, frame_length=0.1, encode=letters, ids=ids, name="x.wav, cut c",
    )  # fmt: skip


def talk(*segments: tuple[str, float, float, Any], duration: float = 4.0) -> MonoCut:
    source = AudioSource("file", channels=[0], source="x.wav")
    recording = Recording("x", [source], 16000, round(16000 * duration), duration)
    cut = recording.to_cut()
    cut.id = "c"
    cut.supervisions = [
        SupervisionSegment(f"s{n}", "x", start, length, text=text, speaker=speaker)
        for n, (speaker, start, length, text) in enumerate(segments)
    ]
    return cut


def test_a_turn_begins_speaks_and_ends_on_the_grid() -> None:
    channel = place((0.2, 0.8, "abc"), (0.91, None, "d"))
    assert channel.tokens == [PAD, PAD, BOS, 10, 11, 12, PAD, PAD, EOS, BOS, 13, PAD]
    expected = [NO_EVENT] * 12
    expected[2] = expected[9] = TURN_BEGINS
    expected[8] = TURN_ENDS
    assert channel.events == expected


def test_a_turn_that_ends_outside_of_the_row_is_unfinished() -> None:
    for end in (1.2, 5.0, None):
        channel = place((0.9, end, "a"))
        assert channel.tokens[9:] == [BOS, 10, PAD] and TURN_ENDS not in channel.events


def test_a_turn_ends_in_front_of_the_next_one(caplog: pytest.LogCaptureFixture) -> None:
    for end in (0.5, 0.9, None):
        channel = place((0.5, 1.1, "b"), (0.0, end, "a"))
        assert channel.tokens == [BOS, 10, PAD, PAD, EOS, BOS, 11, *[PAD] * 4, EOS]
    assert not caplog.records


def test_text_is_cut_to_its_turn_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        channel = place((0.0, 0.5, "abcdefg"), (0.6, 1.0, "hij"))
    assert channel.tokens == [BOS, 10, 11, 12, 13, EOS, BOS, 17, 18, 19, EOS, PAD]
    assert [record.getMessage() for record in caplog.records] == [
        "x.wav, cut c: the turn at 0.00 s has 7 tokens, but room for 4: the last 3 are left out."
    ]


def test_text_of_an_unfinished_turn_is_cut_to_the_row(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert place((0.9, None, "abc")).tokens[9:] == [BOS, 10, 11]
    assert place((1.1, None, "abc")).tokens[10:] == [PAD, BOS]
    assert [record.args[-1] for record in caplog.records] == [1, 3]


def test_turns_that_begin_in_the_same_frame_are_one() -> None:
    channel = place((0.22, 0.3, "a"), (0.18, 0.7, "b"))
    assert channel.tokens[2:8] == [BOS, 11, 10, PAD, PAD, EOS]
    assert TURN_ENDS not in place((0.2, None, "a"), (0.2, 0.7, "b")).events


def test_a_turn_without_text_and_turns_of_a_single_frame() -> None:
    assert place((0.3, 0.6, "")).tokens[3:7] == [BOS, PAD, PAD, EOS]
    assert place((0.3, 0.3, "")).tokens[3:6] == [BOS, EOS, PAD]
    channel = place((0.3, 0.3, ""), (0.4, 0.6, "a"))
    assert channel.tokens[3:7] == [BOS, BOS, 10, EOS]
    assert channel.events[3:7] == [TURN_BEGINS, TURN_BEGINS, NO_EVENT, TURN_ENDS]


def test_events_tell_begin_from_end_where_the_tokens_do_not() -> None:
    channel = place((0.1, 0.4, "a"), ids=TextIds(bos=5, eos=5, pad=0))
    assert channel.tokens[1:5] == [5, 10, PAD, 5]
    assert channel.events[1:5] == [TURN_BEGINS, NO_EVENT, NO_EVENT, TURN_ENDS]


@pytest.mark.parametrize("begin", [1.15, 7.0, -0.2])
def test_a_turn_outside_of_the_row_is_refused(begin: float) -> None:
    with pytest.raises(DataError, match=r"x.wav, cut c: a turn must begin within its 1.20 s, but"):
        place((begin, None, "a"))


def test_control_tokens_in_a_text_are_refused() -> None:
    with pytest.raises(DataError, match=r"at 0.10 s must not hold the token 10 that begins or"):
        place((0.1, 0.8, "cab"), ids=TextIds(bos=1, eos=10, pad=0))


def test_any_turns_give_pairs_of_begins_and_ends() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        begins = rng.uniform(0, 1.1, size=rng.integers(1, 6))
        turns = [(b, b + rng.exponential(0.3), "abcdef"[: rng.integers(0, 7)]) for b in begins]
        channel = place(*turns)
        assert len(channel.tokens) == len(channel.events) == 12
        events = {BOS: TURN_BEGINS, EOS: TURN_ENDS}
        assert channel.events == [events.get(token, NO_EVENT) for token in channel.tokens]
        frames = {frame_at(begin, 0.1) for begin in begins}
        assert {n for n, event in enumerate(channel.events) if event == TURN_BEGINS} == frames
        marks = [event for event in channel.events if event != NO_EVENT]
        assert all(two != (TURN_ENDS, TURN_ENDS) for two in zip(marks, marks[1:], strict=False))


def test_frames_are_rounded_as_lhotse_does() -> None:
    from lhotse import compute_num_frames

    times = [n / 1000 for n in range(4000)]
    expected = [compute_num_frames(time, 0.08, 16000) for time in times]
    assert [frame_at(time, 0.08) for time in times] == expected
    assert frame_at(0.12, 0.08) == 2


def test_well_formed_turns_stand_where_nemo_puts_them() -> None:
    from nemo.collections.speechlm2.data.s2s_dataset import build_token_channel

    class Tokenizer:
        bos, eos = BOS, EOS
        text_to_ids = staticmethod(letters)

    rng = np.random.default_rng(0)
    for _ in range(50):
        begin, segments = 0.0, []
        for word in ("some", "more", "w"):
            begin += round(rng.uniform(0.1, 0.4), 3)
            length = round(rng.uniform(0.6, 1.2), 3)
            segments.append(("agent", begin, length, word))
            begin += length
        cut = talk(("user", 0.3, 2.0, "else"), *segments, duration=4.8)
        theirs = build_token_channel(cut, Tokenizer(), 0.08, roles={"agent"}, pad_id=PAD)
        ours = place_turns(
            turns_of(cut, ["agent"]),
            num_frames=60, frame_length=0.08, encode=letters, ids=IDS, name="c",
        )  # fmt: skip
        assert ours.tokens == theirs.tolist()


def test_turns_of_a_role_in_order_without_timestamps() -> None:
    cut = talk(
        ("Assistant", 2.0, 1.0, "bye"),
        ("user", 0.0, 1.0, "hello"),
        ("agent", 1.0, 0.5, "<|0|> Hey <|3|> <|3|> how <|5|>  are you?"),
    )
    assert turns_of(cut, ["agent", "Assistant"]) == [
        Turn(1.0, 1.5, "Hey how are you?"), Turn(2.0, 3.0, "bye")
    ]  # fmt: skip


def test_overlapping_sides_are_kept() -> None:
    cut = talk(("agent", 0.0, 3.0, "a"), ("user", 1.0, 1.5, "stop"))
    assert turns_of(cut, ["user"]) == [Turn(1.0, 2.5, "stop")]
    assert turns_of(cut, ["agent"]) == [Turn(0.0, 3.0, "a")]


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        (("agent", 1.0, 1.0, None), "the turn of agent at 1.00 s must have a text, but has none"),
        (("agent", 1.0, 1.0, 7), "the turn of agent at 1.00 s must have a text, but has 7"),
        (("agent", math.nan, 1.0, "a"), "must have a begin and a duration of at least 0 s, but"),
        (("agent", 1.0, -1.0, "a"), "must have a begin and a duration of at least 0 s, but"),
        (("bot", 1.0, 1.0, "a"), "the speaker 'agent' or 'Agent', but has those of 'bot'"),
    ],
)
def test_turns_that_cannot_be_read_name_the_cut(segment: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^x.wav, cut c: .*{message}"):
        turns_of(talk(segment), ["agent", "Agent"])


def test_a_cut_without_supervisions_says_so() -> None:
    with pytest.raises(DataError, match="of the speaker 'agent', but has none"):
        turns_of(talk(), ["agent"])
