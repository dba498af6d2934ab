"""Codebook patterns: golden layouts, and the laws that every pattern obeys for any K and F."""

import pickle
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
    build_pattern,
)

S = 99
PROVIDERS: list[PatternProvider] = [
    ParallelPatternProvider(1),
    DelayedPatternProvider(1),
    UnrolledPatternProvider(1),
    MusicLMPattern(1),
    CoarseFirstPattern(1),
    ParallelPatternProvider(4),
    DelayedPatternProvider(4),
    DelayedPatternProvider(4, delays=[1, 0, 3, 3]),
    UnrolledPatternProvider(4),
    UnrolledPatternProvider(4, flattening=[0, 1, 1, 3]),
    UnrolledPatternProvider(4, flattening=[0, 1, 1, 3], delays=[0, 2, 2, 5]),
    MusicLMPattern(4),
    MusicLMPattern(3),
    MusicLMPattern(6, group_by=3),
    CoarseFirstPattern(4),
    CoarseFirstPattern(4, delays=[0, 1, 5]),
]
EVERY_PATTERN = pytest.mark.parametrize("provider", PROVIDERS, ids=repr)


def random_codes(provider: PatternProvider, num_frames: int, *, rows: int = 2) -> Tensor:
    return torch.randint(0, 50, (rows, provider.num_codebooks, num_frames))


# Written by hand: figure 1 of the MusicGen paper (parallel, flattening, delay, coarse first), the
# order of MusicLM (coarse codes before fine ones), and the delayed flattening of audiocraft.
GOLDEN: dict[str, tuple[PatternProvider, int, list[str]]] = {
    "parallel": (ParallelPatternProvider(3), 4, ["S1234", "S1234", "S1234"]),
    "delay": (DelayedPatternProvider(3), 4, ["S1234SS", "SS1234S", "SSS1234"]),
    "delay, stereo": (
        DelayedPatternProvider(4, delays=[0, 0, 1, 1]),
        2,
        ["S12S", "S12S", "SS12", "SS12"],
    ),
    "delay from one": (DelayedPatternProvider(2, delays=[1, 2]), 2, ["SS12S", "SSS12"]),
    "unroll": (UnrolledPatternProvider(3), 2, ["S1SS2SS", "SS1SS2S", "SSS1SS2"]),
    "unroll in part": (
        UnrolledPatternProvider(3, flattening=[0, 1, 1]),
        2,
        ["S1S2S", "SS1S2", "SS1S2"],
    ),
    "unroll with an empty inner step": (
        UnrolledPatternProvider(2, flattening=[0, 2]),
        2,
        ["SS1SS2S", "SSS1SS2"],
    ),
    "unroll delayed": (
        UnrolledPatternProvider(3, flattening=[0, 1, 1], delays=[0, 2, 2]),
        3,
        ["S12S3SSS", "SSS1S2S3", "SSS1S2S3"],
    ),
    "musiclm": (
        MusicLMPattern(4, group_by=2),
        2,
        ["S1S2SSSSS", "SS1S2SSSS", "SSSSS1S2S", "SSSSSS1S2"],
    ),
    "coarse first": (CoarseFirstPattern(3), 3, ["S123SSS", "SSSS123", "SSSS123"]),
    "coarse first, delayed": (
        CoarseFirstPattern(3, delays=[0, 1]),
        3,
        ["S123SSSS", "SSSS123S", "SSSSS123"],
    ),
    "one codebook, one frame": (MusicLMPattern(1), 1, ["S1"]),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_layouts(name: str) -> None:
    provider, num_frames, rows = GOLDEN[name]
    codes = torch.arange(1, num_frames + 1).expand(1, provider.num_codebooks, -1)
    sequence = provider.layout(num_frames).build(codes, special_id=0)
    drawn = ["".join(map(str, row)).replace("0", "S") for row in sequence[0].tolist()]
    assert drawn == rows


def audiocraft_unroll(flattening: list[int], delays: list[int], num_frames: int) -> list[set]:
    """The definition by enumeration: per time one step of each inner step, ordered by its frame."""
    total = num_frames + max(delays)
    groups: dict[int, list[int]] = {}
    for codebook, inner in enumerate(flattening):
        groups.setdefault(inner, []).append(codebook)
    timed: list[tuple[int, list[tuple[int, int]]]] = []
    for frame in range(total):
        for inner in range(max(flattening) + 1):
            coords = [(frame, codebook) for codebook in groups.get(inner, [])]
            time = frame + delays[groups[inner][0]] if coords else frame
            if time < total:
                timed.append((time, coords))
    timed.sort()
    return [set()] + [{pair for pair in coords if pair[0] < num_frames} for _, coords in timed]


@pytest.mark.parametrize(
    ("flattening", "delays"),
    [
        ([0, 1, 2], [0, 0, 0]),
        ([0, 1, 1], [0, 3, 3]),
        ([0, 2, 5], [0, 1, 4]),
        ([1, 1, 2], [2, 2, 2]),
        ([0, 1, 2], [0, 0, 7]),
    ],
)
@pytest.mark.parametrize("num_frames", [1, 2, 9])
def test_unroll_equals_its_definition(
    flattening: list[int], delays: list[int], num_frames: int
) -> None:
    expected = audiocraft_unroll(flattening, delays, num_frames)
    layout = UnrolledPatternProvider(3, flattening=flattening, delays=delays).layout(num_frames)
    steps = [
        {(frame, codebook) for codebook, frame in enumerate(frames) if frame >= 0}
        for frames in layout.frame_of.T.tolist()
    ]
    assert steps == expected[: len(steps)]
    assert not any(expected[len(steps) :])


@EVERY_PATTERN
@pytest.mark.parametrize("num_frames", [1, 2, 7, 50])
def test_every_code_stands_once_and_comes_back(provider: PatternProvider, num_frames: int) -> None:
    layout = provider.layout(num_frames)
    codes = random_codes(provider, num_frames)
    sequence = layout.build(codes, S)
    assert sequence.shape == (2, provider.num_codebooks, layout.num_steps)
    assert (sequence[:, :, 0] == S).all()
    assert layout.frame_of[:, -1].max() >= 0
    assert int((sequence != S).sum()) == codes.numel()
    assert torch.equal(layout.revert(sequence), codes)


@EVERY_PATTERN
def test_no_code_is_seen_before_it_is_predicted(provider: PatternProvider) -> None:
    """A causal model sees steps up to its position: changing a code must not reach its own input
    or that of any code predicted before it."""
    num_frames = 6
    layout = provider.layout(num_frames)
    codes = random_codes(provider, num_frames, rows=1)

    def context(codes: Tensor) -> Tensor:
        seen = layout.build(codes, S).double().cumsum(-1).sum(1)  # (1, P), grows with any change
        return layout.align(seen[..., None])[..., 0]  # (1, K, F)

    for codebook in range(provider.num_codebooks):
        for frame in range(num_frames):
            changed = codes.clone()
            changed[0, codebook, frame] += 1000
            reached = context(changed) != context(codes)
            assert torch.equal(reached[0], layout.step_of > layout.step_of[codebook, frame])


@EVERY_PATTERN
def test_align_gives_each_code_the_position_before_its_step(provider: PatternProvider) -> None:
    layout = provider.layout(5)
    positions = torch.eye(layout.num_steps).expand(3, -1, -1)
    aligned = layout.align(positions)
    assert aligned.shape == (3, provider.num_codebooks, 5, layout.num_steps)
    assert torch.equal(aligned.argmax(-1)[0], layout.step_of - 1)
    for codebook, frame in [(0, 0), (provider.num_codebooks - 1, 4)]:
        step = int(aligned[1, codebook, frame].argmax()) + 1
        assert layout.frame_of[codebook, step] == frame


@EVERY_PATTERN
def test_a_row_of_a_batch_has_its_own_layout(provider: PatternProvider) -> None:
    lens = [4, 0, 7, 1, 4]
    codes = random_codes(provider, 9, rows=5)
    layout = provider.batch_layout(torch.tensor(lens), num_frames=9)
    sequence = layout.build(codes, S)
    reverted = layout.revert(sequence)
    values = torch.randn(5, layout.num_steps, 3)
    aligned = layout.align(values)
    assert layout.mask.sum((1, 2)).tolist() == [length * provider.num_codebooks for length in lens]
    for row, length in enumerate(lens):
        alone = provider.layout(length)
        steps = alone.num_steps
        own = alone.build(codes[row : row + 1, :, :length], S)
        assert torch.equal(sequence[row : row + 1, :, :steps], own)
        assert (sequence[row, :, steps:] == S).all()
        assert torch.equal(reverted[row, :, :length], codes[row, :, :length])
        assert (reverted[row, :, length:] == 0).all() and not layout.mask[row, :, length:].any()
        own_aligned = alone.align(values[row : row + 1, :steps])
        assert torch.equal(aligned[row : row + 1, :, :length], own_aligned)
        complete = layout.complete_frames[row]
        assert torch.equal(complete[:steps], alone.complete_frames)
        assert (complete[steps:] == length).all()


@EVERY_PATTERN
def test_complete_frames_and_active_slices_by_counting(provider: PatternProvider) -> None:
    layout = provider.layout(6)
    for step in range(layout.num_steps):
        there = (layout.step_of <= step).all(0).tolist()
        assert layout.complete_frames[step] == ([*there, False]).index(False)
        codebooks = (layout.frame_of[:, step] >= 0).nonzero().flatten().tolist()
        chosen = range(provider.num_codebooks)[layout.active_slices[step]]
        assert list(chosen) == list(range(codebooks[0], codebooks[-1] + 1) if codebooks else [])


@pytest.mark.parametrize("name", ["parallel", "delay", "unroll"])
def test_a_step_does_not_depend_on_how_long_the_clip_becomes(name: str) -> None:
    provider = build_pattern(name, 3)
    assert torch.equal(provider.layout(20).step_of[:, :7], provider.layout(7).step_of)


def test_gradients_reach_exactly_the_positions_that_predict() -> None:
    layout = DelayedPatternProvider(2).batch_layout([3, 1])
    hidden = torch.zeros(2, layout.num_steps, 4, requires_grad=True)
    (layout.align(hidden) * layout.mask[..., None]).sum().backward()
    assert hidden.grad[:, :, 0].tolist() == [[1, 2, 2, 1, 0], [1, 1, 0, 0, 0]]


def test_layouts_are_shared_and_providers_travel() -> None:
    provider = build_pattern("delay", 4, delays=[0, 1, 1, 2])
    assert provider == DelayedPatternProvider(4, delays=(0, 1, 1, 2))
    assert provider.layout(11) is pickle.loads(pickle.dumps(provider)).layout(11)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("zigzag", {}, r"must be one of \['parallel', 'delay', .*\], but is 'zigzag'"),
        ("delay", {"group_by": 2}, r"'delay' must be among \['delays'\], but \['group_by'\]"),
        ("parallel", {"delays": [0]}, r"must be among \[\], but \['delays'\]"),
        ("delay", {"delays": [0, 1]}, "`delays` must be 4 integers of at least 0"),
        ("delay", {"delays": [0, 1, -1, 2]}, r"but is \[0, 1, -1, 2\]"),
        ("delay", {"delays": [0, 1.5, 2, 3]}, "must be 4 integers"),
        ("unroll", {"flattening": [0, 1]}, "`flattening` must be 4 integers"),
        ("unroll", {"flattening": [0, 1, 1, 2], "delays": [0, 1, 2, 3]}, "must be the same for"),
        ("musiclm", {"group_by": 3}, r"`group_by` must divide `num_codebooks` \(4\), but is 3"),
        ("musiclm", {"group_by": 0}, "`group_by` must divide"),
        ("coarse_first", {"delays": [0, 1, 2, 3]}, "`delays` must be 3 integers"),
    ],
)
def test_impossible_combinations_are_refused(
    name: str, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_pattern(name, 4, **parameters)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="`num_codebooks` must be an integer of at least 1"):
        ParallelPatternProvider(0)
    provider = ParallelPatternProvider(2)
    with pytest.raises(ValueError, match="`num_frames` must be at least 0, but is -1"):
        provider.layout(-1)
    with pytest.raises(ValueError, match=r"must be \(B, 2, 5\) for this layout"):
        provider.layout(5).build(torch.zeros(1, 2, 4, dtype=torch.long), S)
    with pytest.raises(ValueError, match=r"must be \(B, 2, 5\) for this layout"):
        provider.layout(5).build(torch.zeros(1, 3, 5, dtype=torch.long), S)
    with pytest.raises(ValueError, match="`codes_lens` must be at most 3, but one is 5"):
        provider.batch_layout([5, 2], num_frames=3)
