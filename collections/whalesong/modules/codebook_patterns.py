"""Codebook patterns: in which step of the language model each code of each frame stands.

A codec gives K codes per frame, (B, K, F); a pattern arranges them as P steps, (B, K, P), that a
language model predicts one after the other. Step 0 is always empty, and what stands at step p is
predicted from the steps before it, that is, at position p - 1 of the language model. All codes of
a step are predicted at once, so they do not see each other.

The patterns are those of MusicGen (arXiv 2306.05284, section 2.2) and MusicLM (arXiv 2301.11325)
with the parameters and step counts of audiocraft's providers. No code is dropped: a delayed
pattern runs on until the last frame is complete.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache

import torch
from torch import Tensor

from whalesong.modules.pattern_layout import BatchLayout, PatternLayout


@dataclass(frozen=True)
class PatternProvider(ABC):
    """The layout of clips of any length. Equal providers share their cached layouts.

    Args:
        num_codebooks: K.

    Raises:
        ValueError: a combination that no sequence can have.
    """

    num_codebooks: int

    def __post_init__(self) -> None:
        if not isinstance(self.num_codebooks, int) or self.num_codebooks < 1:
            raise ValueError(
                f"`num_codebooks` must be an integer of at least 1, but is {self.num_codebooks!r}."
            )

    @abstractmethod
    def steps(self, num_frames: int) -> Tensor:
        """The step of each code of a clip, (K, F), at least 1 and rising from frame to frame."""

    def layout(self, num_frames: int, *, device: torch.device | str = "cpu") -> PatternLayout:
        """The layout of a clip of `num_frames` frames, 0 included; cached."""
        return _layout(self, num_frames, str(device))

    def batch_layout(
        self, codes_lens: Tensor | Sequence[int], *, num_frames: int | None = None
    ) -> BatchLayout:
        """The layouts of rows of different lengths, on the device of `codes_lens`.

        Args:
            codes_lens: frames of each row (B,).
            num_frames: F of the codes; the longest row if None.

        Raises:
            ValueError: a row longer than `num_frames`.
        """
        codes_lens = torch.as_tensor(codes_lens)
        lens, row_of = codes_lens.cpu().unique(return_inverse=True)
        layouts = [self.layout(length) for length in lens.tolist()]
        longest = layouts[-1].num_frames
        num_frames = longest if num_frames is None else num_frames
        if longest > num_frames:
            raise ValueError(f"`codes_lens` must be at most {num_frames}, but one is {longest}.")
        return BatchLayout.stack(layouts, num_frames).select(row_of).to(codes_lens.device)


@lru_cache(maxsize=512)
def _layout(provider: PatternProvider, num_frames: int, device: str) -> PatternLayout:
    if num_frames < 0:
        raise ValueError(f"`num_frames` must be at least 0, but is {num_frames}.")
    if device != "cpu":
        return provider.layout(num_frames).to(device)
    return PatternLayout.from_steps(provider.steps(num_frames))


@dataclass(frozen=True)
class ParallelPatternProvider(PatternProvider):
    """All codes of a frame in one step.

    Three codebooks, four frames (S = empty)::

        [[S, 1, 2, 3, 4],
         [S, 1, 2, 3, 4],
         [S, 1, 2, 3, 4]]
    """

    def steps(self, num_frames: int) -> Tensor:
        """The step of each code of a clip, (K, F)."""
        return 1 + torch.arange(num_frames).expand(self.num_codebooks, -1)


@dataclass(frozen=True)
class DelayedPatternProvider(PatternProvider):
    """Each codebook stands some steps behind its frame.

    Three codebooks, four frames (S = empty)::

        [[S, 1, 2, 3, 4, S, S],
         [S, S, 1, 2, 3, 4, S],
         [S, S, S, 1, 2, 3, 4]]

    Args:
        num_codebooks: K.
        delays: steps that each codebook is behind, K numbers; 0, 1, ..., K - 1 if None.
    """

    delays: Sequence[int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _set_counts(self, "delays", self.num_codebooks, range(self.num_codebooks))

    def steps(self, num_frames: int) -> Tensor:
        """The step of each code of a clip, (K, F)."""
        return 1 + torch.tensor(self.delays)[:, None] + torch.arange(num_frames)


@dataclass(frozen=True)
class UnrolledPatternProvider(PatternProvider):
    """The codes of a frame one after the other, frame by frame (flattening, interleaving).

    Three codebooks, two frames, by default and with `flattening` [0, 1, 1] (S = empty)::

        [[S, 1, S, S, 2, S, S],        [[S, 1, S, 2, S],
         [S, S, 1, S, S, 2, S],         [S, S, 1, S, 2],
         [S, S, S, 1, S, S, 2]]         [S, S, 1, S, 2]]

    Args:
        num_codebooks: K.
        flattening: inner step of each codebook, K numbers; codebooks with the same one stand
            together, and an inner step that no codebook has is an empty step. 0, ..., K - 1 if
            None.
        delays: frames that each codebook is behind, K numbers, the same for codebooks that stand
            together; no delays if None. Codes of earlier frames come first.
    """

    flattening: Sequence[int] | None = field(default=None, kw_only=True)
    delays: Sequence[int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _set_counts(self, "flattening", self.num_codebooks, range(self.num_codebooks))
        _set_counts(self, "delays", self.num_codebooks, [0] * self.num_codebooks)
        if len(set(zip(self.flattening, self.delays, strict=True))) > len(set(self.flattening)):
            raise ValueError(
                "`delays` must be the same for codebooks with the same `flattening` "
                f"{list(self.flattening)}, but are {list(self.delays)}."
            )

    def steps(self, num_frames: int) -> Tensor:
        """The step of each code of a clip, (K, F)."""
        delay_of = dict(zip(self.flattening, self.delays, strict=True))
        inner_steps = sorted(delay_of, key=lambda inner: (-delay_of[inner], inner))
        delays = torch.tensor([delay_of[inner] for inner in inner_steps])  # (G,) in order of a time
        rank = torch.tensor([inner_steps.index(inner) for inner in self.flattening])[:, None]
        num_gaps = max(self.flattening) + 1 - len(delays)
        time = torch.arange(num_frames) + torch.tensor(self.delays)[:, None]  # (K, F)
        # At each time stand the gaps, then one step of every group that has begun.
        before = (time[..., None] - delays).clamp(min=0).sum(-1) + num_gaps * (time + 1)
        same_time = (time[..., None] >= delays) & (torch.arange(len(delays)) < rank[..., None])
        return 1 + before + same_time.sum(-1)


@dataclass(frozen=True)
class MusicLMPattern(PatternProvider):
    """The first group of codebooks of the whole clip, then the next group, one code in each step.

    Four codebooks in groups of two, two frames (S = empty)::

        [[S, 1, S, 2, S, S, S, S, S],
         [S, S, 1, S, 2, S, S, S, S],
         [S, S, S, S, S, 1, S, 2, S],
         [S, S, S, S, S, S, 1, S, 2]]

    Args:
        num_codebooks: K.
        group_by: codebooks of a group, a divisor of K; if None, 2 where K is even and else 1.
    """

    group_by: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_by is None:
            object.__setattr__(self, "group_by", 2 - self.num_codebooks % 2)
        valid = isinstance(self.group_by, int) and self.group_by >= 1
        if not valid or self.num_codebooks % self.group_by:
            raise ValueError(
                f"`group_by` must divide `num_codebooks` ({self.num_codebooks}), "
                f"but is {self.group_by!r}."
            )

    def steps(self, num_frames: int) -> Tensor:
        """The step of each code of a clip, (K, F)."""
        codebook = torch.arange(self.num_codebooks)[:, None]
        first = codebook // self.group_by * self.group_by * num_frames + codebook % self.group_by
        return 1 + first + self.group_by * torch.arange(num_frames)


@dataclass(frozen=True)
class CoarseFirstPattern(PatternProvider):
    """The first codebook of the whole clip, then all others with delays.

    Three codebooks, three frames, `delays` [0, 1] (S = empty)::

        [[S, 1, 2, 3, S, S, S, S],
         [S, S, S, S, 1, 2, 3, S],
         [S, S, S, S, S, 1, 2, 3]]

    Args:
        num_codebooks: K.
        delays: steps that each codebook but the first is behind, K - 1 numbers; no delays if None.
    """

    delays: Sequence[int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        others = self.num_codebooks - 1
        _set_counts(self, "delays", others, [0] * others)

    def steps(self, num_frames: int) -> Tensor:
        """The step of each code of a clip, (K, F)."""
        first = torch.tensor([0, *(num_frames + delay for delay in self.delays)])
        return 1 + first[:, None] + torch.arange(num_frames)


PATTERNS: dict[str, type[PatternProvider]] = {
    "parallel": ParallelPatternProvider,
    "delay": DelayedPatternProvider,
    "unroll": UnrolledPatternProvider,
    "musiclm": MusicLMPattern,
    "coarse_first": CoarseFirstPattern,
}
"""The patterns by the name that a config gives."""


def build_pattern(name: str, num_codebooks: int, **parameters: object) -> PatternProvider:
    """The pattern of a config: `build_pattern("delay", 4, delays=[0, 1, 1, 1])`.

    Raises:
        ValueError: an unknown name or parameter, or an impossible combination.
    """
    check_pattern(name, parameters)
    return PATTERNS[name](num_codebooks, **parameters)


def check_pattern(name: str, parameters: Iterable[str]) -> None:
    """Check the names of a pattern and of its parameters, before the codebooks are known.

    Raises:
        ValueError: an unknown one, with those that are known.
    """
    if name not in PATTERNS:
        raise ValueError(f"The codebook pattern must be one of {list(PATTERNS)}, but is {name!r}.")
    known = [entry.name for entry in fields(PATTERNS[name]) if entry.kw_only]
    if unknown := sorted(set(parameters) - set(known)):
        raise ValueError(
            f"The parameters of pattern {name!r} must be among {known}, but {unknown} are given."
        )


def _set_counts(provider: PatternProvider, name: str, length: int, default: Sequence[int]) -> None:
    """Make the field `name` a checked tuple, which is hashable as lists of a config are not."""
    given = getattr(provider, name)
    values = tuple(default if given is None else given)
    if len(values) != length or not all(isinstance(value, int) and value >= 0 for value in values):
        raise ValueError(
            f"`{name}` must be {length} integers of at least 0 for `num_codebooks` "
            f"{provider.num_codebooks}, but is {list(values)}."
        )
    object.__setattr__(provider, name, values)
