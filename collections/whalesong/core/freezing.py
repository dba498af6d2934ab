"""Freezing by regular expressions over canonical parameter names."""

import difflib
import re
from collections.abc import Callable, Iterable

from torch import nn

from whalesong.core.errors import ConfigError


def freeze_parameters(
    model: nn.Module,
    *,
    freeze: Iterable[str],
    keep: Iterable[str] = (),
    names_of: Callable[[str], list[str]] = lambda name: [name],
) -> list[str]:
    """Turn off gradients of all parameters that match `freeze`, and on for those that match `keep`.

    Tied parameters are known under each of their names. This must happen before a strategy wraps
    the model, so that DDP does not have to look for unused parameters.

    Args:
        model: the plain module.
        freeze: regular expressions (`re.match`), as in `model.freeze_params`.
        keep: regular expressions that win over `freeze`, as in `model.prevent_freeze_params`.
        names_of: real name -> canonical names; an empty list exempts a parameter from both lists.

    Returns:
        Real names of all frozen parameters, those that were frozen before included.

    Raises:
        ConfigError: an expression is malformed or matches neither parameter nor buffer; near names
            are listed.
    """
    names: dict[nn.Parameter, list[str]] = {}
    real: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).extend(names_of(name))
        real.setdefault(parameter, name)
    known = [name for aliases in names.values() for name in aliases]
    # A part without parameters, such as some codecs, may be named as well.
    known += [alias for name, _ in model.named_buffers() for alias in names_of(name)]
    frozen_by = [_compile(pattern, "model.freeze_params", known) for pattern in freeze]
    kept_by = [_compile(pattern, "model.prevent_freeze_params", known) for pattern in keep]
    frozen = []
    for parameter, aliases in names.items():
        if _any_match(kept_by, aliases):
            parameter.requires_grad_(True)
        elif _any_match(frozen_by, aliases):
            parameter.requires_grad_(False)
        if not parameter.requires_grad:
            frozen.append(real[parameter])
    return frozen


def _compile(pattern: str, key: str, known: list[str]) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"`{key}` holds '{pattern}', which is no regular expression: {error}."
        ) from error
    if not any(compiled.match(name) for name in known):
        near = difflib.get_close_matches(_plain(pattern), known, n=3, cutoff=0.3) or known[:3]
        raise ConfigError(
            f"`{key}` holds '{pattern}', which matches no parameter; near names: {', '.join(near)}."
        )
    return compiled


def _plain(pattern: str) -> str:
    """The pattern with its regular-expression signs taken out, to look for near names."""
    return re.sub(r"\\(.)", r"\1", re.sub(r"[\^$()]|\.[+*]|\[[^]]*\]", "", pattern))


def _any_match(patterns: list[re.Pattern[str]], names: list[str]) -> bool:
    return any(pattern.match(name) for pattern in patterns for name in names)
