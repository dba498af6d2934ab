"""Does an archive fit the model that reads it: class and weights."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from whalesong.core.errors import ArchiveError
from whalesong.core.instantiate import class_name

_SHOWN = 3


def require_class(
    config: Mapping[str, Any],
    expected: type | str | Collection[type | str],
    *,
    path: object = "archive",
) -> None:
    """Refuse a configuration of another class.

    Args:
        config: of the archive, with `target`.
        expected: the class or classes that may be there, or their full names.
        path: the archive, named in the error.

    Raises:
        ArchiveError: one line with both names.
    """
    if isinstance(expected, type | str):
        expected = [expected]
    names = [entry if isinstance(entry, str) else class_name(entry) for entry in expected]
    if (target := config.get("target")) not in names:
        raise ArchiveError(f"{path}: is a `{target}`, but `{'` or `'.join(names)}` is expected.")


def check_state_keys(
    expected: Mapping[str, Tensor] | Collection[str],
    given: Mapping[str, Tensor] | Collection[str],
    *,
    path: object = "archive",
    strict: bool = True,
) -> None:
    """Refuse weights that are not exactly those of the model.

    Args:
        expected: names of the model, or its state; with tensors on both sides the shapes are
            compared too.
        given: names or tensors of the archive.
        path: the archive, named in the error.
        strict: when False, missing and unknown names pass; another shape never does.

    Raises:
        ArchiveError: one line with the first few names and the count of each fault.
    """
    faults = []
    if strict and (missing := [name for name in expected if name not in given]):
        faults.append(f"lacks {_some(missing)}")
    if strict and (unexpected := [name for name in given if name not in expected]):
        faults.append(f"has unknown {_some(unexpected)}")
    if isinstance(expected, Mapping) and isinstance(given, Mapping):
        shared = [name for name in expected if name in given]
        if other := [name for name in shared if expected[name].shape != given[name].shape]:
            faults.append(f"has another shape in {_some(other)}")
    if faults:
        raise ArchiveError(f"{path}: the archive {'; it '.join(faults)}.")


def _some(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} weights ({shown}{more})" if len(names) > 1 else f"the weight {shown}"
