"""`xlm_models.json` gets one entry more; all else in it stays as it was."""

import json
from pathlib import Path

import pytest

from whalesong.core.errors import DataError
from whalesong.core.scaffold.registration import registration


@pytest.mark.parametrize(
    "before, after",
    [
        ('{\n  "a": "b"\n}\n', '{\n  "a": "b",\n  "new": "new"\n}\n'),
        ('{"a": "b"}', '{"a": "b", "new": "new"}'),
        ('{\n\t"a": "b/c",\n\t"d": "../e"}', '{\n\t"a": "b/c",\n\t"d": "../e",\n\t"new": "new"}'),
        ('{\r\n    "a": "}"\r\n}\r\n', '{\r\n    "a": "}",\r\n    "new": "new"\r\n}\r\n'),
        ("{}", '{\n  "new": "new"\n}'),
        ("{\n}\n", '{\n  "new": "new"\n}\n'),
        ('{\n  "a": "\u00e9"\n}', '{\n  "a": "\u00e9",\n  "new": "new"\n}'),
    ],
)
def test_entry_is_added_in_the_form_of_the_file(tmp_path: Path, before: str, after: str) -> None:
    (tmp_path / "xlm_models.json").write_bytes(before.encode())
    entry = registration(tmp_path, "new")
    assert not entry.is_new
    assert entry.text == after
    assert json.loads(after) == {**json.loads(before), "new": "new"}
    assert (tmp_path / "xlm_models.json").read_bytes() == before.encode()  # nothing written yet


def test_file_is_begun_where_there_is_none(tmp_path: Path) -> None:
    entry = registration(tmp_path / "not" / "there", "new")
    assert entry.is_new
    assert entry.text == '{\n  "new": "new"\n}\n'


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"{,}", "is not valid JSON: "),
        (b"", "is not valid JSON: "),
        (b'{"a": "b", "a": "c"}', "is not valid JSON: the name 'a' stands there twice"),
        (b"[1]", "must hold an object of names and paths"),
        (b'{"a": "\xff"}', "is not UTF-8 at byte 7"),
        (b'{"new": "elsewhere"}', "has a model 'new' already, at 'elsewhere'"),
        (b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_file_that_cannot_take_it_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "xlm_models.json").write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        registration(tmp_path, "new")
    assert str(caught.value).startswith(f"{tmp_path / 'xlm_models.json'}: ")


def test_file_must_be_writable(tmp_path: Path) -> None:
    path = tmp_path / "xlm_models.json"
    path.write_text("{}", encoding="utf-8")
    path.chmod(0o444)
    with pytest.raises(DataError, match="is read-only"):
        registration(tmp_path, "new")
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="is no file"):
        registration(tmp_path, "new")
    path.rmdir()
    path.symlink_to(tmp_path / "gone.json")
    with pytest.raises(DataError, match="is no file"):
        registration(tmp_path, "new")
