"""Generation of codes: prompts, rows of different lengths, streaming, windows over long clips."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from whalesong.modules.codebook_patterns import PatternProvider
from whalesong.modules.generation.ending import Ending
from whalesong.modules.generation.loop import Plan, StepModel, Window
from whalesong.modules.generation.sampling import RowNoise, SamplingSettings, redraw_seeds

Progress = Callable[[int, int], None]
"""Is told the number of steps that are done, and of all steps."""


class Generated(NamedTuple):
    """Codes of B rows, known ones and generated ones."""

    codes: Tensor
    """(B, K, F), 0 behind the end of a row. With an `Ending` id V stands behind it, also in place
    of known codes, and F is what the longest row has, the frame that holds its end included: there,
    codes that were drawn along with the end are kept, and id V stands where none was."""
    log_probs: Tensor
    """(B, K, F): log-probability that the model gives to each code, generated or known, from the
    first step on at which its row generates; 0 elsewhere, also from the end of a row on.
    Temperature and filters do not count."""
    lens: Tensor
    """(B,) frames of each row, those before its end."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How clips are generated that are longer than the ones the model was trained on.

    They go window by window, each prompted with the last frames of the one before; a clip that
    fits into one window is generated as without windows.

    Attributes:
        max_frames: frames of a window.
        stride: new frames of each window but the first; the others are its prompt.

    Raises:
        ValueError: a stride that leaves no prompt.
    """

    max_frames: int
    stride: int

    def __post_init__(self) -> None:
        if not 0 < self.stride < self.max_frames:
            raise ValueError(
                f"`stride` must be at least 1 and less than `max_frames` ({self.max_frames}), "
                f"but is {self.stride}."
            )

    def spans(self, num_frames: int) -> list[tuple[int, int]]:
        """Begin and end of each window over a clip."""
        more = -(-max(num_frames - self.max_frames, 0) // self.stride)
        begins = [index * self.stride for index in range(more + 1)]
        return [(begin, min(begin + self.max_frames, num_frames)) for begin in begins]


def generate_codes(
    model: StepModel,
    provider: PatternProvider,
    *,
    known: Tensor,
    lens: Tensor | Sequence[int],
    seeds: Sequence[int],
    settings: SamplingSettings,
    windows: Windows | None = None,
    ending: Ending | None = None,
    on_frames: Callable[[Tensor], None] | None = None,
    progress: Progress | None = None,
) -> Generated:
    """Generate the codes that are not known; each row gives what it gives alone.

    Args:
        model: gives the logits of all rows.
        provider: the codebook pattern that the model was trained with.
        known: codes (B, K, F), -1 = to be generated. Known ones, a prompt at the beginning as well
            as anything later, are kept as they are.
        lens: frames of each row (B,).
        seeds: one for each row; its noise depends on nothing else.
        settings: how to sample.
        windows: for clips longer than the ones of the training; they have ids of their own for the
            rule about repetition.
        ending: lets rows end before their frames do; decoding stops when all have. Then without
            windows.
        on_frames: is given codes (B, K, f) as soon as all K codes of these frames exist, known
            ones at once; joined they are the whole.
        progress: is told how far it is.

    Raises:
        ValueError: shapes or codes that do not fit, an ending along with windows or without a logit
            for it, or NaN or infinite logits.
    """
    run = Generation(
        model,
        provider,
        known=known,
        lens=lens,
        seeds=seeds,
        settings=settings,
        windows=windows,
        ending=ending,
    )
    for frames in run.stretches(progress, at_once=on_frames is not None):
        if on_frames is not None:
            on_frames(run.codes[:, :, frames])
    return Generated(run.codes, run.log_probs, run.lens)


def stream_codes(
    model: StepModel,
    provider: PatternProvider,
    *,
    known: Tensor,
    lens: Tensor | Sequence[int],
    seeds: Sequence[int],
    settings: SamplingSettings,
    windows: Windows | None = None,
    ending: Ending | None = None,
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """Yield what `generate_codes` gives to `on_frames`, for the same arguments."""
    run = Generation(
        model,
        provider,
        known=known,
        lens=lens,
        seeds=seeds,
        settings=settings,
        windows=windows,
        ending=ending,
    )
    return (run.codes[:, :, frames] for frames in run.stretches(progress))


class Generation:
    """One run: the codes so far, and the windows that are still to be decoded.

    Arguments and errors are those of `generate_codes`.

    Attributes:
        codes: (B, K, F), -1 where not yet generated.
        log_probs: (B, K, F), as in `Generated`.
        lens: (B,), as in `Generated` once all is decoded.
    """

    def __init__(
        self,
        model: StepModel,
        provider: PatternProvider,
        *,
        known: Tensor,
        lens: Tensor | Sequence[int],
        seeds: Sequence[int],
        settings: SamplingSettings,
        windows: Windows | None = None,
        ending: Ending | None = None,
    ) -> None:
        lens = torch.as_tensor(lens).cpu()
        check_request(model, provider, known=known, lens=lens, seeds=seeds)
        longest, fill = int(lens.max()), 0
        if ending is not None:
            check_ending(ending, provider, windows)
            known, fill = known[:, :, :longest], model.codebook_size
        self.codes = own_frames(known, lens, fill=fill)
        self.log_probs = torch.zeros(known.shape, device=known.device)
        self.lens = lens.to(known.device)
        self._model, self._settings, self._ending = model, settings, ending
        self._noise = RowNoise(seeds, provider.num_codebooks)
        self._redraws = None
        if settings.repetition_window:
            self._redraws = RowNoise(redraw_seeds(seeds), provider.num_codebooks)
        spans = windows.spans(longest) if windows else [(0, longest)]
        self._windows = self._plan(provider, lens, spans)

    def _plan(
        self, provider: PatternProvider, lens: Tensor, spans: list[tuple[int, int]]
    ) -> list[tuple[slice, Plan]]:
        """The windows in which some row has something to generate, with their plans."""
        unknown = (self.codes < 0).cpu()
        windows = []
        for begin, end in spans:
            own = unknown[:, :, begin:end].clone()
            unknown[:, :, begin:end] = False
            if own.any():
                layout = provider.batch_layout((lens - begin).clamp(0, end - begin))
                windows.append((slice(begin, end), Plan(layout, own)))
        return windows

    @torch.no_grad()
    def stretches(
        self, progress: Progress | None = None, *, at_once: bool = True
    ) -> Iterator[slice]:
        """Decode; yields each stretch of frames that has become complete, in order.

        It does so `at_once`, or else at the end of a window, which costs less.
        """
        total = sum(plan.num_steps for _, plan in self._windows)
        given = done = 0
        for span, plan in self._windows:
            if (prompt := span.start + plan.complete[plan.first_step - 1]) > given:
                yield slice(given, prompt)
                given = prompt
            for window, step in self._decode(span, plan, at_once):
                done += 1
                if progress is not None:
                    progress(done, total)
                look = at_once or step == plan.layout.num_steps - 1
                if look and (end := span.start + plan.complete[step]) > given:
                    stretch, given = slice(given, end), end
                    self._take(window, stretch, span.start)
                    yield stretch
            if window.ends is not None:
                self._end(window)
        if progress is not None and done < total:  # all rows have ended before
            progress(total, total)
        if given < self.codes.shape[2]:
            yield slice(given, self.codes.shape[2])

    def _decode(self, span: slice, plan: Plan, at_once: bool) -> Iterator[tuple[Window, int]]:
        frames = span.start, span.stop
        window = Window(
            plan,
            self.codes[:, :, span],
            self._noise.frames(*frames),
            settings=self._settings,
            special_id=self._model.codebook_size,
            redraws=None if self._redraws is None else self._redraws.frames(*frames),
            ending=self._ending,
        )
        for step in window.run(self._model, at_once=at_once):
            yield window, step

    def _end(self, window: Window) -> None:
        """Take what the only window has, up to the end of its longest row."""
        num_frames = window.ends.num_frames
        self._take(window, slice(0, num_frames), 0)
        self.codes = self.codes[:, :, :num_frames]
        self.log_probs = self.log_probs[:, :, :num_frames]
        self.lens = window.ends.lens

    def _take(self, window: Window, stretch: slice, offset: int) -> None:
        frames = slice(stretch.start - offset, stretch.stop - offset)
        self.codes[:, :, stretch] = window.codes(frames)
        self.log_probs[:, :, stretch] = window.log_probs(frames)


def own_frames(known: Tensor, lens: Tensor, *, fill: int = 0) -> Tensor:
    """A copy of codes (B, K, F) with `fill` behind the end of each row."""
    behind = torch.arange(known.shape[2]) >= lens[:, None]  # (B, F)
    return known.masked_fill(behind[:, None].to(known.device), fill)


def check_ending(ending: Ending, provider: PatternProvider, windows: Windows | None) -> None:
    """Refuse an ending that the model cannot draw, and one of windows.

    Raises:
        ValueError: the first that does not fit.
    """
    ending.check(provider.num_codebooks)
    if windows is not None:
        raise ValueError("`ending` must be given without `windows`, but both are given.")


def check_request(
    model: StepModel,
    provider: PatternProvider,
    *,
    known: Tensor,
    lens: Tensor,
    seeds: Sequence[int],
) -> None:
    """Refuse shapes and codes that do not fit together.

    Raises:
        ValueError: the first that does not.
    """
    num_codebooks, size = model.num_codebooks, model.codebook_size
    if provider.num_codebooks != num_codebooks:
        raise ValueError(
            f"The pattern must have the model's {num_codebooks} codebooks, "
            f"but has {provider.num_codebooks}."
        )
    if known.dim() != 3 or known.shape[1] != num_codebooks or not len(known):
        raise ValueError(f"`known` must be (B, {num_codebooks}, F), but is {tuple(known.shape)}.")
    if len(lens) != len(known) or len(seeds) != len(known):
        raise ValueError(
            f"`lens` and `seeds` must have one entry for each of {len(known)} rows, "
            f"but have {len(lens)} and {len(seeds)}."
        )
    if not 0 <= int(lens.min()) <= int(lens.max()) <= known.shape[2]:
        raise ValueError(
            f"`lens` must be between 0 and the {known.shape[2]} frames of `known`, "
            f"but are {lens.tolist()}."
        )
    if known.numel() and not -1 <= int(known.min()) <= int(known.max()) < size:
        raise ValueError(
            f"`known` must hold codes from 0 to {size - 1}, or -1 for those to be generated, "
            f"but goes from {int(known.min())} to {int(known.max())}."
        )
