"""The `data` section as a Lightning data module, with exact resume."""

import hashlib
import json
from typing import Any

from lightning.pytorch import LightningDataModule

from whalesong.core.errors import CheckpointError, ConfigError
from whalesong.core.schema import validate
from whalesong.data.config import DataConfig, DatasetConfig, ValidationConfig
from whalesong.data.filters import MeasureTokens
from whalesong.data.loader import BatchLoader
from whalesong.data.plan import BatchPlan, make_plan

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
            train_collator: see `whalesong.core.parts.Collator`.
            validation_collator: that of validation and test; the train collator if None.
            measure_tokens: length of an example in tokens, for `batch_tokens` and token filters.
        """
        super().__init__()
        self.config = config
        self.train_collator = train_collator
        self.validation_collator = validation_collator or train_collator
        self.measure_tokens = measure_tokens
        self._train_loader: BatchLoader | None = None
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

    def train_dataloader(self) -> BatchLoader:
        """One endless stream, or one pass an epoch (see `_infinite`)."""
        if self.config.train_ds is None:
            raise ConfigError("`data.train_ds` is mandatory for training, but is missing.")
        config = self.config.train_ds
        plan = self._plan(config, "data.train_ds", shuffle=True)
        if self._restored is not None:
            self._check_resumable(plan)
        self._close()
        self._train_loader = BatchLoader(
            plan,
            self.train_collator,
            **self._placement(config),
            infinite=self._infinite(config),
            repeat_first_epoch=bool(getattr(self.trainer, "overfit_batches", 0)),
            consumed=self._consumed if self.trainer is not None else None,
        )
        if self._restored is not None:
            self._train_loader.load_state_dict(self._restored)
        return self._train_loader

    def val_dataloader(self) -> list[BatchLoader]:
        """A loader for each validation set: every example once, in order."""
        return self._evaluation_loaders("validation_ds")

    def test_dataloader(self) -> list[BatchLoader]:
        """A loader for each test set: every example once, in order."""
        return self._evaluation_loaders("test_ds")

    def predict_dataloader(self) -> list[BatchLoader]:
        """The loaders of the test sets."""
        return self.test_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """The place in the plan of the next batch to train on, and what makes the plan."""
        if self._train_loader is None:
            return self._restored or {}
        return {**self._train_loader.state_dict(), "fingerprint": fingerprint(self.config)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint stands.

        Raises:
            CheckpointError: the data section has changed, or the order was not reproducible.
        """
        if not state_dict or self.config.train_ds is None:
            return
        if state_dict["fingerprint"] != (now := fingerprint(self.config)):
            changed = sorted(
                key
                for key in now.keys() | state_dict["fingerprint"].keys()
                if now.get(key) != state_dict["fingerprint"].get(key)
            )
            raise CheckpointError(
                f"the checkpoint was made with another `data.{changed[0]}`: undo the change to "
                "resume exactly, or start fresh with another log folder."
            )
        self._restored = dict(state_dict)
        if self._train_loader is not None:
            self._train_loader.load_state_dict(state_dict)

    def teardown(self, stage: str) -> None:
        """Stop the workers."""
        self._close()

    def _close(self) -> None:
        if self._train_loader is not None:
            self._train_loader.close()

    def _sections(self) -> dict[str, ValidationConfig | None]:
        return {"validation_ds": self.config.validation_ds, "test_ds": self.config.test_ds}

    def _evaluation_loaders(self, section: str) -> list[BatchLoader]:
        loaders = []
        for name, config in self._sets[section].items():
            path = f"data.{section}.datasets.{name}"
            loaders.append(
                BatchLoader(
                    self._plan(config, path, shuffle=False),
                    self.validation_collator,
                    **self._placement(config),
                    repeat_first_epoch=True,
                )
            )
        return loaders

    def _plan(self, config: DatasetConfig, path: str, *, shuffle: bool) -> BatchPlan:
        return make_plan(
            config,
            path=path,
            shuffle=shuffle,
            on_bad_cut=self.config.on_bad_cut,
            default_context=self.config.default_context,
            measure_tokens=self.measure_tokens,
        )

    def _placement(self, config: DatasetConfig) -> dict[str, Any]:
        """Rank, world and workers; ranks that share a model replica load the same data."""
        replicas = {"num_replicas": 1, "rank": 0}
        if self.trainer is not None:
            replicas = (
                getattr(self.trainer.strategy, "distributed_sampler_kwargs", None) or replicas
            )
        return {
            "rank": replicas["rank"],
            "world_size": replicas["num_replicas"],
            "num_workers": config.num_workers,
            "worker_timeout": config.worker_timeout,
            "pin_memory": config.pin_memory,
        }

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

    def _check_resumable(self, plan: BatchPlan) -> None:
        if not plan.resumable:
            raise CheckpointError(
                "`data.train_ds.shard_seed` is trng, another order in every run: set it to "
                "randomized to resume exactly."
            )


def fingerprint(config: DataConfig) -> dict[str, str]:
    """A digest of every key that decides which batches are trained on."""
    keys = config.train_ds.model_dump(exclude=set(FREE_KEYS), exclude_defaults=True)
    keys = {f"train_ds.{key}": value for key, value in keys.items()}
    keys["on_bad_cut"] = config.on_bad_cut
    return {
        key: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
        for key, value in keys.items()
    }


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
