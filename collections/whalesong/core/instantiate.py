"""Building `_target_` objects: exact names only, keywords checked before anything is called."""

import difflib
import importlib
import inspect
import re
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from whalesong.core.errors import ConfigError, UserError
from whalesong.core.families import FAMILIES
from whalesong.core.printable import one_line
from whalesong.core.targets import DEFAULT_TARGETS

_REGISTERED: set[str] = set()
_CLASS_KEYS = {"_target_", "target", "cls", "class_path"}
REMOTE_CODE_RULE = "a file must not ask for remote code; only the caller may."
_REMOTE_CODE_KEYS = {"trust_remote_code", "auto_map", "auto_mapping", "custom_generate"}
_MAX_DEPTH = 64


def register_target(target: str | type) -> str | type:
    """Put one exact class on the allow-list; usable as a class decorator.

    Args:
        target: the class, or its full dotted name (nothing is imported then).

    Returns:
        What was given.
    """
    _REGISTERED.add(target if isinstance(target, str) else class_name(target))
    return target


@contextmanager
def forget_targets() -> Iterator[None]:
    """Take back what is registered inside, when something fails there."""
    before = set(_REGISTERED)
    try:
        yield
    except BaseException:
        _REGISTERED.intersection_update(before)
        raise


def allowed_targets() -> frozenset[str]:
    """The default names, the model families, and the registered ones."""
    return DEFAULT_TARGETS | {family.target for family in FAMILIES} | _REGISTERED


def class_name(cls: type) -> str:
    """Full dotted name of a class, as configurations write it."""
    return f"{cls.__module__}.{cls.__qualname__}"


def check_targets(config: Any, allowed: Collection[str] | None = None) -> None:
    """Refuse a configuration that names a class outside `allowed`, at any depth.

    Also refused: interpolations (`${`), the control keys of Hydra (`_args_`, `_partial_`, ...),
    and what makes a library run code from elsewhere (`trust_remote_code`, `auto_map`).
    Checked keys are `_target_`, and `target`, `cls`, `class_path` unless the value is one word.

    Args:
        config: plain containers or a DictConfig.
        allowed: exact names; default: `allowed_targets()`.

    Raises:
        ConfigError: one line, "key: rule".
    """
    allowed = allowed_targets() if allowed is None else allowed
    for path, key, value in walk(config):
        if isinstance(value, str) and "${" in value or "${" in key:
            raise ConfigError(f"`{path}`: interpolations (`${{`) are not allowed here.")
        if key in _CLASS_KEYS:
            _check_class(path, key, value, allowed)
        elif re.fullmatch(r"_[a-z]+_", key):
            raise ConfigError(f"`{path}`: the control key `{key}` is not allowed.")
    refuse_remote_code(config)


def refuse_remote_code(content: Any) -> None:
    """Refuse keys by which Hugging Face libraries fetch or import code that a file names.

    Remote code is switched on by an argument of the caller only, never by a file.

    Raises:
        ConfigError: one line, "key: rule".
    """
    for path, key, value in walk(content):
        if asks_for_remote_code(key, value):
            raise ConfigError(f"`{path}`: {REMOTE_CODE_RULE}")


def asks_for_remote_code(key: str, value: Any) -> bool:
    """Whether `key: value` makes a Hugging Face library fetch or import code.

    A vocabulary may hold such a word as a token, with its id.
    """
    if key in _REMOTE_CODE_KEYS:
        return not (value is None or value is False or type(value) is int)
    return key.endswith("_implementation") and _names_repository(value)


def names_class(key: str, value: Any) -> bool:
    """Whether `key: value` makes a library build an object, or says how; a token has its id."""
    if type(value) is int:
        return False
    if key in _CLASS_KEYS:
        return key == "_target_" or (isinstance(value, str) and bool(set(value) & set(".:")))
    return re.fullmatch(r"_[a-z]+_", key) is not None


def instantiate(
    config: Mapping[str, Any],
    *,
    allowed: Collection[str] | None = None,
    path: str = "",
    **extra: Any,
) -> Any:
    """Build the object that `_target_` names, nested ones first.

    Args:
        config: `_target_` and the keyword arguments; a mapping with its own `_target_` inside,
            also in lists, is built likewise.
        allowed: exact names of the classes that may be built; default: `allowed_targets()`.
        path: where the section stands in the YAML.
        extra: keyword arguments that are not configuration, such as a parameter list.

    Raises:
        ConfigError: a class that is not allowed, an unknown or a missing keyword; before
            anything is built. Or a value that the class refuses: what code that comes with
            Whalesong raises is the fault of the value, of other code only a `ValueError` is.
    """
    if "_target_" not in config:
        raise ConfigError("`_target_`: is missing; it names the class to build.")
    check_targets(config, allowed)
    _check_keywords(config, extra)
    target = config["_target_"]
    try:
        return _build(config, extra)
    except ConfigError as error:
        if path and f"`{path}" not in str(error):
            raise ConfigError(f"`{path}`: {error}") from error
        raise
    except UserError:
        raise
    except Exception as error:
        if target not in DEFAULT_TARGETS and not isinstance(error, ValueError):
            raise
        what = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ConfigError(f"`{path or target}`: {what}{one_line(error)}") from error


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Put the place in the YAML in front of what code that knows no YAML refuses inside."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(f"`{path}`: {one_line(error)}") from error


def check_keywords(config: Mapping[str, Any], *, path: str) -> None:
    """Check the keywords of a `_target_` section that a library will build itself.

    Args:
        config: `_target_` and keyword arguments; keys that the builder adds may be missing.
        path: where the section stands in the YAML.

    Raises:
        ConfigError: an unknown keyword, with the nearest parameter.
    """
    target = config["_target_"]
    parameters = inspect.signature(_unwrapped(import_target(target))).parameters
    names = [name for name, parameter in parameters.items() if _takes_keyword(parameter)]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    if unknown := [str(key) for key in config if key != "_target_" and str(key) not in names]:
        near = _near(unknown[0], names)
        raise ConfigError(f"`{path}.{unknown[0]}`: `{target}` has no such parameter{near}.")


def import_target(target: str) -> type:
    """The class of that dotted name.

    Raises:
        ConfigError: it cannot be imported, or is no class.
    """
    found = import_named(target)
    if not isinstance(found, type):
        raise ConfigError(f"`{target}`: is not a class.")
    return found


def import_named(target: str, *, path: str = "", import_path: str | Path | None = None) -> Any:
    """The class or function of that dotted name; see `unable_to_find` for the other arguments.

    Raises:
        ConfigError: it cannot be imported.
    """
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # code of an external model may fail in any way
        cause = _cause(error)
        raise unable_to_find(target, cause, path=path, import_path=import_path) from error


def unable_to_find(
    target: str, cause: str, *, path: str = "", import_path: str | Path | None = None
) -> ConfigError:
    """The error of a class or function that cannot be imported, with how to see it oneself.

    Args:
        target: its dotted name.
        cause: what the import says.
        path: where the YAML names it.
        import_path: the folder of its package, where Python does not look by itself.
    """
    module, _, name = target.rpartition(".")
    error = ConfigError(f"Unable to find or instantiate {target}: {cause}")
    if path:
        error.add_note(f"Named by `{path}`.")
    prefix = f"PYTHONPATH={import_path} " if import_path else ""
    error.add_note(f'Try: {prefix}python -c "from {module} import {name}"')
    return error


def _cause(error: Exception) -> str:
    """What an import says, with the line of the code that failed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith("<frozen")]
    place = "" if own[-1].filename == __file__ else f" ({own[-1].filename}, line {own[-1].lineno})"
    return f"{type(error).__name__}: {error}{place}"


def allow_whalesong_targets() -> None:
    """Let NeMo's own `from_config_dict` build our classes; may be called often."""
    from nemo.core.classes import common

    if "whalesong." not in common.ALLOWED_TARGET_PREFIXES:
        common.ALLOWED_TARGET_PREFIXES.append("whalesong.")


def walk(content: Any) -> Iterator[tuple[str, str, Any]]:
    """Each `(path, key, value)` in nested containers; keys of list items are their positions.

    Raises:
        ConfigError: nested deeper than 64 levels.
    """
    pending: list[tuple[str, Any, int]] = [("", content, 0)]
    while pending:
        path, node, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise ConfigError(f"`{path[:80]}...`: nested deeper than {_MAX_DEPTH} levels.")
        for here, key, value in _children(path, node):
            yield here, key, value
            pending.append((here, value, depth + 1))


def _children(path: str, node: Any) -> Iterator[tuple[str, str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield (f"{path}.{key}" if path else str(key)), str(key), value
    elif _is_list(node):
        for index, value in enumerate(node):
            yield f"{path}[{index}]", str(index), value


def _check_class(path: str, key: str, value: Any, allowed: Collection[str]) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"`{path}`: must be the name of a class, but is {value!r:.80}.")
    if value in allowed or (key != "_target_" and not set(value) & set(".:")):
        return
    raise ConfigError(f"`{path}`: '{value[:120]}' is not an allowed class{_near(value, allowed)}.")


def _names_repository(value: Any) -> bool:
    return "/" in value if isinstance(value, str) else value is not None


def _check_keywords(config: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    target = config["_target_"]
    given = [str(key) for key in config if key != "_target_"] + list(extra)
    parameters = inspect.signature(_unwrapped(import_target(target))).parameters
    names = [name for name, parameter in parameters.items() if _takes_keyword(parameter)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not takes_any and (unknown := [name for name in given if name not in names]):
        near = _near(unknown[0], names)
        raise ConfigError(f"`{target}`: has no parameter `{unknown[0]}`{near}.")
    needed = [name for name in names if parameters[name].default is inspect.Parameter.empty]
    if missing := [name for name in needed if name not in given]:
        raise ConfigError(f"`{target}`: needs the parameter `{missing[0]}`.")
    for value in config.values():
        for nested in _nested_targets(value):
            _check_keywords(nested, {})


def _takes_keyword(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def _nested_targets(value: Any) -> Iterator[Mapping[str, Any]]:
    """The outermost mappings with a `_target_` inside `value`."""
    if isinstance(value, Mapping) and "_target_" in value:
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _nested_targets(item)
    elif _is_list(value):
        for item in value:
            yield from _nested_targets(item)


def _build(value: Any, extra: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        built = {key: _build(item, {}) for key, item in value.items() if key != "_target_"}
        if "_target_" not in value:
            return built
        return import_target(value["_target_"])(**{**built, **extra})
    return [_build(item, {}) for item in value] if _is_list(value) else value


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _unwrapped(cls: Callable) -> Callable:
    """NeMo wraps experimental classes in proxies that hide their signature."""
    while hasattr(cls, "__wrapped__"):
        cls = cls.__wrapped__
    return cls


def _near(name: str, known: Collection[str]) -> str:
    """ " (did you mean ...?)" for the closest name, by its last part when it is a path."""
    last = {candidate.rpartition(".")[2]: candidate for candidate in sorted(known)}
    close = difflib.get_close_matches(name.rpartition(".")[2], list(last), n=1, cutoff=0.6)
    return f" (did you mean `{last[close[0]]}`?)" if close else ""
