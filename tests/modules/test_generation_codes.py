"""Generation beside an oracle that runs each row alone and everything from the first step."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from whalesong.modules.codebook_patterns import (
    CoarseFirstPattern,
    DelayedPatternProvider,
    MusicLMPattern,
    ParallelPatternProvider,
    PatternProvider,
    UnrolledPatternProvider,
)
from whalesong.modules.generation.generate import Windows, generate_codes, stream_codes
from whalesong.modules.generation.sampling import RowNoise, SamplingSettings

K, V = 3, 11
PROVIDERS = [
    ParallelPatternProvider(K),
    DelayedPatternProvider(K),
    DelayedPatternProvider(K, delays=[3, 0, 1]),
    UnrolledPatternProvider(K),
    UnrolledPatternProvider(K, flattening=[0, 2, 2], delays=[0, 2, 2]),
    MusicLMPattern(K),
    CoarseFirstPattern(K, delays=[0, 1]),
]
EVERY_PATTERN = pytest.mark.parametrize("provider", PROVIDERS, ids=repr)
SETTINGS = [
    SamplingSettings(temperature=0.8, top_k=7),
    SamplingSettings(top_k=0, top_p=0.9),
    SamplingSettings(temperature=0),
]


@cache
def weights() -> tuple[nn.Embedding, nn.GRUCell, nn.Linear]:
    torch.manual_seed(0)
    parts = nn.Embedding(K * (V + 1), 16), nn.GRUCell(16, 16), nn.Linear(16, K * V)
    parts[2].weight.data *= 8
    return tuple(part.double().requires_grad_(False) for part in parts)


class RecurrentStepModel:
    """A GRU over summed embeddings; each row has a condition of its own as first state."""

    num_codebooks, codebook_size = K, V

    def __init__(self, conditions: Tensor) -> None:
        self.conditions, self.state = conditions, conditions
        self.calls: list[tuple[int, slice | None]] = []

    def prefill(self, tokens: Tensor, *, codebooks: slice | None = None) -> Tensor:
        self.state = self.conditions
        for step in range(tokens.shape[2]):
            logits = self._advance(tokens[:, :, step])
        self.calls.append((tokens.shape[2], codebooks))
        return logits[:, codebooks or slice(None)]

    def step(self, tokens: Tensor, *, codebooks: slice | None = None) -> Tensor:
        self.calls.append((1, codebooks))
        return self._advance(tokens)[:, codebooks or slice(None)]

    def _advance(self, tokens: Tensor) -> Tensor:
        table, cell, heads = weights()
        self.state = cell(table(tokens + torch.arange(K) * (V + 1)).sum(1), self.state)
        return heads(self.state).view(-1, K, V)


def conditions(rows: int) -> Tensor:
    return torch.randn(rows, 16, generator=torch.Generator().manual_seed(1)).double()


def draw(logits: np.ndarray, settings: SamplingSettings, noise: float) -> int:
    """The definition, id by id."""
    if settings.temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits)[: settings.top_k or V]
    probs = np.exp((logits[order] - logits.max()) / settings.temperature)
    probs /= probs.sum()
    kept = 1
    while settings.top_p and kept < len(order) and probs[:kept].sum() < settings.top_p:
        kept += 1
    kept = kept if settings.top_p else len(order)
    target, total = noise * probs[:kept].sum(), 0.0
    for index, prob in zip(order[:kept], probs, strict=False):
        total += prob
        if total > target:
            return int(index)
    return int(order[kept - 1])


def oracle(
    provider: PatternProvider,
    condition: Tensor,
    known: Tensor,
    noise: Tensor,
    settings: SamplingSettings,
) -> tuple[Tensor, Tensor]:
    """Codes and log-probabilities (K, F) of one row; for each step all steps are run again."""
    codes, log_probs = known.clone(), torch.zeros(known.shape)
    frame_of = provider.layout(known.shape[1]).frame_of
    sequence, begun = torch.full((1, K, 1), V), False
    for step in range(1, frame_of.shape[1]):
        logits = RecurrentStepModel(condition[None]).prefill(sequence)[0]
        tokens = torch.full((K,), V)
        here = [(k, frame) for k, frame in enumerate(frame_of[:, step].tolist()) if frame >= 0]
        begun = begun or any(known[place] < 0 for place in here)
        for k, frame in here:
            if known[k, frame] < 0:
                codes[k, frame] = draw(logits[k].numpy(), settings, float(noise[k, frame]))
            if begun:
                log_probs[k, frame] = logits[k].log_softmax(-1)[codes[k, frame]]
            tokens[k] = codes[k, frame]
        sequence = torch.cat([sequence, tokens[None, :, None]], dim=2)
    return codes, log_probs


LENS = [7, 5, 8, 1, 4, 0]
PROMPTS = [2, 0, 5, 0, 4, 0]
SEEDS = [11, 12, 13, 14, 15, 16]


def request_rows() -> dict[str, Any]:
    """Rows of many lengths: with a prompt, without, wholly known, with codes known on the right."""
    known = torch.full((6, K, 9), -1)
    codes = torch.randint(0, V, known.shape, generator=torch.Generator().manual_seed(2))
    for row, prompt in enumerate(PROMPTS):
        known[row, :, :prompt] = codes[row, :, :prompt]
    known[0, :, 5:6] = codes[0, :, 5:6]
    known[2, 1, 6] = codes[2, 1, 6]
    return {"known": known, "lens": LENS, "seeds": SEEDS}


@EVERY_PATTERN
@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
def test_each_row_gives_what_it_gives_alone_from_scratch(
    provider: PatternProvider, settings: SamplingSettings
) -> None:
    request = request_rows()
    first = conditions(6)
    codes, log_probs, _ = generate_codes(
        RecurrentStepModel(first), provider, **request, settings=settings
    )
    assert codes.shape == (6, K, 9)
    for row, length in enumerate(LENS):
        noise = RowNoise([SEEDS[row]], K).frames(0, 9)[0]
        own = oracle(provider, first[row], request["known"][row, :, :length], noise, settings)
        assert torch.equal(codes[row, :, :length], own[0])
        assert torch.allclose(log_probs[row, :, :length], own[1], atol=1e-5)
        assert not codes[row, :, length:].any() and not log_probs[row, :, length:].any()


@EVERY_PATTERN
def test_long_clips_equal_their_windows_one_by_one(provider: PatternProvider) -> None:
    request, settings = request_rows(), SETTINGS[0]
    windows = Windows(max_frames=5, stride=3)
    first = conditions(6)
    model = RecurrentStepModel(first)
    codes = generate_codes(model, provider, **request, settings=settings, windows=windows).codes
    for row, length in enumerate(LENS):
        own = request["known"][row, :, :length].clone()
        noise = RowNoise([SEEDS[row]], K).frames(0, 9)[0]
        for begin in range(0, max(length - 2, 1), 3):
            span = slice(begin, min(begin + 5, length))
            own[:, span], _ = oracle(provider, first[row], own[:, span], noise[:, span], settings)
        assert torch.equal(codes[row, :, :length], own)


@EVERY_PATTERN
def test_each_window_is_prompted_at_once_with_the_tail_of_the_last(
    provider: PatternProvider,
) -> None:
    model, known = RecurrentStepModel(conditions(1)), torch.full((1, K, 8), -1)
    codes, *_ = generate_codes(
        model, provider, known=known, lens=[8], seeds=[3], settings=SETTINGS[0],
        windows=Windows(max_frames=5, stride=3),
    )  # fmt: skip
    tail = codes[0, :, 3:].clone()
    tail[:, 2:] = -1
    noise = RowNoise([3], K).frames(3, 8)[0]
    assert torch.equal(
        codes[0, :, 3:], oracle(provider, conditions(1)[0], tail, noise, SETTINGS[0])[0]
    )
    layout = provider.layout(5)
    calls_before = layout.num_steps - int(layout.step_of.min())
    assert model.calls[calls_before][0] == int(layout.step_of[:, 2:].min())


@EVERY_PATTERN
def test_a_clip_that_fits_one_window_needs_none(provider: PatternProvider) -> None:
    request, settings = request_rows(), SETTINGS[0]

    def generate(windows: Windows | None) -> tuple[Tensor, Tensor]:
        model = RecurrentStepModel(conditions(6))
        return generate_codes(model, provider, **request, settings=settings, windows=windows)

    for one, other in zip(generate(Windows(max_frames=8, stride=1)), generate(None), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("num_frames", range(1, 40))
def test_windows_cover_a_clip_and_share_their_prompts(num_frames: int) -> None:
    spans = Windows(max_frames=10, stride=4).spans(num_frames)
    assert spans[0][0] == 0 and spans[-1][1] == num_frames
    for (begin, end), (next_begin, next_end) in zip(spans, spans[1:], strict=False):
        assert end - begin == 10 and next_begin == begin + 4 and next_end > end


@EVERY_PATTERN
@pytest.mark.parametrize("windows", [None, Windows(max_frames=5, stride=3)])
def test_streamed_frames_joined_are_the_whole(
    provider: PatternProvider, windows: Windows | None
) -> None:
    request: dict[str, Any] = {**request_rows(), "settings": SETTINGS[0], "windows": windows}
    whole = generate_codes(RecurrentStepModel(conditions(6)), provider, **request)
    pieces = list(stream_codes(RecurrentStepModel(conditions(6)), provider, **request))
    assert all(piece.shape[2] for piece in pieces)
    assert torch.equal(torch.cat(pieces, dim=2), whole.codes)
    heard: list[Tensor] = []
    called = generate_codes(
        RecurrentStepModel(conditions(6)), provider, **request, on_frames=heard.append
    )
    assert torch.equal(torch.cat(heard, dim=2), whole.codes)
    assert torch.equal(called.log_probs, whole.log_probs)


@EVERY_PATTERN
def test_a_frame_is_streamed_at_the_step_that_completes_it(provider: PatternProvider) -> None:
    known = torch.full((1, K, 10), -1)
    known[:, :, :4] = 1
    model = RecurrentStepModel(conditions(1))
    pieces = stream_codes(model, provider, known=known, lens=[10], seeds=[0], settings=SETTINGS[0])
    layout = provider.layout(10)
    given, prompt = 0, int(layout.step_of[:, 4:].min())
    for piece in pieces:
        given += piece.shape[2]
        steps_known = sum(steps for steps, _ in model.calls) if model.calls else prompt - 1
        assert int(layout.step_of[:, :given].max()) <= steps_known
        if given < 10:
            assert int(layout.step_of[:, given].max()) > steps_known
    assert given == 10


@EVERY_PATTERN
def test_the_model_runs_each_step_once_and_prompts_at_once(provider: PatternProvider) -> None:
    known = torch.full((2, K, 8), -1)
    known[:, :, :3] = 5
    model = RecurrentStepModel(conditions(2))
    told: list[tuple[int, int]] = []
    generate_codes(
        model,
        provider,
        known=known,
        lens=[8, 6],
        seeds=[1, 2],
        settings=SETTINGS[0],
        progress=lambda done, total: told.append((done, total)),
    )
    layout = provider.batch_layout([8, 6])
    first = int(layout.step_of[0, :, 3:].min())
    other = int(layout.step_of[1, :, 3:6].min())
    assert model.calls[0][0] == min(first, other)
    assert sum(steps for steps, _ in model.calls) == layout.num_steps - 1
    assert told == [(done + 1, len(model.calls)) for done in range(len(model.calls))]


def test_only_codebooks_that_stand_at_a_step_are_asked_for() -> None:
    model = RecurrentStepModel(conditions(1))
    request: dict[str, Any] = {"lens": [2], "seeds": [1], "settings": SETTINGS[0]}
    known = torch.full((1, K, 2), -1)
    generate_codes(model, UnrolledPatternProvider(K), known=known, **request)
    assert [books for _, books in model.calls] == [slice(k, k + 1) for k in range(K)] * 2
    model.calls.clear()
    generate_codes(model, DelayedPatternProvider(K, delays=[0, 0, 1]), known=known, **request)
    assert [books for _, books in model.calls] == [slice(0, 2), None, slice(2, 3)]


def test_a_step_where_nothing_stands_still_asks_for_logits() -> None:
    model = RecurrentStepModel(conditions(1))
    provider = UnrolledPatternProvider(K, flattening=[0, 2, 2])
    known = torch.full((1, K, 2), -1)
    generate_codes(model, provider, known=known, lens=[2], seeds=[1], settings=SETTINGS[0])
    books = [(asked.start, asked.stop) for _, asked in model.calls]
    assert books == [(0, 1), (1, 3), (0, 1), (0, 1), (1, 3)]


def test_nothing_to_generate_runs_no_model() -> None:
    model = RecurrentStepModel(conditions(2))
    known = torch.randint(0, V, (2, K, 5))
    codes, log_probs, _ = generate_codes(
        model, PROVIDERS[1], known=known, lens=[5, 3], seeds=[1, 2], settings=SETTINGS[0]
    )
    assert torch.equal(codes[0], known[0]) and torch.equal(codes[1, :, :3], known[1, :, :3])
    assert not codes[1, :, 3:].any() and not log_probs.any() and not model.calls


def test_the_request_is_left_as_it_is() -> None:
    request = request_rows()
    before = request["known"].clone()
    generate_codes(RecurrentStepModel(conditions(6)), PROVIDERS[1], **request, settings=SETTINGS[0])
    assert torch.equal(request["known"], before)


def test_another_seed_changes_its_row_only() -> None:
    request: dict[str, Any] = {**request_rows(), "settings": SETTINGS[0]}
    before = generate_codes(RecurrentStepModel(conditions(6)), PROVIDERS[1], **request).codes
    request["seeds"] = [99, *SEEDS[1:]]
    after = generate_codes(RecurrentStepModel(conditions(6)), PROVIDERS[1], **request).codes
    assert not torch.equal(before[0], after[0]) and torch.equal(before[1:], after[1:])


class BadStepModel(RecurrentStepModel):
    bad = 0.0

    def _advance(self, tokens: Tensor) -> Tensor:
        logits = super()._advance(tokens)
        logits[1, 0, 3] = self.bad
        return logits


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
def test_bad_logits_are_refused_with_their_rows(bad: float, settings: SamplingSettings) -> None:
    model = BadStepModel(conditions(3))
    model.bad = bad
    request: dict[str, Any] = {"lens": [4] * 3, "seeds": [1, 2, 3], "settings": settings}
    with pytest.raises(ValueError, match=r"must be finite, but in rows \[1\] are not"):
        generate_codes(model, PROVIDERS[1], known=torch.full((3, K, 4), -1), **request)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"known": torch.full((6, 2, 9), -1)}, r"`known` must be \(B, 3, F\), but is \(6, 2, 9"),
        (
            {"known": torch.full((6, K, 9), V)},
            "from 0 to 10, or -1 for .*, but goes from 11 to 11",
        ),
        ({"lens": [10] * 6}, "`lens` must be between 0 and the 9 frames of `known`"),
        ({"lens": [1]}, "one entry for each of 6 rows, but have 1 and 6"),
        ({"seeds": [1]}, "one entry for each of 6 rows, but have 6 and 1"),
    ],
)
def test_requests_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    request = {**request_rows(), "settings": SETTINGS[0], **change}
    with pytest.raises(ValueError, match=message):
        generate_codes(RecurrentStepModel(conditions(6)), PROVIDERS[0], **request)


def test_a_pattern_of_another_model_and_windows_without_prompt_are_refused() -> None:
    request = {**request_rows(), "settings": SETTINGS[0]}
    with pytest.raises(ValueError, match="must have the model's 3 codebooks, but has 4"):
        stream_codes(RecurrentStepModel(conditions(6)), DelayedPatternProvider(4), **request)
    with pytest.raises(ValueError, match=r"less than `max_frames` \(5\), but is 5"):
        Windows(max_frames=5, stride=5)
