"""Nothing that is not finite gets into the weights: steps are tested before they are taken."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm

from whalesong.core.errors import UserError
from whalesong.core.scaled_adam import local_part

LARGEST_NORM = 2.0**53
"""Of a gradient: the square of a greater one, which Adam keeps, may leave the range of fp32, as
gradients are yet to be divided by the number of targets."""
MOST_NAMES = 3
MOST_IDS = 32

_LOG = logging.getLogger(__name__)


class NotFiniteError(UserError):
    """A loss or gradient is NaN or infinite; the message names the step and its examples."""


@dataclass(frozen=True)
class Finding:
    """What one rank found in a step.

    Attributes:
        losses: the loss of each micro-batch.
        gradients: names of parameters and the norms of their gradients, where not finite.
        ids: those of the examples of each micro-batch.
    """

    losses: list[float]
    gradients: dict[str, float]
    ids: list[tuple[str, ...]]

    def bad_batches(self) -> list[int]:
        """Micro-batches whose loss is not finite."""
        losses = torch.tensor(self.losses)
        return (~losses.isfinite()).nonzero().flatten().tolist()


class FiniteGuard(Callback):
    """Stops all ranks, or leaves the step out, where a loss or a gradient is not finite.

    The test comes between the backward pass and the optimizer: weights, moments and averages never
    see the step. It reads every gradient once and costs one synchronization a step. What the
    gradient scaler of fp16 answers by a smaller scale is left to it.

    A step that is left out counts as a step: `global_step`, the schedule of the learning rate and
    the data go on; buffers (batch norm) are put back as they were. Both counts are saved in the
    checkpoint, so that a resumed run goes on exactly.

    Args:
        max_skipped_steps: steps in a row that may be left out; the next one stops.
    """

    def __init__(self, *, max_skipped_steps: int = 0) -> None:
        self.max_skipped_steps = max_skipped_steps
        self.skipped = 0
        self.skipped_in_a_row = 0
        self._losses: list[Tensor] = []
        self._buffers: list[tuple[Tensor, Tensor]] = []

    # -- what a step is made of -------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with no batch; tell what was left out before a resume."""
        self._losses = []
        self._tell_total(trainer, "so far")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the buffers that the forward pass changes, in case the step is left out."""
        if self.max_skipped_steps and not self._losses:
            changing = [m for m in pl_module.modules() if m.training]
            buffers = [buffer for m in changing for buffer in m.buffers(recurse=False)]
            self._buffers = [(buffer, buffer.clone()) for buffer in buffers]

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Note the loss of a micro-batch."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Test the losses and gradients of all ranks.

        Raises:
            NotFiniteError: on rank 0; the other ranks end without a line of their own.
        """
        losses, self._losses = self._losses, []
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        gradients = [local_part(gradient) for gradient in gradients if gradient is not None]
        sentence = None
        if _any_rank(trainer, not_finite(losses, gradients)):
            findings = _findings(trainer, pl_module, losses)
            if not all(_is_harmless(finding, trainer) for finding in findings):
                sentence = describe(findings, step=trainer.global_step + 1)
        if sentence is None:
            self.skipped_in_a_row = 0
        elif self.skipped_in_a_row < self.max_skipped_steps:
            self._leave_out(trainer, optimizer, sentence)
        else:
            self._stop(trainer, pl_module, sentence)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log how many steps were left out, where any may be."""
        if self.max_skipped_steps:
            pl_module.log("skipped_steps", float(self.skipped))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the total."""
        self._tell_total(trainer, "in all")

    # -- what happens to a bad one ----------------------------------------------------------------

    @torch.no_grad()
    def _leave_out(self, trainer: Trainer, optimizer: torch.optim.Optimizer, sentence: str) -> None:
        """Take the gradients away: an optimizer leaves a parameter without one as it is."""
        optimizer.zero_grad(set_to_none=True)
        for buffer, before in self._buffers:
            buffer.copy_(before)
        self.skipped += 1
        self.skipped_in_a_row += 1
        if trainer.is_global_zero:
            _LOG.warning(
                "Left out: %s (%d in a row, %d in all).",
                sentence,
                self.skipped_in_a_row,
                self.skipped,
            )

    def _stop(self, trainer: Trainer, pl_module: LightningModule, sentence: str) -> None:
        count = self.skipped_in_a_row
        before = f", after {count} {_steps(count)} left out" if count else ""
        error = NotFiniteError(
            f"{sentence}{before}; it changed nothing{_last_checkpoint(trainer)}: "
            f"{_advice(pl_module, self.max_skipped_steps)}."
        )
        if trainer.is_global_zero:
            raise error
        raise SystemExit(error.exit_code)

    def _tell_total(self, trainer: Trainer, when: str) -> None:
        if self.skipped and trainer.is_global_zero:
            _LOG.warning(
                "%d of %d %s were left out %s, because loss or gradient was not finite.",
                self.skipped,
                trainer.global_step,
                _steps(trainer.global_step),
                when,
            )

    # -- checkpoints ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, int]:
        """How many steps were left out, in all and in a row."""
        return {"skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take over what `state_dict` gave."""
        self.skipped = state_dict["skipped"]
        self.skipped_in_a_row = state_dict["skipped_in_a_row"]


def not_finite(losses: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Whether a loss or the norm of all gradients is not finite, as a boolean tensor.

    Nothing waits for the device. The norm of gradients in fp16 may overflow by itself.
    """
    norm = get_total_norm(gradients).float()
    if not losses:
        return ~(norm < LARGEST_NORM)
    values = torch.stack([loss.float().reshape(()) for loss in losses]).to(norm.device)
    return ~((norm < LARGEST_NORM) & values.isfinite().all())


def describe(findings: Sequence[Finding], *, step: int) -> str:
    """One sentence without a full stop: what is not finite in a step, on which rank, with what.

    Args:
        findings: those of all ranks in order.
        step: the number of the step, from 1 on.
    """
    ranks = range(len(findings))
    guilty = [rank for rank in ranks if findings[rank].bad_batches()]
    if not guilty:
        found = next(finding for finding in findings if finding.gradients)
        names, values = zip(*found.gradients.items(), strict=True)
        more = len(names) - MOST_NAMES
        listed = ", ".join(f"`{name}`" for name in names[:MOST_NAMES])
        listed += f" and {more} more" if more > 0 else ""
        ids = [id for finding in findings for batch in finding.ids for id in batch]
        return (
            f"step {step}: the gradient of {listed} has norm {values[0]:.1e}, with {_listed(ids)}"
        )
    rank = guilty[0]
    found = findings[rank]
    batches = found.bad_batches()
    where = f" on rank {rank}" if len(findings) > 1 else ""
    if len(found.losses) > 1:
        numbers = ", ".join(str(number + 1) for number in batches)
        where += f" in micro-batch {numbers} of {len(found.losses)}"
    ids = [id for number in batches for id in found.ids[number]]
    value = found.losses[batches[0]]
    return f"step {step}: the loss{where} is {value}, with {_listed(ids)}"


def _any_rank(trainer: Trainer, flag: Tensor) -> bool:
    if trainer.world_size > 1:
        flag = trainer.strategy.reduce(flag.float(), reduce_op="sum")
    return bool(flag)


def _findings(
    trainer: Trainer, pl_module: LightningModule, losses: Sequence[Tensor]
) -> list[Finding]:
    """What every rank has found, in order; called by all of them."""
    own = Finding([float(loss) for loss in losses], _bad_gradients(pl_module), [])
    consumed = trainer.fit_loop.epoch_loop.batch_progress.total.ready
    ids_of = getattr(trainer.train_dataloader, "ids_of", lambda number: ())
    own.ids.extend(tuple(ids_of(number)) for number in range(consumed - len(losses), consumed))
    if trainer.world_size == 1:
        return [own]
    everyone: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(everyone, own)
    return everyone


def _bad_gradients(module: torch.nn.Module) -> dict[str, float]:
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    norms = {name: float(local_part(g).float().norm()) for name, g in gradients.items()}
    return {name: norm for name, norm in norms.items() if not norm < LARGEST_NORM}


def _is_harmless(finding: Finding, trainer: Trainer) -> bool:
    """Nothing is wrong, or only what a gradient scaler answers by a smaller scale."""
    if finding.bad_batches():
        return False
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return not finding.gradients or (scaler is not None and scaler.get_scale() >= 1)


def _last_checkpoint(trainer: Trainer) -> str:
    path = getattr(trainer.checkpoint_callback, "last_model_path", "")
    return f", and {path} is good" if path else ""


def _advice(module: torch.nn.Module, max_skipped_steps: int) -> str:
    weights = (name for name, p in module.named_parameters() if not local_part(p).isfinite().all())
    if name := next(weights, None):
        return f"`{name}` is not finite since an earlier step, so lower the learning rate"
    return (
        "look at these examples, lower the learning rate, or raise `max_skipped_steps` "
        f"({max_skipped_steps})"
    )


def _listed(ids: Sequence[str]) -> str:
    if not ids:
        return "examples without ids"
    more = len(ids) - MOST_IDS
    rest = f" and {more} more" if more > 0 else ""
    return f"{'example' if len(ids) == 1 else 'examples'} {', '.join(ids[:MOST_IDS])}{rest}"


def _steps(count: int) -> str:
    return "step" if count == 1 else "steps"
