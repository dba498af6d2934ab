"""Rows that end where the model says so, beside an oracle that runs each row alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from whalesong.modules.codebook_patterns import (
    CoarseFirstPattern,
    DelayedPatternProvider,
    MusicLMPattern,
    ParallelPatternProvider,
    PatternProvider,
    UnrolledPatternProvider,
)
from whalesong.modules.generation.ending import Ending
from whalesong.modules.generation.generate import Windows, generate_codes, stream_codes
from whalesong.modules.generation.sampling import RowNoise, SamplingSettings, sample

K, V, STATES = 3, 6, 101
PROVIDERS = [
    ParallelPatternProvider(K),
    DelayedPatternProvider(K),
    DelayedPatternProvider(K, delays=[3, 0, 1]),
    UnrolledPatternProvider(K),
    MusicLMPattern(K),
    CoarseFirstPattern(K, delays=[0, 1]),
]
EVERY_PATTERN = pytest.mark.parametrize("provider", PROVIDERS, ids=repr)
SETTINGS = SamplingSettings(top_k=0)
LENS = [9, 14, 3, 14, 1, 14, 0, 14]
SEEDS = list(range(len(LENS)))


class HashStepModel:
    """Logits, the end among them, from a hash of all tokens so far and the row's own number."""

    num_codebooks, codebook_size = K, V

    def __init__(self, rows: Tensor, *, end_bias: float = 1.0, num_ids: int = V + 1) -> None:
        table = torch.randn(STATES, K, num_ids, generator=torch.Generator().manual_seed(3))
        table[..., -1] += end_bias
        self.table, self.rows, self.num_steps = table, rows, 0

    def prefill(self, tokens: Tensor, *, codebooks: slice | None = None) -> Tensor:
        self.state = self.rows.clone()
        for step in range(tokens.shape[2]):
            logits = self.step(tokens[:, :, step], codebooks=codebooks)
        return logits

    def step(self, tokens: Tensor, *, codebooks: slice | None = None) -> Tensor:
        assert 0 <= int(tokens.min()) and int(tokens.max()) <= V
        self.num_steps += 1
        self.state = (self.state * 7 + (tokens * torch.tensor([1, 13, 29])).sum(1) + 5) % STATES
        return self.table[self.state][:, codebooks or slice(None)]


def request_rows() -> dict[str, Any]:
    """Rows of many lengths; one with a prompt, one with a code that is known later on."""
    known = torch.full((len(LENS), K, 15), -1)
    known[3, :, :4] = 2
    known[5, 0, 6] = 1
    return {"known": known, "lens": LENS, "seeds": SEEDS, "settings": SETTINGS}


def oracle(
    provider: PatternProvider, row: int, known: Tensor, ending: Ending, end_bias: float
) -> tuple[Tensor, Tensor, int]:
    """Codes and log-probabilities (K, F) of one row with -1 where nothing was drawn, and its end.

    The end's frame keeps what stood at the step of the end.
    """
    codes, num_frames = known.clone(), known.shape[1]
    log_probs = torch.zeros(known.shape)
    layout, noise = provider.layout(num_frames), RowNoise([SEEDS[row]], K).frames(0, 15)[0]
    model, end, begun = HashStepModel(torch.tensor([row]), end_bias=end_bias), num_frames, False
    may_end = list(range(K))[ending.codebooks]
    logits = model.prefill(torch.full((1, K, 1), V))[0]
    for step in range(1, layout.num_steps):
        last = int(layout.step_of[:, :end].max()) if end else 0
        if end < num_frames and step > last:
            break
        tokens = torch.full((K,), V)
        here = [(k, f) for k, f in enumerate(layout.frame_of[:, step].tolist()) if f >= 0]
        begun = begun or any(known[place] < 0 for place in here)
        for k, frame in here:
            if frame >= end:
                codes[k, frame] = V
                continue
            if known[k, frame] < 0:
                allowed = logits[k].log_softmax(-1)
                if k not in may_end or frame < ending.min_frames:
                    allowed[V] = -torch.inf
                drawn = sample(allowed[None, None], SETTINGS, noise[k, frame][None, None])
                codes[k, frame] = int(drawn)
            if begun:
                log_probs[k, frame] = logits[k].log_softmax(-1)[codes[k, frame]]
            tokens[k] = codes[k, frame]
        end = min([end, *(frame for k, frame in here if codes[k, frame] == V)])
        logits = model.step(tokens[None])[0]
    log_probs[:, end:] = 0
    return codes, log_probs, end


@EVERY_PATTERN
@pytest.mark.parametrize(
    ("ending", "end_bias"),
    [
        (Ending(codebooks=slice(0, 1)), 1.0),
        (Ending(codebooks=slice(0, 1), min_frames=5), 2.0),
        (Ending(codebooks=slice(0, 2)), 0.0),
        (Ending(codebooks=slice(2, 3), min_frames=1), 1.0),
    ],
    ids=repr,
)
def test_each_row_ends_as_it_does_alone(
    provider: PatternProvider, ending: Ending, end_bias: float
) -> None:
    request = request_rows()
    model = HashStepModel(torch.arange(len(LENS)), end_bias=end_bias)
    codes, log_probs, lens = generate_codes(model, provider, **request, ending=ending)
    ends = []
    for row, planned in enumerate(LENS):
        known = request["known"][row, :, :planned]
        own, own_log_probs, end = oracle(provider, row, known, ending, end_bias)
        ends.append(min(end + 1, planned))
        assert lens[row] == end
        assert torch.equal(codes[row, :, :end], own[:, :end])
        assert torch.allclose(log_probs[row, :, :end], own_log_probs[:, :end], atol=1e-5)
        assert not log_probs[row, :, end:].any()
        if end < planned:
            last = own[:, end].masked_fill(own[:, end] < 0, V)
            assert torch.equal(codes[row, :, end], last)
            assert (last[ending.codebooks] == V).any()
        assert (codes[row, :, end + 1 :] == V).all() and end >= min(ending.min_frames, planned)
    assert codes.shape[2] == log_probs.shape[2] == max(ends)
    assert 0 < sum(end < planned for end, planned in zip(lens.tolist(), LENS, strict=True))


@EVERY_PATTERN
def test_streamed_frames_joined_are_the_whole(provider: PatternProvider) -> None:
    request = {**request_rows(), "ending": Ending(codebooks=slice(0, 1), min_frames=3)}
    whole = generate_codes(HashStepModel(torch.arange(len(LENS))), provider, **request)
    pieces = list(stream_codes(HashStepModel(torch.arange(len(LENS))), provider, **request))
    assert torch.equal(torch.cat(pieces, dim=2), whole.codes)
    heard: list[Tensor] = []
    called = generate_codes(
        HashStepModel(torch.arange(len(LENS))), provider, **request, on_frames=heard.append
    )
    assert torch.equal(torch.cat(heard, dim=2), whole.codes)
    assert torch.equal(called.lens, whole.lens) and torch.equal(called.codes, whole.codes)


@pytest.mark.parametrize("delays", [[0, 0, 0], [0, 1, 3]])
def test_decoding_stops_when_the_last_frame_of_the_longest_row_is_complete(
    delays: list[int],
) -> None:
    model = HashStepModel(torch.tensor([1, 2]))
    request: dict[str, Any] = {"lens": [400] * 2, "seeds": [1, 2], "settings": SETTINGS}
    codes, _, lens = generate_codes(
        model, DelayedPatternProvider(K, delays=delays), known=torch.full((2, K, 400), -1),
        ending=Ending(codebooks=slice(0, 1)), **request,
    )  # fmt: skip
    longest = int(lens.max())
    assert longest < 100 and codes.shape == (2, K, longest + 1)
    assert model.num_steps == max(longest + 1, longest + delays[-1])


def test_a_row_that_must_not_end_goes_on() -> None:
    """As many frames as there are keep an end out; the other ids share what it had."""
    model = HashStepModel(torch.tensor([1]), end_bias=20.0)
    codes, log_probs, lens = generate_codes(
        model, PROVIDERS[0], known=torch.full((1, K, 30), -1), lens=[30], seeds=[5],
        settings=SETTINGS, ending=Ending(codebooks=slice(0, 1), min_frames=30),
    )  # fmt: skip
    assert lens.tolist() == [30] and int(codes.max()) < V
    assert (log_probs < -10).all()  # the model itself would have ended


def test_known_rows_run_no_model() -> None:
    known, model = torch.zeros(2, K, 5, dtype=torch.long), HashStepModel(torch.arange(2))
    codes, log_probs, lens = generate_codes(
        model, PROVIDERS[1], known=known, lens=[4, 2], seeds=[1, 2], settings=SETTINGS,
        ending=Ending(codebooks=slice(0, 1)),
    )  # fmt: skip
    assert lens.tolist() == [4, 2] and codes.shape == (2, K, 4) and not model.num_steps
    assert (codes[1, :, 2:] == V).all() and not codes[0].any() and not log_probs.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows": Windows(max_frames=5, stride=3)}, "without `windows`, but both are given"),
        ({"ending": Ending(codebooks=slice(3, 5))}, "must be among the 3 of the model"),
    ],
)
def test_requests_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    request = {**request_rows(), "ending": Ending(codebooks=slice(0, 1)), **change}
    with pytest.raises(ValueError, match=message):
        stream_codes(HashStepModel(torch.arange(len(LENS))), PROVIDERS[0], **request)


def test_a_model_without_a_logit_for_the_end_and_a_negative_minimum_are_refused() -> None:
    request = {**request_rows(), "ending": Ending(codebooks=slice(0, 1))}
    with pytest.raises(ValueError, match="must have 7 logits for each code, but has 6"):
        generate_codes(HashStepModel(torch.arange(len(LENS)), num_ids=V), PROVIDERS[0], **request)
    with pytest.raises(ValueError, match="`min_frames` must be at least 0, but is -1"):
        Ending(codebooks=slice(0, 1), min_frames=-1)
