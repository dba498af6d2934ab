import errno

import pytest

from whalesong.core.atomic import atomic_folder, atomic_path, atomic_write, full_disk_named
from whalesong.core.errors import UserError


def test_a_folder_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "out"
    with atomic_folder(target) as partial:
        (partial / "a").write_text("1")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["a"]
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_an_error_leaves_no_folder(tmp_path):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "out") as partial:
        (partial / "a").write_text("1")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    target = tmp_path / "model.nemo"
    target.write_text("old")
    with atomic_path(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
        assert partial.suffix == ".nemo"
    assert target.read_text() == "new"


def test_an_error_keeps_the_old_file(tmp_path):
    target = tmp_path / "model.nemo"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model.nemo"]


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path):
    path = tmp_path / "x.nemo"
    names = [".x.nemo.0a1b2c3d.writing", ".y.nemo.0a1b2c3d.writing"]
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    with atomic_write(path) as (sink, _):
        sink.write(b"new")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [names[1], "x.nemo"]


def test_a_file_that_is_being_written_is_no_remains(tmp_path):
    path = tmp_path / "x.nemo"
    with atomic_write(path) as (first, _):
        first.write(b"first")
        with atomic_write(path) as (second, _):
            second.write(b"second")
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.nemo"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence(tmp_path, number):
    path = tmp_path / "events"
    with pytest.raises(
        UserError, match=rf"{path}: cannot be written, because {tmp_path} has .* MB"
    ):
        with full_disk_named(path):
            raise OSError(number, "no room")
    with pytest.raises(UserError, match=rf"{path}: cannot"), full_disk_named():
        raise OSError(number, "no room", str(path))
    with pytest.raises(PermissionError), full_disk_named():
        raise PermissionError(errno.EACCES, "not yours")
