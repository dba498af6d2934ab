"""A progress bar over the steps of a generation."""

from tqdm import tqdm

from whalesong.modules.generation.generate import Progress


class StepBar:
    """A `Progress` that draws; it appears with the first step and ends with the last."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def __call__(self, done: int, total: int) -> None:
        """Show how many of all steps are done."""
        if self._bar is None:
            self._bar = tqdm(total=total, desc="generating", unit="step")
        self._bar.update(done - self._bar.n)
        if done == total:
            self._bar.close()


def reporter(progress: bool | Progress) -> Progress | None:
    """What a user means by `progress`: a bar, nothing, or a function of their own."""
    if isinstance(progress, bool):
        return StepBar() if progress else None
    return progress
