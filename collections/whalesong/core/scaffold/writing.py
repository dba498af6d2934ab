"""The files of a new model: planned first, then written all or none."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from os.path import lexists
from pathlib import Path

from whalesong.core.atomic import atomic_folder, atomic_write
from whalesong.core.errors import DataError, UserError
from whalesong.core.scaffold.names import class_prefix
from whalesong.core.scaffold.registration import Registration, registration

_TEMPLATES = Path(__file__).with_name("templates")
_SUFFIX = ".tmpl"


@dataclass(frozen=True)
class Scaffold:
    """What will be written."""

    name: str
    root: Path
    """The model's folder, which does not exist yet."""
    files: dict[Path, str]
    """Contents by paths relative to `root`, in reading order."""
    registration: Registration


def plan(name: str, folder: Path, *, config_roots: Iterable[Path] = ()) -> Scaffold:
    """Fill in the templates for a model of that name, and check that nothing is in the way.

    Args:
        name: a name that `check_name` lets pass.
        folder: where the model's folder and the json go; need not exist.
        config_roots: config folders of other models, in which no file may have the same name.

    Raises:
        DataError: something of that name exists, or the json cannot take the entry.
    """
    root = folder / name
    if lexists(root):
        raise DataError(f"{root}: exists already, and nothing is overwritten; choose another name.")
    _check_folder(folder)
    files = dict(sorted(_rendered(name).items(), key=lambda item: _reading_order(item[0])))
    _check_configs(files, config_roots)
    return Scaffold(name, root, files, registration(folder, name))


def write(scaffold: Scaffold) -> None:
    """Write the folder and then the entry in the json; when one fails, neither is there.

    Raises:
        UserError: the disk is full, or the folder must not be written.
    """
    try:
        with atomic_folder(scaffold.root) as partial:
            for path, text in scaffold.files.items():
                (partial / path).parent.mkdir(parents=True, exist_ok=True)
                (partial / path).write_text(text, encoding="utf-8")
        try:
            _write_json(scaffold.registration)
        except BaseException:
            shutil.rmtree(scaffold.root)
            raise
    except OSError as error:
        raise UserError(f"{scaffold.root}: cannot be written ({error.strerror}).") from error


def _write_json(entry: Registration) -> None:
    """Replace the json, or the file that it is a link to; its access rights stay."""
    path = entry.path.resolve()
    with atomic_write(path, error=DataError) as (sink, temporary):
        if not entry.is_new:
            shutil.copymode(path, temporary)
        sink.write(entry.text.encode("utf-8"))


def _rendered(name: str) -> dict[Path, str]:
    """Every template with the name in its path and text."""
    words = {"{{name}}": name, "{{Class}}": class_prefix(name)}
    rendered = {}
    for template in _TEMPLATES.rglob(f"*{_SUFFIX}"):
        path = template.relative_to(_TEMPLATES).as_posix().removesuffix(_SUFFIX)
        text = template.read_text(encoding="utf-8")
        for mark, word in words.items():
            text = text.replace(mark, word)
        rendered[Path(path.replace("NAME", name))] = text
    return rendered


def _reading_order(path: Path) -> tuple[int, str]:
    """README and setup.py come last, code before configs before tests."""
    groups = {"configs": 1, "tests": 2}
    return (3 if len(path.parts) == 1 else groups.get(path.parts[0], 0), str(path))


def _check_folder(folder: Path) -> None:
    existing = next(parent for parent in [folder, *folder.parents] if lexists(parent))
    if not existing.is_dir():
        raise DataError(f"{existing}: is no folder, so nothing can be written below it.")


def _check_configs(files: Iterable[Path], config_roots: Iterable[Path]) -> None:
    """Refuse a config whose name another model's has: only one of the two could be chosen."""
    own = [path.relative_to("configs") for path in files if path.parts[0] == "configs"]
    shared = [path for path in own if len(path.parts) > 1]  # commands.yaml is each model's own
    for root in config_roots:
        for path in shared:
            if (root / path).exists():
                raise DataError(f"{root / path}: exists, and the new model would have a config of "
                                "the same name; choose another name.")  # fmt: skip
