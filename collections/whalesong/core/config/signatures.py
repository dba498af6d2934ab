"""What a class takes, read from its source: arguments in YAML are checked before any import.

A `_target_` section holds keyword arguments of a class. Its signature, those of the bases to which
`**kwargs` are handed on, and the names that its annotations use are looked up in source files, so
that a wrong key or type costs no import of torch or NeMo. What cannot be read this way is allowed
here and judged when the class is built.
"""

import ast
import functools
import operator
import types
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import create_model
from pydantic.fields import FieldInfo

from whalesong.core.config.optim import OptimConfig, SchedulerConfig
from whalesong.core.config.own_parts import EncoderConfig, PartConfig
from whalesong.core.external.layout import package_folder
from whalesong.core.schema import Schema, validate

_PLAIN = {"int": int, "float": float, "bool": bool, "str": str, "Any": Any}
_LISTS = ("list", "List", "Sequence", "Iterable", "Collection")
_FILLED_IN = {"self", "params", "optimizer"}
_WIDTHS = ("d_model", "feat_in", "output_dim")
"""What perception reads of every adapter, whether the adapter takes it or not."""
_SETTINGS = {
    "nemo.collections.asr.modules.": EncoderConfig,
    "nemo.core.optim.": SchedulerConfig,
    "torch.optim.": OptimConfig,
    "whalesong.core.eden.": SchedulerConfig,
    "whalesong.core.scaled_adam.": OptimConfig,
    "whalesong.corpora.": PartConfig,
    "whalesong.models.": PartConfig,
    "whalesong.modules.": PartConfig,
}
"""Where the bounds of arguments stand that a signature does not tell."""
_BESIDE = {"optim": ("name", "sched"), "sched": ("name",)}
"""What NeMo's older form has beside the arguments."""
_MAX_DEPTH = 12


def check_arguments(config: Any, *, path: str, item_keys: Collection[str] = ()) -> None:
    """Check the arguments of every `_target_` section against its class.

    Args:
        config: a section of the YAML, plain containers.
        path: where it stands.
        item_keys: what may stand beside the arguments in a section with a `type`.

    Raises:
        ConfigError: an argument that the class does not have, or of another type.
    """
    for place, section in _target_sections(config, path):
        schema = arguments_schema(section["_target_"])
        if schema is not None:
            beside = {"_target_", *_BESIDE.get(place.rpartition(".")[2], ())}
            beside |= set(item_keys) if "type" in section else set()
            given = {key: value for key, value in section.items() if key not in beside}
            validate(schema, given, path=place)


@functools.lru_cache(maxsize=256)
def arguments_schema(target: str) -> type[Schema] | None:
    """The keyword arguments of a class as a schema; None where its source does not tell them."""
    module, _, name = target.rpartition(".")
    found = _resolve(module, name)
    parameters = None if found is None else _parameters(*found)
    if parameters is None or (parameters.takes_any and not parameters.types):
        return None
    settings = next((s for prefix, s in _SETTINGS.items() if target.startswith(prefix)), Schema)
    fields: dict[str, Any] = {}
    for key, kind in parameters.types.items():
        info = settings.model_fields.get(key)
        fields[key] = (kind if info is None else _bounded(kind, info), None)
    if settings is OptimConfig:
        fields["no_decay"] = (Any, None)
    config = {"extra": "allow" if parameters.takes_any else "forbid"}
    config["use_attribute_docstrings"] = False  # there are none; the search would take 0.2 s each
    base = type("Arguments", (Schema,), {"model_config": config})
    return create_model(name, __base__=base, **fields)


@dataclass
class _Parameters:
    """Types of keyword arguments by name, and whether there may be more."""

    types: dict[str, Any] = field(default_factory=dict)
    takes_any: bool = False


@dataclass(frozen=True)
class _Module:
    """A parsed source file."""

    name: str
    is_package: bool
    defined: dict[str, ast.AST]
    imported: dict[str, tuple[str, str]]


_Found = tuple[_Module, ast.AST]


def _bounded(kind: Any, info: FieldInfo) -> Any:
    """A type with the bounds that a field of that name has; null only where both allow it."""
    if info.metadata:
        return Annotated[info.annotation, *info.metadata]
    members = get_args(info.annotation)
    if types.NoneType not in members or kind is Any or types.NoneType in get_args(kind):
        return info.annotation
    return functools.reduce(operator.or_, (m for m in members if m is not types.NoneType))


def _target_sections(config: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping with a class name in `_target_`, and its place."""
    if isinstance(config, Mapping):
        target = config.get("_target_")
        if isinstance(target, str) and "." in target:
            yield path, config
        for key, value in config.items():
            yield from _target_sections(value, f"{path}.{key}")
    elif isinstance(config, list):
        for index, value in enumerate(config):
            yield from _target_sections(value, f"{path}[{index}]")


@functools.lru_cache(maxsize=256)
def _module(name: str) -> _Module | None:
    """The module of that name, parsed; None if it has no source."""
    top, *parts = name.split(".")
    place = package_folder(top)
    for part in parts:
        if place is None or not place.is_dir():
            return None
        inner = place / part
        place = inner if (inner / "__init__.py").is_file() else place / f"{part}.py"
    if place is None:
        return None
    file = place / "__init__.py" if place.is_dir() else place
    if file.suffix != ".py" or not file.is_file():
        return None
    return _parsed(name, file)


def _parsed(name: str, file: Path) -> _Module | None:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return None
    is_package = file.name == "__init__.py"
    package = name if is_package else name.rpartition(".")[0]
    defined: dict[str, ast.AST] = {}
    imported: dict[str, tuple[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            defined[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            defined[node.targets[0].id] = node.value
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(package, node)
            imported |= {alias.asname or alias.name: (source, alias.name) for alias in node.names}
    return _Module(name, is_package, defined, imported)


def _absolute(package: str, node: ast.ImportFrom) -> str:
    """The module that a possibly relative import names."""
    if not node.level:
        return node.module or ""
    base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
    return f"{base}.{node.module}" if node.module else base


def _resolve(module_name: str, name: str, depth: int = 0) -> _Found | None:
    """Where a name that a module has is defined, through imports."""
    module = _module(module_name)
    if module is None or depth > _MAX_DEPTH:
        return None
    if name in module.defined:
        return module, module.defined[name]
    if name in module.imported:
        return _resolve(*module.imported[name], depth=depth + 1)
    return None


def _parameters(module: _Module, node: ast.AST, depth: int = 0) -> _Parameters | None:
    """What a class takes; None where that is not in its source."""
    if not isinstance(node, ast.ClassDef) or depth > _MAX_DEPTH:
        return None
    init = next((n for n in node.body if _is_named(n, "__init__")), None)
    if isinstance(init, ast.FunctionDef):
        own = _of_function(module, init.args)
        if not own.takes_any:
            return own
        if not any(isinstance(n, ast.Name) and n.id == init.args.kwarg.arg for n in ast.walk(init)):
            return _Parameters(dict.fromkeys(_WIDTHS, int | None) | own.types)
        above = _of_bases(module, node, depth)
        own.takes_any = above is None or above.takes_any
        own.types = {**(above.types if above else {}), **own.types}
        return own
    if node.decorator_list:
        return None
    return _of_bases(module, node, depth) if node.bases else _Parameters()


def _is_named(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name == name


def _of_bases(module: _Module, node: ast.ClassDef, depth: int) -> _Parameters | None:
    """What the first base with a known signature takes."""
    for base in node.bases:
        found = _resolve(module.name, base.id) if isinstance(base, ast.Name) else None
        if found is not None:
            return _parameters(*found, depth=depth + 1)
    return None


def _of_function(module: _Module, arguments: ast.arguments) -> _Parameters:
    names = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(names) - len(arguments.defaults)) + arguments.defaults
    pairs = [*zip(names, defaults, strict=True)]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    types = {
        name.arg: _type_of(module, name, default)
        for name, default in pairs
        if name.arg not in _FILLED_IN
    }
    return _Parameters(types, takes_any=arguments.kwarg is not None)


def _type_of(module: _Module, name: ast.arg, default: ast.expr | None) -> Any:
    """The type of a parameter; one without a default may be null, for it is filled in."""
    if name.annotation is None:
        return _type_of_default(default)
    kind = _annotation(module, name.annotation)
    if kind is None:
        return Any
    return kind | None if default is None and kind is not Any else kind


def _type_of_default(default: ast.expr | None) -> Any:
    """What a default says of a parameter without an annotation: a switch, a number or a text."""
    if isinstance(default, ast.UnaryOp):
        default = default.operand
    value = default.value if isinstance(default, ast.Constant) else None
    if isinstance(value, bool):
        return bool
    if isinstance(value, int | float):
        return float | None
    return str | None if isinstance(value, str) else Any


def _annotation(module: _Module, node: ast.expr, depth: int = 0) -> Any:
    """The type that an annotation means, as far as YAML can hold it; None if it cannot."""
    if depth > _MAX_DEPTH:
        return None
    if isinstance(node, ast.Constant):
        return types.NoneType if node.value is None else None
    if isinstance(node, ast.Name):
        if node.id in _PLAIN:
            return _PLAIN[node.id]
        found = _resolve(module.name, node.id)
        is_alias = found is not None and isinstance(found[1], ast.expr)
        return _annotation(*found, depth=depth + 1) if is_alias else None
    if isinstance(node, ast.BinOp):
        return _union([_annotation(module, side, depth + 1) for side in (node.left, node.right)])
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        return _generic(module, node.value.id, node.slice, depth + 1)
    return None


def _generic(module: _Module, name: str, inner: ast.expr, depth: int) -> Any:
    """`Literal[...]`, `list[...]` and the like."""
    items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name == "Literal":
        values = [item.value for item in items if isinstance(item, ast.Constant)]
        return Literal[tuple(values)]
    kinds = [_annotation(module, item, depth) for item in items]
    if name == "Optional":
        return _union([*kinds, types.NoneType])
    if name == "Union":
        return _union(kinds)
    if name in _LISTS:
        return list[kinds[0] or Any]
    if name in ("tuple", "Tuple"):
        return tuple[*(kind or Any for kind in kinds)] if len(kinds) > 1 else list[kinds[0] or Any]
    return dict[str, Any] if name in ("dict", "Dict", "Mapping") else None


def _union(kinds: list[Any]) -> Any:
    """The known members as one type; None if there is none but null."""
    known = [kind for kind in kinds if kind is not None]
    if len(known) < len(kinds) and set(known) <= {types.NoneType}:
        return None
    return functools.reduce(operator.or_, known)
