"""The `data` section as a Lightning data module, with exact resume."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import LightningDataModule

from whalesong.core.errors import CheckpointError, ConfigError, DataError
from whalesong.core.schema import validate
from whalesong.data.config import DataConfig, DatasetConfig, ValidationConfig
from whalesong.data.filters import MeasureTokens
from whalesong.data.loader import BatchLoader
from whalesong.data.plan import BatchPlan, make_plan

_LOG = logging.getLogger(__name__)

FREE_KEYS = ("num_workers", "worker_timeout", "pin_memory")
"""Keys of `train_ds` that may differ between a run and its resumption: they change no batch."""


class LanguageDataModule(LightningDataModule):
    """Loaders of one `data` section, for any family."""

    def __init__(
        self,
        config: DataConfig,
        *,
        train_collator: Any,
        validation_collator: Any = None,
        measure_tokens: MeasureTokens | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            train_collator: see `whalesong.core.parts.Collator`; a `for_data(config)` that it has
                gives the one that is used.
            validation_collator: that of validation and test; the train collator if None.
            measure_tokens: length of an example in tokens, for `batch_tokens` and token filters.
        """
        super().__init__()
        self.config = config
        self.train_collator = _fitted(train_collator, config)
        self.validation_collator = _fitted(validation_collator or train_collator, config)
        self.measure_tokens = measure_tokens
        self._train_loader: BatchLoader | None = None
        self._loaders: list[BatchLoader] = []
        self._restored: dict[str, Any] | None = None
        self._sets = {
            name: section.named_sets(path=f"data.{name}") if section is not None else {}
            for name, section in self._sections().items()
        }

    @property
    def val_names(self) -> list[str]:
        """Names of the validation sets, in the order of the loaders."""
        return list(self._sets["validation_ds"])

    @property
    def test_names(self) -> list[str]:
        """Names of the test sets, in the order of the loaders."""
        return list(self._sets["test_ds"])

    def setup(self, stage: str) -> None:
        """Look before training whether there is something to validate on.

        Raises:
            DataError: the filters of a validation set leave nothing.
        """
        if stage != "fit" or self._overfits or not getattr(self.trainer, "limit_val_batches", 0):
            return
        for name, config in self._sets["validation_ds"].items():
            path = f"data.validation_ds.datasets.{name}"
            next(self._plan(config, path, shuffle=False, quiet=True).examples(0))

    def train_dataloader(self) -> BatchLoader:
        """One endless stream, or one pass an epoch (see `_infinite`)."""
        if self.config.train_ds is None:
            raise ConfigError("`data.train_ds` is mandatory for training, but is missing.")
        config = self.config.train_ds
        self._train_loader = self._loader(
            self._plan(config, "data.train_ds", shuffle=True),
            self.train_collator,
            config,
            infinite=self._infinite(config),
            repeat_first_epoch=self._overfits,
            **self._progress_of_trainer(),
        )
        if self._restored is not None:
            self._train_loader.load_state_dict(self._restored)
            self._set_progress(self._restored["consumed"])
            self._restored = None
        elif config.shard_seed == "trng":
            _LOG.warning("`data.train_ds.shard_seed` is trng: this run cannot be resumed exactly.")
        return self._train_loader

    def val_dataloader(self) -> list[BatchLoader]:
        """A loader for each validation set: every example once, in order.

        A trainer that overfits some batches validates on these instead.
        """
        if self._overfits and self.config.train_ds is not None:
            return [self._overfitted_loader(self.config.train_ds)]
        return self._evaluation_loaders("validation_ds")

    def test_dataloader(self) -> list[BatchLoader]:
        """A loader for each test set: every example once, in order."""
        return self._evaluation_loaders("test_ds")

    def predict_dataloader(self) -> list[BatchLoader]:
        """The loaders of the test sets."""
        return self.test_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """The place in the plan after the last optimizer step, and what makes the plan."""
        if self._train_loader is None:
            return self._restored or {}
        place = self._train_loader.state_dict(waiting=self._waiting())
        return {**place, "fingerprint": fingerprint(self.config)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint stands.

        Raises:
            CheckpointError: the data section has changed, or the order was not reproducible.
        """
        if not state_dict or self.config.train_ds is None:
            return
        then, now = state_dict["fingerprint"], fingerprint(self.config)
        if changed := sorted(key for key in then | now if then.get(key) != now.get(key)):
            raise CheckpointError(
                f"the checkpoint was made with another `data.{changed[0]}`: undo the change to "
                "resume exactly, or start fresh with another log folder."
            )
        if self.config.train_ds.shard_seed == "trng":
            raise CheckpointError(
                "`data.train_ds.shard_seed` is trng, another order in every run: set it to "
                "randomized to resume exactly."
            )
        self._restored = dict(state_dict)
        if self._train_loader is not None:
            self._train_loader.load_state_dict(state_dict)

    def on_exception(self, exception: BaseException) -> None:
        """Tell of a data worker whose end has interrupted the training, and stop the workers."""
        try:
            for loader in self._loaders:
                loader.explain(exception)
        finally:
            self.teardown("fit")

    def teardown(self, stage: str) -> None:
        """Stop the workers."""
        for loader in self._loaders:
            loader.close()

    def _sections(self) -> dict[str, ValidationConfig | None]:
        return {"validation_ds": self.config.validation_ds, "test_ds": self.config.test_ds}

    @property
    def _overfits(self) -> bool:
        """Whether the trainer repeats a few batches; it takes only these of every loader."""
        return bool(getattr(self.trainer, "overfit_batches", 0))

    def _overfitted_loader(self, config: DatasetConfig) -> BatchLoader:
        """The batches of the first epoch of training, as validation wants them."""
        plan = self._plan(config, "data.train_ds", shuffle=True)
        return self._loader(plan, self.validation_collator, config, repeat_first_epoch=True)

    def _evaluation_loaders(self, section: str) -> list[BatchLoader]:
        loaders = []
        for name, config in self._sets[section].items():
            plan = self._plan(config, f"data.{section}.datasets.{name}", shuffle=False)
            collator = self.validation_collator
            loaders.append(self._loader(plan, collator, config, repeat_first_epoch=True))
        return loaders

    def _plan(
        self, config: DatasetConfig, path: str, *, shuffle: bool, quiet: bool = False
    ) -> BatchPlan:
        return make_plan(
            config,
            path=path,
            shuffle=shuffle,
            on_bad_cut=self.config.on_bad_cut,
            default_context=self.config.default_context,
            measure_tokens=self.measure_tokens,
            quiet=quiet,
        )

    def _loader(
        self, plan: BatchPlan, collator: Any, config: DatasetConfig, **options: Any
    ) -> BatchLoader:
        """A loader for this rank; ranks that share a model replica load the same data."""
        replicas = {"num_replicas": 1, "rank": 0}
        if self.trainer is not None:
            replicas = getattr(self.trainer.strategy, "distributed_sampler_kwargs", replicas)
        loader = BatchLoader(
            plan,
            collator,
            rank=replicas["rank"],
            world_size=replicas["num_replicas"],
            num_workers=config.num_workers,
            worker_timeout=config.worker_timeout,
            pin_memory=config.pin_memory,
            **options,
        )
        self._loaders.append(loader)
        return loader

    def _infinite(self, config: DatasetConfig) -> bool:
        """Endless unless epochs are asked for: `force_finite`, or `max_epochs` of whole passes."""
        if config.force_finite:
            return False
        if self.trainer is None:
            return True
        by_epochs = self.trainer.max_epochs is not None and self.trainer.max_epochs > 0
        return not by_epochs or isinstance(self.trainer.limit_train_batches, int)

    def _consumed(self) -> int:
        """Batches this rank has been trained on; `completed` lags behind inside the hooks."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed

    def _progress_of_trainer(self) -> dict[str, Callable[[], Any]]:
        """How the loader asks where the trainer stands; without a trainer it need not ask."""
        if self.trainer is None:
            return {}
        return {"consumed": self._consumed, "epoch_is_over": self._epoch_is_over}

    def _epoch_is_over(self) -> bool:
        """Whether the trainer resumes in an epoch whose last batch has been trained on.

        Without validation Lightning would go on in it instead of ending it.
        """
        epoch_loop = self.trainer.fit_loop.epoch_loop
        limit = self.trainer.limit_train_batches
        trained = epoch_loop.batch_progress.current.processed
        last = epoch_loop.batch_progress.is_last_batch
        return epoch_loop.restarting and (last or isinstance(limit, int) and trained >= limit)

    def _waiting(self) -> int:
        """Batches whose gradients wait for the next optimizer step.

        Gradients are in no checkpoint: a resumed run trains on these batches again.
        """
        if self.trainer is None:
            return 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        trained = progress.current.processed
        # The last batch of an epoch ends a step, when it has been trained on.
        is_last = progress.is_last_batch and progress.current.ready == trained
        if is_last or trained >= self.trainer.num_training_batches:
            return 0
        return trained % self.trainer.accumulate_grad_batches

    def _set_progress(self, consumed: int) -> None:
        """Let the trainer go on after that many batches.

        Its own counts hold the batches of a step that was under way, and count the last batch as
        completed only after the hooks in which checkpoints are written: a resumed epoch would be a
        batch too long, and gradient accumulation out of step.
        """
        if self.trainer is None:
            return
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        waiting = progress.total.processed - consumed
        for counts in (progress.current, progress.total):
            done = counts.processed - waiting
            counts.ready = counts.started = counts.processed = counts.completed = done


def _fitted(collator: Any, config: DataConfig) -> Any:
    """The collator as the data section wants it, where that depends on it."""
    return collator.for_data(config) if hasattr(collator, "for_data") else collator


def fingerprint(config: DataConfig) -> dict[str, str]:
    """A digest of every key that decides which batches are trained on."""
    keys = config.train_ds.model_dump(exclude=set(FREE_KEYS), exclude_defaults=True)
    keys = {f"train_ds.{key}": value for key, value in keys.items()}
    keys |= {"on_bad_cut": config.on_bad_cut, "default_context": config.default_context}
    keys |= config.model_dump(include={"input_roles", "output_roles"}, exclude_defaults=True)
    return {
        key: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
        for key, value in keys.items()
    }


def check_inputs(config: DataConfig, sections: Sequence[str]) -> None:
    """Look for every input that a job will read, before a model is loaded for it.

    Args:
        config: the `data` section.
        sections: those that the job reads: `train_ds`, `validation_ds`, `test_ds`.

    Raises:
        ConfigError: an input is described wrongly.
        DataError: a folder, manifest or shard is missing or empty.
    """
    for name in sections:
        section = getattr(config, name)
        if isinstance(section, ValidationConfig):
            sets = section.named_sets(path=f"data.{name}")
            datasets = {f"data.{name}.datasets.{key}": dataset for key, dataset in sets.items()}
        else:
            datasets = {} if section is None else {f"data.{name}": section}
        for path, dataset in datasets.items():
            try:
                make_plan(
                    dataset,
                    path=path,
                    on_bad_cut=config.on_bad_cut,
                    measure_tokens=_measured_later,
                    quiet=True,  # the loaders tell what is left out
                )
            except DataError as error:
                if f"`{path}" in str(error):
                    raise
                raise DataError(f"`{path}.{dataset.input_keys[0]}`: {error}") from error


def _measured_later(example: Any) -> int:
    """Stands for the model's measure, which comes with the model; no length is asked before."""
    raise AssertionError("lengths in tokens are not known before the model is")


def build_loader(config: Any, collator: Any, *, path: str) -> BatchLoader:
    """One finite loader for a data section, without a data module (NeMo's `setup_training_data`).

    Args:
        config: keys of `DatasetConfig`, plain or as a DictConfig.
        collator: see `whalesong.core.parts.Collator`.
        path: where the section stands in the YAML.
    """
    dataset = validate(DatasetConfig, config, path=path)
    plan = make_plan(dataset, path=path, shuffle=dataset.shuffle, on_bad_cut="raise")
    return BatchLoader(plan, collator, num_workers=dataset.num_workers, repeat_first_epoch=True)
