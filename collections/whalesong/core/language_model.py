"""`LanguageModelPT`: the one ModelPT that runs the four parts of any family."""

import logging
import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from whalesong.core.archived_model import ArchivedModel
from whalesong.core.checkpoint import plain_hyper_parameters, refuse_non_finite
from whalesong.core.config.job import PredictConfig
from whalesong.core.contract import checked_loss, checked_predictions, checked_rows
from whalesong.core.instantiate import allow_whalesong_targets
from whalesong.core.optim import build_optimizer, optimizer_sections
from whalesong.core.parallel import shard
from whalesong.core.parts import Batch, Evaluation, Parts
from whalesong.core.schema import Schema, validate
from whalesong.core.seeding import mix
from whalesong.core.training.totals import EvaluationTotals

_LOG = logging.getLogger(__name__)

LOSS_SCALE = 1024
"""Divides the summed loss before the backward pass: gradients stay in half precision's range."""


class LanguageModelPT(ArchivedModel):
    """Trains, evaluates, saves and restores the four parts that a family builds.

    Args:
        cfg: the `model` section; checked against `config_schema`, copied and never edited.
        trainer: Lightning's trainer, as everywhere in NeMo.
        assets: content of the files of an archive; without them the pretrained parts that `cfg`
            names are loaded.

    Raises:
        ConfigError: the section breaks its schema.
    """

    config_schema: ClassVar[type[Schema]]
    sharding_methods: tuple[str, ...] = ("generate",)
    """Methods of the model beside `forward` that need whole parameters when they are sharded."""

    def __init__(
        self,
        cfg: DictConfig | Mapping[str, Any],
        trainer: Trainer | None = None,
        *,
        assets: Mapping[str, bytes] | None = None,
    ) -> None:
        cfg = OmegaConf.create(OmegaConf.to_container(OmegaConf.create(cfg), resolve=True))
        validate(self.config_schema, cfg, path="model")
        allow_whalesong_targets()
        super().__init__(cfg, trainer)
        self.assets: dict[str, bytes] = dict(assets or {})
        self.parts = self.build_parts(assets)
        self.model = self.parts.model
        self.seed = 0
        self.validation_names: list[str] = []
        self._num_targets: Tensor | None = None
        self._totals: list[EvaluationTotals] = []
        self._is_sharded = False
        if assets is None and cfg.get("init_from") is not None:
            self.start_from(cfg.init_from)

    @abstractmethod
    def build_parts(self, assets: Mapping[str, bytes] | None) -> Parts:
        """Build the four parts from `self.cfg`, fill in what it left open, set `self.assets`."""

    def sharding_blocks(self) -> Iterable[nn.Module]:
        """Repeated layers of the model that FSDP gathers one at a time."""
        return ()

    # -- training ---------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Put every part in its mode for training; let the loss prepare itself on the device."""
        super().on_fit_start()
        self.train()
        if hasattr(self.parts.loss, "configure"):
            self.parts.loss.configure(self)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make dropout a function of (seed, rank, batch), so that a resumed run draws the same.

        A schedule that goes by epochs, too, is told how many passes over the data are done.
        """
        consumed = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        on_cpu = (
            self.device.type == "cpu"
        )  # `torch.manual_seed` keeps a traceback for other devices
        manual_seed = torch.default_generator.manual_seed if on_cpu else torch.manual_seed
        manual_seed(mix(self.seed, self.global_rank, consumed))
        for config in self.trainer.lr_scheduler_configs:
            if hasattr(config.scheduler, "step_epoch"):
                # The trainer has no epochs over endless data, and stopping ends the one it is in.
                epoch = getattr(self.trainer.train_dataloader, "epoch", self.current_epoch)
                config.scheduler.step_epoch(epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch; after `on_before_optimizer_step` every target weighs the same."""
        outputs = checked_loss(self.parts.loss, batch)
        loss, num_targets = outputs["loss"], outputs.get("num_targets")
        self.log("loss", loss.detach(), prog_bar=True, batch_size=1)
        self.log_dict(outputs.get("parts", {}), batch_size=1)
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=1)
        if num_targets is None:
            return loss
        self._num_targets = num_targets + (0 if self._num_targets is None else self._num_targets)
        share = self.trainer.accumulate_grad_batches * self._data_parallel_size() / LOSS_SCALE
        return loss * num_targets * share

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the summed gradients by the targets of all ranks and accumulation steps."""
        if self._num_targets is None:
            return
        total = self.trainer.strategy.reduce(self._num_targets.float(), reduce_op="mean")
        total = total * self._data_parallel_size()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(LOSS_SCALE / total.clamp_min(1))
        self._num_targets = None

    def configure_optimizers(self) -> Any:
        """Take `model.optimizer` and `model.lr_scheduler`, or else NeMo's `model.optim`."""
        sections = optimizer_sections(OmegaConf.to_container(self.cfg))
        if sections is None:
            return super().configure_optimizers()
        optimizer, schedule = sections
        return build_optimizer(
            self, optimizer=optimizer, lr_scheduler=schedule, max_steps=self.trainer.max_steps
        )

    def setup_optimizer_param_groups(self) -> None:
        """Only what is trained, for NeMo's `model.optim`."""
        self._optimizer_param_groups = [
            {"params": [p for p in self.parameters() if p.requires_grad]}
        ]

    def configure_model(self) -> None:
        """Shard the model when the strategy is `ModelParallelStrategy` (FSDP2)."""
        if self.device_mesh is None or self._is_sharded:
            return
        mesh = self.device_mesh["data_parallel"]
        shard(self.model, mesh, blocks=self.sharding_blocks(), methods=self.sharding_methods)
        self._is_sharded = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep checkpoints plain and finite."""
        refuse_non_finite(checkpoint)
        plain = plain_hyper_parameters(checkpoint)
        checkpoint.clear()
        checkpoint.update(plain)

    def _data_parallel_size(self) -> int:
        kwargs = self.trainer.distributed_sampler_kwargs or {}
        return kwargs.get("num_replicas", 1)

    # -- evaluation -------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start counting anew."""
        self._start_totals(self.trainer.num_val_batches)

    def on_test_epoch_start(self) -> None:
        """Start counting anew."""
        self._start_totals(self.trainer.num_test_batches)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add the loss, and with prompts the generated rows, to the counts of the data set."""
        totals = self._totals[dataloader_idx]
        totals.add_loss(checked_loss(self.parts.loss, batch))
        if self.parts.metrics and (prompts := self.generated_from(batch)) is not None:
            preds = checked_predictions(self.parts.predictor, prompts)
            totals.add_rows(checked_rows(self.parts.predictor, prompts, preds))

    def generated_from(self, batch: Batch) -> Batch | None:
        """What of a validation batch the predictor takes; None if there is nothing to generate."""
        return batch if "prompt" in batch else None

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log `val_loss`, `val_acc`, `val_wer`, ... over all sets and, its name behind, each."""
        self._log_totals("val")

    def on_test_epoch_end(self) -> None:
        """As in validation, under `test_`."""
        self._log_totals("test")

    def _start_totals(self, num_batches: Any) -> None:
        count = len(num_batches) if isinstance(num_batches, list) else 1
        parts = self.parts
        self._totals = [
            EvaluationTotals(parts.metrics, loss_metrics=parts.loss_metrics) for _ in range(count)
        ]

    def _log_totals(self, prefix: str) -> None:
        summed = [self._sum_over_ranks(totals) for totals in self._totals]
        everything = [sum(column) for column in zip(*summed, strict=True)]
        values = self._totals[0].compute(everything)
        for key, value in values.items():  # a value for each codebook would crowd the bar
            self.log(f"{prefix}_{key}", value, prog_bar=key.isalpha())
        names = self.validation_names if len(self.validation_names) == len(summed) else []
        self._warn_of_losses(prefix, names, summed)
        for name, counts in zip(names, summed, strict=False):
            values = self._totals[0].compute(counts)
            self.log_dict({f"{prefix}_{key}_{name}": value for key, value in values.items()})

    def _warn_of_losses(
        self, prefix: str, names: Sequence[str], summed: Sequence[Sequence[float]]
    ) -> None:
        """A loss that is not finite only warns here: evaluating changes no weight."""
        for index, (loss, *_) in enumerate(summed):
            if not math.isfinite(loss) and self.trainer.is_global_zero:
                name = names[index] if names else index
                step = self.trainer.global_step
                _LOG.warning("%s_loss of the set '%s' is %s at step %d.", prefix, name, loss, step)

    def _sum_over_ranks(self, totals: EvaluationTotals) -> list[float]:
        counts = torch.tensor(totals.counts(), dtype=torch.float64, device=self.device)
        return self.trainer.strategy.reduce(counts, reduce_op="sum").tolist()

    # -- use --------------------------------------------------------------------------------------

    @abstractmethod
    def evaluate(self, loader: Iterable[Batch], *, description: str) -> Evaluation:
        """Evaluate on a test set, with a progress bar of that name."""

    @abstractmethod
    def answer(self, request: PredictConfig) -> Iterator[dict[str, Any]]:
        """Do what `job_type=predict` asks for, one row for each answer; prints as it goes on.

        Raises:
            ConfigError: the request asks for what this family cannot do.
        """

    # -- NeMo's abstract methods ------------------------------------------------------------------

    @classmethod
    def list_available_models(cls) -> list:
        """Whalesong publishes no weights."""
        return []

    def setup_training_data(self, train_data_config: DictConfig | dict) -> None:
        """NeMo's way to give data to a model: `trainer.fit(model)` then needs no data module."""
        self._train_dl = self.parts.make_loader(
            train_data_config, self.parts.train_collator, path="train_ds"
        )

    def setup_validation_data(self, val_data_config: DictConfig | dict) -> None:
        """One validation set; see `setup_training_data`."""
        self._validation_dl = self.parts.make_loader(
            val_data_config, self.parts.validation_collator, path="validation_ds"
        )
