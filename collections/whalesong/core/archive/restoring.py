"""Building a model that a file describes: bounded, and without a trace when it fails."""

import itertools
import logging
import math
import os
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode

from whalesong.core.archive import plain_yaml
from whalesong.core.archive.expressions import hanging
from whalesong.core.archive.layout import CONFIG, blame
from whalesong.core.archive.sizes import is_too_large, largest
from whalesong.core.errors import ArchiveError, ModelNotFoundError, UserError
from whalesong.core.families import FAMILIES
from whalesong.core.instantiate import check_targets, forget_targets, walk
from whalesong.core.printable import one_line
from whalesong.core.targets import (
    DATA_SETS,
    DEFAULT_TARGETS,
    NOISE_SCHEDULES,
    OPTIMIZERS,
    SCHEDULERS,
)

_SPARE = 16 * 1024**2
_SPARE_NAMES = 1000
_PLACES = {
    **dict.fromkeys(("optimizer", "optim"), OPTIMIZERS),
    **dict.fromkeys(("lr_scheduler", "sched"), SCHEDULERS),
    "noise_schedule": NOISE_SCHEDULES,
}
_MODELS = frozenset(family.target for family in FAMILIES)
_IN_PLACES = _MODELS.union(*_PLACES.values(), DATA_SETS)
_PATTERNS = ("layers_pattern", "rank_pattern", "alpha_pattern")
_COUNTING = ("arange", "linspace", "logspace", "eye", "tril_indices", "triu_indices", "randperm")
_POINTWISE = ("add", "sub", "mul", "div", "pow", "minimum", "maximum", "eq", "lt", "le", "gt", "ge")
_LOGGERS = ("", "nemo_logger", "transformers", "lightning", "whalesong")


@contextmanager
def restoring(source: str | Path, *, error: type[UserError] = ArchiveError) -> Iterator[None]:
    """Restore a model inside: what fails ends in one line about `source` and leaves no trace.

    Random generators, default precision, `sys.path`, allowed targets, environment, working
    folder and log levels are put back.

    Args:
        source: the file.
        error: what is raised, whatever fails.

    Raises:
        ModelNotFoundError: as it was raised; it tells what to install.
    """
    with _put_back():
        try:
            yield
        except ModelNotFoundError:
            raise
        except UserError as caught:
            text = one_line(caught)
            if not text.startswith(str(source)):
                text = f"{source}: {text}"
            raise _with_notes(error(text), caught) from caught
        except Exception as caught:  # libraries build the parts, and may fail in any way
            cause = f"{type(caught).__name__}: {one_line(caught)[:300]}".rstrip(": .")
            raise error(
                f"{source}: its configuration describes no model that can be built ({cause})."
            ) from caught


def check_archived(config: Mapping[str, Any]) -> None:
    """Refuse classes outside the allow-list or out of place, and expressions that may hang.

    Args:
        config: of an archive, or the `model` section in a checkpoint; external models that it
            uses have been activated.

    Raises:
        ArchiveError: without the name of the archive.
    """
    with blame(CONFIG):
        plain_yaml.check_plain(config)
        check_targets(config)
        for path, key, value in walk(config):
            if key == "_target_" and value in _forbidden_at(path):
                raise ArchiveError(f"`{path}`: '{value}' is not a class for this place")
            if is_too_large(key, value):
                raise ArchiveError(f"`{path}`: must be at most {largest(key)}, but is {value}")
        for key, expression in _expressions(config):
            if problem := hanging(expression):
                raise ArchiveError(f"`{key}`: '{expression[:80]}' {problem}")


def _forbidden_at(path: str) -> frozenset[str]:
    """Classes of the allow-list that may not be at `path`."""
    section = path.removesuffix("._target_").rpartition(".")[2]
    if section not in _PLACES:
        return _IN_PLACES
    return (DEFAULT_TARGETS | _MODELS) - _PLACES[section]


def _expressions(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Regular expressions with the key that holds them."""
    lora = config.get("lora") or {}
    found = [(key, config.get(key)) for key in ("freeze_params", "prevent_freeze_params")]
    found += [(f"lora.{key}", lora.get(key)) for key in ("target_modules", "exclude_modules")]
    found += [(f"lora.{key}", list(lora.get(key) or ())) for key in _PATTERNS]
    for key, value in found:
        for expression in [value] if isinstance(value, str) else value or ():
            yield key, str(expression)


@contextmanager
def bounded_by(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Refuse to build a model much larger than the weights that it will get.

    Sizes in a configuration are only numbers: they could ask for all memory of the machine.

    Raises:
        ArchiveError: without the name of the archive.
    """
    largest = max((tensor.numel() for tensor in tensors.values()), default=0)
    total = sum(tensor.numel() for tensor in tensors.values())
    # Weight norm, when it is folded, registers the weights of a codec three times.
    budget = _Budget(numel=4 * total + _SPARE, count=8 * len(tensors) + _SPARE_NAMES)
    with budget.counting(), _BoundedTensors(max(2 * largest, _SPARE)):
        yield


class _Budget:
    """Counts parameters and buffers of all modules that are built."""

    def __init__(self, *, numel: int, count: int) -> None:
        self._numel, self._count = numel, count

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count while the context lasts."""
        handles = [
            torch_module.register_module_parameter_registration_hook(self._add),
            torch_module.register_module_buffer_registration_hook(self._add),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add(self, module: torch.nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is not None:
            self._numel -= tensor.numel()
            self._count -= 1
        if self._numel < 0 or self._count < 0:
            raise _too_large()


class _BoundedTensors(TorchDispatchMode):
    """Refuses to make a tensor of more than so many elements."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _asked(func.overloadpacket.__name__, args) > self._limit:
            raise _too_large()
        return func(*args, **(kwargs or {}))


def _asked(function: str, arguments: tuple) -> float:
    """At least as many elements as a function makes of tensors, or of a shape or an end."""
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    if len(tensors) > 1:
        lengths = itertools.zip_longest(*(t.shape[::-1] for t in tensors), fillvalue=1)
        return math.prod(map(max, lengths)) if function in _POINTWISE else 0
    shapes = [argument for argument in arguments if isinstance(argument, list | tuple)]
    if shapes and not tensors:
        return math.prod(abs(n) for n in shapes[0] if isinstance(n, int))
    if function in _COUNTING or function.endswith("_window"):
        return max((abs(n) for n in arguments if isinstance(n, int | float)), default=0)
    return 0


def _too_large() -> ArchiveError:
    return ArchiveError(
        f"{CONFIG} and its files describe a model that is much larger than its weights."
    )


@contextmanager
def _put_back() -> Iterator[None]:
    """Put back what belongs to the process, when something fails inside."""
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state, dtype = np.random.get_state(), torch.get_default_dtype()
    path, folder, environment = list(sys.path), os.getcwd(), dict(os.environ)
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    try:
        with forget_targets():
            yield
    except BaseException:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_default_dtype(dtype)
        sys.path[:] = path
        os.chdir(folder)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        for name in environment:
            if os.environ.get(name) != environment[name]:
                os.environ[name] = environment[name]
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        raise


def _with_notes(error: UserError, cause: BaseException) -> UserError:
    for note in getattr(cause, "__notes__", ()):
        error.add_note(note)
    return error
