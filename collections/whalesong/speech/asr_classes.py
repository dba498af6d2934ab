"""Which classes the configuration of a NeMo ASR model may name."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from whalesong.core.instantiate import import_target, names_class, walk

_HOME = "nemo.collections.asr."
_UNUSED = ("train_ds", "validation_ds", "test_ds", "optim")


def check_asr(config: Mapping[str, Any]) -> None:
    """Refuse a configuration whose classes are not all modules of NeMo's ASR collection.

    NeMo's own list names packages, whose functions may do anything. What concerns training is not
    built, and not looked at.

    Raises:
        ValueError: one sentence that names the key.
    """
    used = {key: value for key, value in config.items() if key not in _UNUSED}
    for path, key, value in walk(used):
        if path == "target" or not names_class(key, value):
            continue
        if key != "_target_" or not isinstance(value, str) or not value.startswith(_HOME):
            raise ValueError(f"`{path}`: '{value!s:.120}' is not an allowed class.")
        found = import_target(value)
        if not issubclass(found, nn.Module) or not found.__module__.startswith(_HOME):
            raise ValueError(f"`{path}`: '{value:.120}' is no module of NeMo's ASR models.")
    if not str(config.get("target")).startswith(f"{_HOME}models."):
        raise ValueError(f"`target`: '{config.get('target')!s:.120}' is no ASR model of NeMo.")
