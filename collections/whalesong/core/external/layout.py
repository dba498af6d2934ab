"""How a model lies on disk: the nested tree, the flat package, and what is wrong with a folder."""

import keyword
import os
import sys
from pathlib import Path

from whalesong.core.external.model import ExternalModel, Origin

_MARKS_OF_A_PROJECT = ("setup.py", "pyproject.toml")


def model_in_folder(name: str, root: Path, *, found_by: str) -> ExternalModel:
    """The model in a folder: a package of its name with `configs/` beside or inside it.

    The nested tree is `root/NAME/__init__.py` and `root/configs`, the flat one is
    `root/__init__.py`, where the folder has the model's name, and `root/configs`.
    """
    import_path = _import_path(name, root)
    package = import_path / name if import_path else root
    configs = _first_folder(root / "configs", package / "configs")
    model = ExternalModel(name, root, import_path, configs, "directory", found_by)
    if problem := name_problem(name):
        return model.broken(problem)
    if import_path is None:
        return model.broken(_no_package(name, root))
    if (other := package_folder(name)) is not None and other.resolve() != package.resolve():
        return model.broken(f"its name is that of an installed module, {other}; rename the model")
    return _with_configs(model)


def model_in_package(name: str, *, origin: Origin, found_by: str) -> ExternalModel:
    """The model in an installed package; nothing of it is imported.

    Its configs lie inside the package, or beside it where an editable installation leads to a
    project folder.
    """
    model = ExternalModel(name, Path(name), None, None, origin, found_by)
    if problem := name_problem(name):
        hint = name.replace("-", "_")
        return model.broken(problem if hint == name else f"{problem}; did you mean `{hint}`?")
    found = package_folder(name)
    if found is None:
        return model.broken(f"no package {name} is installed in this environment")
    if not found.is_dir():
        return model.broken(f"{found} is a module, but has to be a package, a folder")
    root = found.parent if _is_project(found.parent, name) else found
    configs = _first_folder(found / "configs", root / "configs")
    return _with_configs(ExternalModel(name, root, found.parent, configs, origin, found_by))


def name_problem(name: str) -> str | None:
    """Why a word cannot be the name of a model, or None."""
    if not name.isidentifier() or keyword.iskeyword(name):
        return f"'{name}' is no name that Python can import"
    if name in sys.stdlib_module_names:
        return "its name is that of a module of Python itself; rename the model"
    return None


def package_folder(name: str) -> Path | None:
    """The folder of an importable package, the file of a module, or None; nothing is imported.

    A namespace package is none: a model's root folder in the working directory looks like one and
    would hide the editable installation of the very model, whose finder is asked later.
    """
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec = find(name, None) if find else None
        if spec is None or not spec.has_location or spec.origin is None:
            continue
        origin = Path(spec.origin)
        is_package = spec.submodule_search_locations is not None
        return origin.parent if is_package else origin
    return None


def _import_path(name: str, root: Path) -> Path | None:
    if (root / name / "__init__.py").is_file():
        return root
    if (root / "__init__.py").is_file() and root.name == name:
        return root.parent
    return None


def _no_package(name: str, root: Path) -> str:
    if not root.is_dir():
        return f"the folder {root} does not exist"
    if (root / "__init__.py").is_file():
        return f"{root} is a package called {root.name}, but has to be called {name}"
    if (root / name).is_dir():
        return f"{root / name} has no __init__.py"
    return f"{root} holds no Python package {name} (a folder {name} with an __init__.py)"


def _with_configs(model: ExternalModel) -> ExternalModel:
    if model.configs is not None:
        return model
    return model.broken(f"{model.root} has no folder configs")


def _first_folder(*folders: Path) -> Path | None:
    return next((folder for folder in folders if folder.is_dir()), None)


def _is_project(folder: Path, name: str) -> bool:
    """Whether a folder is a model's root; a folder of installed packages is none."""
    marked = any((folder / mark).is_file() for mark in _MARKS_OF_A_PROJECT)
    return marked or (folder.name == name and (folder / "configs").is_dir())


def absolute(path: str | Path, *, folder: Path) -> Path:
    """A path as it is written, from a folder; symbolic links keep their names."""
    return Path(os.path.normpath(folder / Path(path).expanduser()))
