"""The parts of a text model from their YAML; what a part asks for by name is filled in."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from whalesong.core.errors import ConfigError
from whalesong.core.instantiate import check_targets, import_target, instantiate
from whalesong.core.parts import Collator, LossFunction, Metric, Predictor
from whalesong.core.targets import DEFAULT_TARGETS


class PartBuilder:
    """Builds the parts of one model.

    The YAML gives keyword arguments. A parameter that it leaves open and that is called `model`,
    `tokenizer`, `noise_schedule`, `vocab_size`, `block_size` or `input_block_size` is filled in. A
    loss or predictor without such parameters finds them in its attributes of the same names.

    Args:
        tokenizer: of the model.
        sizes: `block_size` and `input_block_size`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, **sizes: int) -> None:
        self._known: dict[str, Any] = {
            "tokenizer": tokenizer, "vocab_size": len(tokenizer), **sizes, "noise_schedule": None
        }  # fmt: skip

    def network(self, section: Mapping[str, Any]) -> nn.Module:
        """Build the network, which the parts built later may ask for as `model`."""
        model = self._build(section, "model", "forward")
        self._known["model"] = model
        return model

    def noise_schedule(self, section: Mapping[str, Any] | None) -> Any:
        """Build the noise schedule, if there is one; later parts may ask for it."""
        self._known["noise_schedule"] = (
            None if section is None else self._build(section, "model_type.noise_schedule")
        )
        return self._known["noise_schedule"]

    def loss(self, section: Mapping[str, Any]) -> LossFunction:
        """Build the loss function."""
        return self._attached(
            self._build(section, "model_type.loss", "loss_fn"), "model", "tokenizer"
        )

    def predictor(self, section: Mapping[str, Any]) -> Predictor:
        """Build what generates."""
        return self._attached(
            self._build(section, "model_type.predictor", "predict", "to_dict"),
            *("model", "tokenizer", "noise_schedule"),
        )

    def collator(self, section: Mapping[str, Any] | None) -> Collator | None:
        """Build a collator, if there is one."""
        if section is None:
            return None
        return self._build(section, "datamodule.collators", "load", "__call__")

    def metrics(self, sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Metric]:
        """Build the metrics by their names."""
        methods = ("reset", "update", "totals", "compute")
        return {
            name: self._build(section, f"model_type.metrics.{name}", *methods)
            for name, section in sections.items()
        }

    def _build(self, section: Mapping[str, Any], path: str, *methods: str) -> Any:
        """Build a part that stands at `path` in a job; a built-in class must have `methods`."""
        check_targets(section)
        given = {key for key, value in section.items() if value is not None}
        target = import_target(section["_target_"])
        missing = [name for name in methods if not callable(getattr(target, name, None))]
        if missing and section["_target_"] in DEFAULT_TARGETS:
            raise ConfigError(f"`{path}._target_`: {target.__name__} has no `{missing[0]}`.")
        names = inspect.signature(target).parameters
        filled = {key: self._known[key] for key in names if key in self._known and key not in given}
        section = {key: value for key, value in section.items() if key not in filled}
        return instantiate(section, path=path, **filled)

    def _attached(self, part: Any, *names: str) -> Any:
        """Give a part the attributes that the contract promises and it has not set itself."""
        for name in names:
            if getattr(part, name, None) is None:
                setattr(part, name, self._known[name])
        return part
