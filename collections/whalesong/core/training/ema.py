"""An exponential moving average of the trained weights, behind NeMo's section `exp_manager.ema`.

NeMo's own callback cannot be resumed with a ModelPT on torch >= 2.6; this one keeps its state as
plain tensors in the checkpoint itself.
"""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from whalesong.core.errors import CheckpointError


class ExponentialMovingAverage(Callback):
    """Averages the trained floating-point weights; validation and archives take the averages.

    After n updates the average is `sum_i decay^(n-i) w_i / sum_i decay^(n-i)` over the weights w_i
    after each update: a true weighted mean, in which the weights before training have no share, so
    that short runs need no smaller decay (bias correction as in Adam, arXiv 1412.6980, section 3).
    Half-precision weights are averaged in fp32. Buffers, such as the statistics of a batch norm,
    are those of the training.

    Checkpoints hold the weights of the training, and the averages beside them; a resumed run goes
    on bit for bit. When training ends, the module is left with the averages.

    Args:
        decay: what each update leaves of the average before it, between 0 and 1.
        every_n_steps: optimizer steps from one update to the next.
        cpu_offload: keep the averages in main memory.
        validate_original_weights: validate and archive the weights of the training; the averages
            are then in the checkpoints only.
    """

    def __init__(
        self,
        *,
        decay: float = 0.999,
        every_n_steps: int = 1,
        cpu_offload: bool = False,
        validate_original_weights: bool = False,
    ) -> None:
        self.decay = decay
        self.every_n_steps = every_n_steps
        self.cpu_offload = cpu_offload
        self.validate_original_weights = validate_original_weights
        self.num_steps = 0
        self.num_updates = 0
        self.averages: dict[str, Tensor] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self._originals: dict[str, Tensor] = {}
        self._hook: Any = None

    # -- averaging --------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the optimizer.

        A hook of the optimizer is earlier than any callback that may save a checkpoint, and knows
        of accumulated batches and of steps that a gradient scaler skips.
        """
        self._parameters = _averaged_parameters(pl_module)
        self._place()
        self._hook = trainer.optimizers[0].register_step_post_hook(self._after_step)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if all(parameter.grad is None for parameter in self._parameters.values()):
            return  # a step that was left out
        self.num_steps += 1
        if self.num_steps % self.every_n_steps == 0:
            self._update()

    @torch.no_grad()
    def _update(self) -> None:
        current = {name: self._like_average(p.detach()) for name, p in self._parameters.items()}
        self.num_updates += 1
        if self.num_updates == 1:
            self.averages = {name: tensor.clone() for name, tensor in current.items()}
            return
        share = (1 - self.decay) / (1 - self.decay**self.num_updates)
        update = get_ema_multi_avg_fn(1 - share)
        update(list(self.averages.values()), list(current.values()), None)

    def _like_average(self, weight: Tensor) -> Tensor:
        """A weight on the device and in the precision in which it is averaged."""
        return weight.to(self._device(weight), torch.promote_types(weight.dtype, torch.float32))

    def _device(self, weight: Tensor) -> torch.device:
        return torch.device("cpu") if self.cpu_offload else weight.device

    # -- averages in place of the weights ---------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the averages in, within a training; afterwards the module has them anyway."""
        if self.weights() and not self._originals:
            self._originals = {name: p.detach().clone() for name, p in self._parameters.items()}
            self._copy(self.averages)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the weights of the training."""
        self._put_back()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the averages in the module: what was validated and archived."""
        if weights := self.weights():
            self._copy(weights)
        self._release()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the weights of the training in the module."""
        self._put_back()
        self._release()

    def weights(self) -> dict[str, Tensor]:
        """The averages that stand for the weights now; empty before the first update, without a
        training and with `validate_original_weights`."""
        active = bool(self._parameters) and not self.validate_original_weights
        return self.averages if active else {}

    def _put_back(self) -> None:
        self._copy(self._originals)
        self._originals = {}

    @torch.no_grad()
    def _copy(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in weights.items():
            self._parameters[name].copy_(weight)

    def _release(self) -> None:
        self._parameters = {}
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    # -- checkpoints ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The averages and how many steps and updates they have seen."""
        return {
            "num_steps": self.num_steps,
            "num_updates": self.num_updates,
            "averages": dict(self.averages),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; the weights were restored just before."""
        self.num_steps = state_dict["num_steps"]
        self.num_updates = state_dict["num_updates"]
        self.averages = dict(state_dict["averages"])
        self._originals = {}
        if self._parameters:
            self._place()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the weights of the training, also while the averages stand in their place."""
        checkpoint["state_dict"].update(_under_all_names(self._originals, pl_module))

    def _place(self) -> None:
        """Bring restored averages to the device of the weights.

        Raises:
            CheckpointError: the checkpoint was made with other trained weights.
        """
        if not self.averages:
            return
        given = {name: tensor.shape for name, tensor in self.averages.items()}
        wanted = {name: parameter.shape for name, parameter in self._parameters.items()}
        if given != wanted:
            odd = next(n for n in (*wanted, *given) if given.get(n) != wanted.get(n))
            raise CheckpointError(
                f"the moving average of the checkpoint has `{odd}` as {_size(given.get(odd))}, but "
                f"the model trains it as {_size(wanted.get(odd))}."
            )
        self.averages = {
            name: self.averages[name].to(self._device(parameter))
            for name, parameter in self._parameters.items()
        }


def averaged_state(module: LightningModule) -> dict[str, Tensor]:
    """The averages of a module under all its state names, to be archived in place of its weights.

    Empty when no average is kept or the module is not being trained.
    """
    trainer = module._trainer
    for callback in [] if trainer is None else trainer.callbacks:
        if isinstance(callback, ExponentialMovingAverage):
            return _under_all_names(callback.weights(), module)
    return {}


def _averaged_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and parameter.is_floating_point()
    }


def _under_all_names(weights: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Weights by the first name of each parameter -> the same under every name, as they are there.

    A tied parameter stands in a state dict once for each of its names.
    """
    if not weights:
        return {}
    by_parameter = {p: weights[name] for name, p in module.named_parameters() if name in weights}
    return {
        name: by_parameter[parameter].to(parameter.device, parameter.dtype)
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if parameter in by_parameter
    }


def _size(shape: torch.Size | None) -> str:
    return "nothing" if shape is None else str(list(shape))
