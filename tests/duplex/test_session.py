"""A session says piece by piece what `offline_inference` says to the whole, in constant memory."""

import re
import resource
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fixtures.memory import bytes_of_tensors
from torch import Tensor

from whalesong.core.errors import ConfigError, DataError, UserError

FAMILIES = ("duplex_s2s", "duplex_s2s_speech_decoder")
CUTS = {
    "frames": [1280],
    "seconds": [16000],
    "whole": [10**6],
    "any": [777, 1, 0, 5000, 1279, 160],
}
Build = Callable[..., Any]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, talkative: Build) -> Any:
    return talkative(request.param, attention_window=20)


def cut(audio: Tensor, sizes: list[int]) -> Iterator[Tensor]:
    begin, turn = 0, 0
    while begin < len(audio):
        yield audio[begin : begin + sizes[turn % len(sizes)]]
        begin, turn = begin + sizes[turn % len(sizes)], turn + 1


def hold(model: Any, pieces: Iterator[Tensor], **generation: Any) -> tuple[str, Tensor, list[Any]]:
    session = model.start_session(**generation)
    steps = [*(session.step(piece) for piece in pieces), session.finish()]
    return "".join(s.text for s in steps), torch.cat([s.audio for s in steps]), session.turns


def check_equal(model: Any, audio: Tensor, sizes: list[int], **generation: Any) -> str:
    expected = model.offline_inference(audio[None], torch.tensor([len(audio)]), **generation)
    text, samples, turns = hold(model, cut(audio, sizes), **generation)
    assert text == expected["text"][0] and turns == expected["turns"][0]
    torch.testing.assert_close(samples, expected["audio"][0], atol=1e-4, rtol=1e-4)
    return text


@pytest.mark.parametrize("sizes", CUTS.values(), ids=CUTS)
def test_any_pieces_get_the_answer_to_the_whole(model: Any, sizes: list[int]) -> None:
    torch.manual_seed(3)
    assert check_equal(model, 0.1 * torch.randn(54321), sizes)


def test_the_most_probable_is_said_in_pieces_too(model: Any) -> None:
    audio = 0.1 * torch.randn(30000, generator=torch.Generator().manual_seed(2))
    check_equal(model, audio, CUTS["any"], text_temperature=0.0, temperature=0.0)


@pytest.mark.parametrize("num_samples", [0, 1, 1279, 1281])
def test_single_samples_and_short_recordings(model: Any, num_samples: int) -> None:
    check_equal(model, 0.1 * torch.ones(num_samples), [1])


def test_guided_speech_in_pieces(talkative: Build) -> None:
    decoder = {"d_model": 32, "n_layers": 1, "n_heads": 2, "d_kv": 16, "d_ff": 64,
               "unconditional_prob": 0.1}  # fmt: skip
    model = talkative("duplex_s2s_speech_decoder", speech_decoder=decoder)
    check_equal(model, 0.1 * torch.randn(20000), [1280], guidance_scale=2.0)


def test_the_answer_to_a_frame_comes_with_it(model: Any) -> None:
    session = model.start_session()
    for count in range(1, 12):
        session.step(0.1 * torch.randn(1280))
        assert session.num_frames == count


def test_sessions_of_one_model_do_not_meet(model: Any) -> None:
    audios = 0.1 * torch.randn(2, 25600)
    expected = [hold(model, cut(audio, [1280])) for audio in audios]
    sessions = [model.start_session() for _ in audios]
    texts = ["", ""]
    for begin in range(0, 25600, 1280):
        for row, session in enumerate(sessions):
            texts[row] += session.step(audios[row, begin : begin + 1280]).text
    texts = [text + session.finish().text for text, session in zip(texts, sessions, strict=True)]
    assert texts == [text for text, _, _ in expected]
    assert [session.turns for session in sessions] == [turns for _, _, turns in expected]


@pytest.mark.parametrize("seconds", [30, pytest.param(600, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_conversation(talkative: Build, seconds: int) -> None:
    session = talkative("duplex_s2s_speech_decoder", attention_window=8).start_session()
    second = 0.1 * torch.randn(16000)

    def hear(until: int) -> tuple[int, int]:
        """Bytes of all tensors afterwards, and the peak of the process in KiB."""
        while session.num_frames < until:
            session.step(second)
        return bytes_of_tensors(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    held, peak = hear(until=125)
    held_later, peak_later = hear(until=seconds * 25 // 2)
    assert held_later <= held + 4096
    assert peak_later - peak < 10 * 1024


def test_the_report_tells_speed_and_spread(model: Any) -> None:
    session = model.start_session()
    assert session.report() == "no frame yet"
    for _ in range(5):
        session.step(torch.zeros(1280))
    form = r"real-time factor (.+), ms per frame of 80 ms: p50 (.+), p95 (.+), p99 (.+), max (.+)"
    factor, *times = map(float, re.fullmatch(form, session.report()).groups())
    assert 0 < factor and times == sorted(times) and times[0] > 0
    assert times[0] / 80 < 5 * factor and factor <= times[-1] / 80 * 1.01


# -- what is refused ----------------------------------------------------------------------------


def test_an_encoder_that_looks_ahead_is_refused(build_duplex: Build, tiny_asr: Any) -> None:
    encoder = {"preprocessor": {"normalize": "NA"}, "encoder": {"att_context_size": [-1, -1]}}
    connector = "nemo.collections.speechlm2.modules.perception.IdentityConnector"
    encoder["modality_adapter"] = {"_target_": connector, "d_model": None}
    model = build_duplex(pretrained_asr=str(tiny_asr), perception=encoder)
    with pytest.raises(ConfigError, match=r"att_context_size` must be \[left, 0\].*\[-1, -1\]"):
        model.start_session()


def test_bad_samples_are_refused_and_change_nothing(model: Any) -> None:
    audio = 0.1 * torch.randn(25600)
    session = model.start_session()
    texts = [session.step(audio[:12345]).text]
    for bad, message in (
        (torch.zeros(1, 5), r"but is torch.float32 \(1, 5\)"),
        (torch.zeros(5, dtype=torch.int16), r"but is torch.int16 \(5,\)"),
        ([0.0], "but is list"),
        (torch.tensor([0.0, float("nan")]), "must be finite, but is nan at index 1"),
    ):
        with pytest.raises(DataError, match=message):
            session.step(bad)
    texts += [session.step(audio[12345:]).text, session.finish().text]
    assert "".join(texts) == hold(model, cut(audio, [25600]))[0]


def test_a_finished_session_is_refused(model: Any) -> None:
    session = model.start_session()
    session.finish()
    for call in (session.finish, lambda: session.step(torch.zeros(5))):
        with pytest.raises(UserError, match="after `finish`"):
            call()


def test_a_training_model_is_refused(model: Any) -> None:
    model.train()
    try:
        with pytest.raises(ConfigError, match="evaluation mode"):
            model.start_session()
    finally:
        model.eval()


def test_a_conversation_beyond_the_context_is_refused(build_duplex: Build) -> None:
    model = build_duplex()
    model.model.llm.config.max_position_embeddings = 12
    session = model.start_session()
    session.step(torch.zeros(12 * 1280))
    with pytest.raises(ConfigError, match="at most 12 frames.*`attention_window`.* it has 13"):
        session.step(torch.zeros(1280))
    assert session.num_frames == 12
