"""Eden: a learning rate that falls with steps and epochs, for ScaledAdam."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from whalesong.core.errors import ConfigError


class Eden(LRScheduler):
    """Learning rate by the steps s and the epochs e that are done:

        base * (1 + (s / lr_batches)^2)^-1/4 * (1 + (e / lr_epochs)^2)^-1/4 * warm-up

    It needs no length of the training. Stepped after each optimizer step; `step_epoch` tells the
    epoch. Source: Zipformer (arXiv 2310.11230), section 3.5.

    Args:
        optimizer: its `lr` is the base.
        lr_batches: steps after which the rate begins to fall.
        lr_epochs: likewise in epochs; null where the data have none that mean something.
        warmup_batches: steps in which the warm-up factor rises to 1.
        warmup_start: the warm-up factor of the first step.
        last_epoch: steps done, as in torch's schedulers; -1 at the beginning.

    Raises:
        ConfigError: a value out of its range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_batches: float = 5000,
        lr_epochs: float | None = 4,
        *,
        warmup_batches: int = 200,
        warmup_start: float = 0.5,
        last_epoch: int = -1,
    ) -> None:
        for name, value in (("lr_batches", lr_batches), ("lr_epochs", lr_epochs)):
            if value is not None and not value > 0:
                raise ConfigError(f"`{name}` of Eden must be above 0, but is {value}.")
        if not 0 <= warmup_start <= 1:
            raise ConfigError(f"`warmup_start` of Eden must be in [0, 1], but is {warmup_start}.")
        self.lr_batches = lr_batches
        self.lr_epochs = lr_epochs
        self.warmup_batches = warmup_batches
        self.warmup_start = warmup_start
        self.epoch = 0
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """The rate of each parameter group now."""
        factor = _decay(self.last_epoch, self.lr_batches) * self._warmup()
        if self.lr_epochs is not None:
            factor *= _decay(self.epoch, self.lr_epochs)
        return [base * factor for base in self.base_lrs]

    def step_epoch(self, epoch: int) -> None:
        """Tell how many epochs are done."""
        if epoch == self.epoch:
            return
        self.epoch = epoch
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    def _warmup(self) -> float:
        if self.last_epoch >= self.warmup_batches:
            return 1.0
        done = self.last_epoch / self.warmup_batches
        return self.warmup_start + (1 - self.warmup_start) * done


def _decay(count: float, scale: float) -> float:
    return (1 + (count / scale) ** 2) ** -0.25
