"""AudioLM gives out audio while it generates; joined it is the whole."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from whalesong.models.audiolm.audio_generator import GeneratedAudio
from whalesong.models.audiolm.request import make_request
from whalesong.models.audiolm.stream import AudioStream

SAMPLES = 320
"""Of a frame."""


@pytest.fixture(scope="module")
def model(build_audiolm: Callable[..., Any]) -> Any:
    model = build_audiolm(prompt={"modes": {"prefix": 1, "none": 1}}, ar_group=2)
    model.model.lm.ar.heads.weight.data *= 10
    return model


def begin() -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.rand(1, 10 * SAMPLES + 17, generator=generator) - 0.5,
        torch.randint(32, (3, 4), generator=generator),
        None,
    ]


def join(stream: AudioStream) -> list[Tensor]:
    return [torch.cat(pieces, dim=1) for pieces in zip(*stream, strict=True)]


def assert_same(streamed: list[Tensor], made: GeneratedAudio) -> None:
    for ours, whole in zip(streamed, made.audio, strict=True):
        torch.testing.assert_close(ours, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("return_prompt", [True, False])
def test_the_pieces_are_the_whole(model: Any, return_prompt: bool) -> None:
    settings = {
        "seconds": [0.4, 0.2, 0.3],
        "seeds": 5,
        "nar_chunk_seconds": 0.1,
        "nar_temperature": 0.5,
        "stop_on_eos": False,
        "return_prompt": return_prompt,
    }
    made = model.generate_audio(begin(), **settings)
    assert made.num_new == [20, 10, 15]
    given = [10, 4, 0] if return_prompt else [0, 0, 0]
    assert (
        [codes.shape[1] for codes in made.codes] == [30, 14, 15] if return_prompt else [20, 10, 15]
    )
    lens = [(more + new) * SAMPLES for more, new in zip(given, made.num_new, strict=True)]
    assert [audio.shape for audio in made.audio] == [(1, length) for length in lens]
    assert_same(join(model.stream_audio(begin(), **settings)), made)


def test_rows_end_by_themselves(model: Any) -> None:
    bias = model.model.lm.ar.logit_bias
    before = bias.clone()
    bias[:2, -1] += 3
    settings = {"seconds": 1.0, "seeds": 1, "nar_chunk_seconds": 0.1}
    try:
        made = model.generate_audio(begin(), **settings)
        streamed = join(model.stream_audio(begin(), **settings))
    finally:
        bias.copy_(before)
    assert len(set(made.num_new)) == 3
    assert_same(streamed, made)


def test_a_piece_comes_as_soon_as_its_chunk_is_there(model: Any) -> None:
    steps: list[int] = []
    generator = model.parts.predictor.generator(nar_chunk_seconds=0.1, stop_on_eos=False)
    request = make_request(begin=begin()[:1], seconds=0.8, seeds=0)
    stream = generator.stream(request, progress=lambda done, total: steps.append(done))
    assert stream.first_audio_seconds is None
    assert stream.real_time_factor is None
    next(stream)
    # Chunks of 5 frames; a step gives 2, and the codec waits for frames to the right.
    assert len(steps) < 20
    assert stream.first_audio_seconds > 0
    first = stream.first_audio_seconds
    list(stream)
    assert len(steps) == 20
    assert stream.first_audio_seconds == first
    assert stream.real_time_factor > first / 0.8


def test_chunks_have_half_a_second_by_default(model: Any) -> None:
    settings = {"seconds": 1.0, "seeds": 2, "stop_on_eos": False}
    streamed = join(model.stream_audio(begin()[:1], **settings))
    assert_same(streamed, model.generate_audio(begin()[:1], nar_chunk_seconds=0.5, **settings))


def test_a_model_of_one_half_streams(build_audiolm: Callable[..., Any]) -> None:
    model = build_audiolm(ar_quantizers=3, ar_pattern="delayed")
    settings = {"seconds": 0.3, "seeds": 0, "stop_on_eos": False}
    assert_same(
        join(model.stream_audio(begin()[:2], **settings)),
        model.generate_audio(begin()[:2], **settings),
    )


def test_a_stream_leads_to_nothing(model: Any) -> None:
    request = make_request(begin=begin()[:1], end=begin()[1:2], seconds=0.2, seeds=0)
    with pytest.raises(ValueError, match="must have nothing to lead to, but `end` has clips"):
        model.parts.predictor.generator().stream(request)
