"""Which names a new model may have."""

import importlib.util
import keyword
import re
import sys
from collections.abc import Collection

from whalesong.core.errors import UserError
from whalesong.core.printable import one_line

RESERVED = ("configs", "setup", "tests", "xlm_models")
"""What else stands in a model's folder, and what every job reads."""

_MAX_LENGTH = 100
_LATER_KEYWORDS = ("type",)  # soft ones of newer versions


def check_name(name: str, *, known: Collection[str]) -> None:
    """Refuse a name that cannot be a package of its own.

    Args:
        name: of the new model.
        known: names of the models that there are.

    Raises:
        UserError: the name, and what is wrong with it.
    """
    if problem := _problem(name, known):
        raise UserError(f"The model name '{one_line(name)}' {problem}.")


def class_prefix(name: str) -> str:
    """What the classes of a model begin with: "my_awesome_model" gives "MyAwesomeModel"."""
    return "".join(word.capitalize() for word in name.split("_"))


def _problem(name: str, known: Collection[str]) -> str | None:
    if re.fullmatch(r"[a-z][a-z0-9_]*", name) is None:
        return (
            "must begin with a lower-case letter and have only lower-case letters, digits and"
            f" underscores{_suggestion(name)}"
        )
    if len(name) > _MAX_LENGTH:
        return f"must have at most {_MAX_LENGTH} characters, but has {len(name)}"
    if keyword.iskeyword(name) or keyword.issoftkeyword(name) or name in _LATER_KEYWORDS:
        return "is a word of Python's own"
    if name in known:
        return "is that of a model that there is already; `xlm job_type=list` shows where"
    if name in RESERVED:
        return f"is taken: a model's folder has {name} of its own"
    if (module := _module(name)) is not None:
        return f"is that of {module}, which it would hide"
    return None


def _suggestion(name: str) -> str:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    near = re.sub(r"[^a-z0-9]+", "_", words).strip("_")
    return f", such as '{near}'" if re.match(r"[a-z]", near) else ""


def _module(name: str) -> str | None:
    """The module of that name, if one can be imported, in words.

    A folder without `__init__.py` counts as none: any module hides it.
    """
    if name in sys.stdlib_module_names:
        return "a module of the standard library"
    spec = importlib.util.find_spec(name)
    found = spec is not None and spec.origin is not None
    return f"an installed module ({spec.origin})" if found else None
