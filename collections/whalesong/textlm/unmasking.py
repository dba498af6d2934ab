"""Which masked slots are filled next: some at random, or those of which the model is sure."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Strategy = Literal["uniform", "top_prob", "prob_diff"]


@dataclass(frozen=True, kw_only=True)
class Unmasking:
    """How slots are chosen, row by row.

    A step fills its share, n // (steps left) of the n masked slots of a row and at least one, so
    that nothing is masked after the last step.

    Attributes:
        strategy: "uniform" chooses at random; "top_prob" the slots whose most probable token is the
            most probable, "prob_diff" those where it is furthest ahead of the second.
        threshold: fill more than the share where the model is sure: the longest run of slots, the
            surest first, in which the doubts (1 - confidence) of all but the last add up to less
            (arXiv 2505.24857 bounds entropies so). None fills the share.

    Raises:
        ValueError: an unknown strategy, or a threshold that is not above 0 or has no use.
    """

    strategy: Strategy = "top_prob"
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            names = "', '".join(get_args(Strategy))
            raise ValueError(f"`strategy` must be one of '{names}', but is '{self.strategy}'.")
        if self.threshold is None:
            return
        if self.strategy == "uniform":
            raise ValueError("`threshold` must be null with strategy 'uniform', which has no "
                             f"confidence, but is {self.threshold}.")  # fmt: skip
        if not self.threshold > 0:
            raise ValueError(f"`threshold` must be above 0, but is {self.threshold}.")

    def choose(self, is_masked: Tensor, probs: Tensor, noise: Tensor, *, steps_left: int) -> Tensor:
        """The slots to fill in this step, (B, L) bool, all of them masked.

        Args:
            is_masked: (B, L).
            probs: (B, L, V), what the model thinks of each slot.
            noise: (B, L), uniform in [0, 1); it decides with "uniform" only.
            steps_left: this step included.
        """
        scores = noise if self.strategy == "uniform" else confidence(probs, self.strategy)
        counts = share(is_masked.sum(-1), steps_left)
        if self.threshold is not None:
            counts = counts.maximum(num_sure(is_masked, scores, self.threshold))
        return highest(is_masked, scores, counts)


def confidence(probs: Tensor, strategy: Strategy) -> Tensor:
    """How sure the model is of the best token of each slot, (B, L) in [0, 1], from (B, L, V)."""
    if strategy == "top_prob":
        return probs.amax(-1)
    first, second = probs.topk(2, dim=-1).values.unbind(-1)
    return first - second


def share(num_masked: Tensor, steps_left: int) -> Tensor:
    """Slots (B,) to fill in this step, so that `num_masked` (B,) are filled in all steps left."""
    return (num_masked // steps_left).maximum(num_masked.clamp(max=1))


def num_sure(is_masked: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Slots (B,), the surest first, until the doubts of all but the last reach the threshold."""
    doubts = (1 - scores).masked_fill(~is_masked, torch.inf).sort(-1).values
    before = doubts.cumsum(-1).roll(1, -1)
    before[:, :1] = 0
    return ((before < threshold) & doubts.isfinite()).sum(-1)


def highest(is_masked: Tensor, scores: Tensor, counts: Tensor) -> Tensor:
    """The masked slots with the highest scores, `counts` (B,) of each row; (B, L) bool."""
    order = scores.masked_fill(~is_masked, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(-1)
    return (rank < counts[:, None]) & is_masked
