"""Names are looked up in source code: missing ones are found, made ones are believed."""

from pathlib import Path

import pytest
from fixtures.plugins import write

from whalesong.core.external.source import lookup_problem

MODULE = """\
import json as renamed
from pathlib import Path
a, (b, *c) = 1, (2, 3)
d: int = 4
if a:
    class InIf: pass
else:
    def in_else(): pass
try:
    import nowhere
except ImportError:
    nowhere = None
class Outer:
    class Inner: pass
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package that is not on the import path."""
    folder = tmp_path / "looked"
    write(folder / "__init__.py", "from looked.plain import Outer as Again\n")
    write(folder / "plain.py", MODULE)
    write(folder / "sub" / "__init__.py", "")
    write(folder / "sub" / "deep.py", "class Deep: pass\n")
    write(folder / "star.py", "from os.path import *\n")
    write(folder / "lazy.py", "def __getattr__(name): return 1\n")
    write(folder / "compiled.cpython-311-x86_64-linux-gnu.so", "")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "plain.renamed", "plain.Path", "plain.a", "plain.b", "plain.c", "plain.d", "plain.InIf",
        "plain.in_else", "plain.nowhere", "plain.Outer", "plain.Outer.Inner", "Again",
        "sub.deep.Deep", "star.anything", "lazy.anything", "compiled.anything",
    ],
)  # fmt: skip
def test_names_that_are_there(package: Path, name: str) -> None:
    assert lookup_problem(f"looked.{name}", package=package) is None


@pytest.mark.parametrize(
    "name, problem",
    [
        ("plain.Outre", "ImportError: cannot import name 'Outre' from 'looked.plain' (FILE);"
         " did you mean `Outer`?"),
        ("plian.Outer", "ModuleNotFoundError: No module named 'looked.plian';"
         " did you mean `plain`?"),
        ("plain.sub.Deep", "ModuleNotFoundError: No module named 'looked.plain.sub';"
         " 'looked.plain' is not a package"),
        ("sub.deeper.Deep", "ModuleNotFoundError: No module named 'looked.sub.deeper';"
         " did you mean `deep`?"),
    ],
)  # fmt: skip
def test_names_that_are_not_there(package: Path, name: str, problem: str) -> None:
    found = lookup_problem(f"looked.{name}", package=package)
    assert found == problem.replace("FILE", str(package / "plain.py"))


def test_installed_packages_are_looked_up_without_importing_them() -> None:
    assert lookup_problem("torch.optim.AdamW") is None
    assert "did you mean `AdamW`?" in str(lookup_problem("torch.optim.AdmaW"))
    assert lookup_problem("transformers.AutoModel") is None
    assert lookup_problem("no_such.Thing") == "ModuleNotFoundError: No module named 'no_such'"
