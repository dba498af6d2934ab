"""Looking a class up in source code, so that a wrong name is found before anything is imported."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from whalesong.core.config.schema_errors import near
from whalesong.core.external.layout import package_folder


def lookup_problem(target: str, *, package: Path | None = None) -> str | None:
    """What an import of `target` would say, or None where nothing speaks against it.

    Modules are read, not imported: names that code makes at run time are believed to exist.

    Args:
        target: dotted name of a class or function.
        package: folder of the top-level package; looked up by default.
    """
    top, *parts = target.split(".")
    place = package or package_folder(top)
    if place is None:
        return f"ModuleNotFoundError: No module named '{top}'"
    if not parts:
        return f"{target} is a module"
    return _walk(top, place, parts)


def _walk(module: str, place: Path, parts: list[str]) -> str | None:
    """Follow packages and modules until a name has to be defined in a file."""
    part, *rest = parts
    if place.is_dir():
        for inner in (place / part, place / f"{part}.py"):
            if rest and (inner / "__init__.py" if inner.suffix != ".py" else inner).is_file():
                return _walk(f"{module}.{part}", inner, rest)
    file = place / "__init__.py" if place.is_dir() else place
    if file.suffix != ".py":
        return None
    try:
        names = _names(file, file.stat().st_mtime_ns)
    except (SyntaxError, ValueError) as error:
        return f"{type(error).__name__}: {_syntax(error)} ({file}, line {_line(error)})"
    if names is None or part in names:
        return None
    if rest:
        return _no_module(module, place, part, names)
    return f"ImportError: cannot import name '{part}' from '{module}' ({file}){near(part, names)}"


def _no_module(module: str, place: Path, part: str, names: frozenset[str]) -> str | None:
    """What speaks against a module that no `.py` file holds; compiled ones are not judged."""
    if place.is_dir() and any(place.glob(f"{part}.*")) or (place / part).is_dir():
        return None
    beside = {file.stem for file in place.glob("*.py")} if place.is_dir() else set()
    hint = near(part, (beside | names) - {"__init__"})
    why = "" if place.is_dir() else f"; '{module}' is not a package"
    return f"ModuleNotFoundError: No module named '{module}.{part}'{why}{hint}"


@functools.lru_cache(maxsize=256)
def _names(file: Path, changed: int) -> frozenset[str] | None:
    """The names that a module defines or imports at its top; None if it can make more of them."""
    tree = ast.parse(file.read_bytes(), filename=str(file))
    names: set[str] = set()
    for node in _statements(tree.body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        else:
            names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    makes_more = {"__getattr__", "*", "globals", "sys", "setattr", "vars"} & names
    return None if makes_more else frozenset(names)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those under `if`, `try` and `with` included."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from _statements(getattr(node, part, []))
        for handler in getattr(node, "handlers", []):
            yield from _statements(handler.body)


def _syntax(error: SyntaxError | ValueError) -> str:
    return error.msg if isinstance(error, SyntaxError) else str(error)


def _line(error: SyntaxError | ValueError) -> int:
    return (error.lineno or 0) if isinstance(error, SyntaxError) else 0
