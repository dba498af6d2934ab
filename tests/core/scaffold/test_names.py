"""Names of new models: what cannot be a package of its own is refused with the reason."""

import pytest

from whalesong.core.errors import UserError
from whalesong.core.scaffold.names import check_name, class_prefix

KNOWN = ["arlm", "mine"]


@pytest.mark.parametrize("name", ["my_awesome_model", "a", "x2", "lm_2x", "trailing_"])
def test_lower_case_identifiers_pass(name: str) -> None:
    check_name(name, known=KNOWN)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("Bad-Name", "must begin with a lower-case letter .*, such as 'bad_name'"),
        ("MyModel", "must begin with a lower-case letter .*, such as 'my_model'"),
        ("2x", "must begin with a lower-case letter and have only .* underscores"),
        ("_private", "must begin with a lower-case letter .*, such as 'private'"),
        ("", "must begin with a lower-case letter"),
        ("a/b", "must begin with a lower-case letter .*, such as 'a_b'"),
        ("../up", "must begin with a lower-case letter .*, such as 'up'"),
        ("a b", "must begin with a lower-case letter .*, such as 'a_b'"),
        ("mod\u00e8le", "must begin with a lower-case letter .* underscores"),
        ("new\nline", "must begin with a lower-case letter .*, such as 'new_line'"),
        ("x" * 101, "must have at most 100 characters, but has 101"),
        ("class", "is a word of Python's own"),
        ("match", "is a word of Python's own"),
        ("type", "is a word of Python's own"),
        ("arlm", "is that of a model that there is already"),
        ("mine", "is that of a model that there is already"),
        ("tests", "is taken: a model's folder has tests of its own"),
        ("configs", "is taken: a model's folder has configs of its own"),
        ("json", r"is that of a module of the standard library, which it would hide"),
        ("torch", r"is that of an installed module \(.*torch.*\), which it would hide"),
        ("whalesong", r"is that of an installed module \(.*whalesong.*\), which it would hide"),
    ],
)
def test_other_names_are_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"^The model name '.*' {reason}") as caught:
        check_name(name, known=KNOWN)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, prefix", [("my_awesome_model", "MyAwesomeModel"), ("x2", "X2"), ("a_2b_", "A2b")]
)
def test_classes_begin_with_the_name(name: str, prefix: str) -> None:
    assert class_prefix(name) == prefix
