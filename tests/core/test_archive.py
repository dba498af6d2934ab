"""Laws of an archive: what goes in comes out, anywhere, and the old file is never lost."""

import hashlib
import json
import multiprocessing
import os
import resource
import signal
import tarfile
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from whalesong.core.archive import (
    check_state_keys,
    inspect_archive,
    open_archive,
    require_class,
    write_archive,
)
from whalesong.core.errors import ArchiveError

TARGET = "whalesong.models.salm.salm.SALM"
CONFIG = {
    "target": TARGET,
    "lr": 1e-05,
    "number_as_text": "1e-3",
    "yes": "yes",
    "date": "2026-01-01",
    "empty": [{}, [], None, "", True],
    "prompt": "line one\nline two \u00e9\U0001f40b ",
    "nested": {"b": 1, "a": {"deep": [1, [2.5, "x: y # z"]]}},
}
FILES = {"llm_config.json": b'{"model_type": "llama"}', "tokenizer.model": bytes(range(256))}


def make_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    embedding = torch.randn(7, 3)
    return {
        "embed.weight": embedding,
        "head.weight": embedding,
        "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False, True]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "count": torch.tensor(7),
        "half": torch.randn(3).half(),
        "fp8": torch.randn(4).to(torch.float8_e4m3fn),
        "none": torch.empty(0, 3),
        "turned": torch.nn.Parameter(torch.randn(3, 2).T),
        "part": embedding[2:4],
    }


def write(path: Path, **changes) -> Path:
    given = {"config": CONFIG, "tensors": make_tensors(), "files": FILES} | changes
    write_archive(path, **given)
    return path


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    kind = (first.dtype, first.shape) == (second.dtype, second.shape)
    bits = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (first, second)]
    return kind and torch.equal(*bits)


def test_round_trip_in_another_folder(tmp_path: Path) -> None:
    metadata = {"base": {"llm": "abc"}, "step": 3}
    path = write(tmp_path / "a" / "x.nemo", metadata=metadata, kind="slim")
    moved = tmp_path / "b" / "y.nemo"
    moved.parent.mkdir()
    path.rename(moved)
    with open_archive(moved) as archive:
        tensors = archive.tensors()
        assert (archive.config, archive.metadata, archive.kind) == (CONFIG, metadata, "slim")
        assert list(archive.config["nested"]) == ["b", "a"]
        assert {name: archive.read_file(name) for name in archive.files} == FILES
    expected = make_tensors()
    assert tensors.keys() == expected.keys()
    assert all(same(tensors[name], expected[name]) for name in expected)


def test_tied_tensors_are_stored_once_and_come_back_as_one(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nemo")
    assert inspect_archive(path)["aliases"] == {"head.weight": "embed.weight"}
    with open_archive(path) as archive:
        tensors = archive.tensors()
    assert tensors["head.weight"] is tensors["embed.weight"]
    assert tensors["part"].data_ptr() != tensors["embed.weight"][2:4].data_ptr()


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write(tmp_path / "x.nemo").read_bytes()
    turned = dict(reversed(make_tensors().items()))
    files = dict(reversed(FILES.items()))
    again = write(tmp_path / "y.nemo", tensors=turned, files=files).read_bytes()
    assert hashlib.sha256(first).digest() == hashlib.sha256(again).digest()


def test_any_tar_yaml_and_safetensors_reader_can_read_it(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nemo")
    with tarfile.open(path) as tar:
        members = {entry.name: tar.extractfile(entry).read() for entry in tar}
    assert yaml.safe_load(members["model_config.yaml"]) == CONFIG
    tensors = safetensors.torch.load(members["model_weights.safetensors"])
    assert same(tensors["embed.weight"], make_tensors()["embed.weight"])
    manifest = json.loads(members.pop("manifest.json"))
    for name, content in members.items():
        digest = hashlib.sha256(content).hexdigest()
        assert manifest["members"][name] == {"sha256": digest, "size": len(content)}


def test_archives_of_nemos_own_writer_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "content"
    folder.mkdir()
    config = CONFIG | {"tokenizer": {"model": "nemo:0123_tok.model", "vocab": "nemo:0123_v.txt"}}
    (folder / "model_config.yaml").write_text(yaml.safe_dump(config))
    (folder / "0123_tok.model").write_bytes(b"tok")
    (folder / "0123_v.txt").write_bytes(b"v")
    torch.save(make_tensors(), folder / "model_weights.ckpt")
    with tarfile.open(tmp_path / "x.nemo", "w:") as tar:
        tar.add(folder, arcname=".")
    with open_archive(tmp_path / "x.nemo") as archive:
        tensors = archive.tensors()
        assert archive.legacy and archive.config == config and archive.kind == "whole"
        assert archive.read_file("0123_tok.model") == b"tok"
    assert all(same(tensors[name], tensor) for name, tensor in make_tensors().items())
    assert inspect_archive(tmp_path / "x.nemo")["files"] == {"0123_tok.model": 3, "0123_v.txt": 1}


def test_changing_loaded_tensors_does_not_change_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nemo")
    before = path.read_bytes()
    with open_archive(path) as archive:
        for tensor in archive.tensors().values():
            tensor.zero_()
    assert path.read_bytes() == before


def test_tensors_outlive_the_archive_and_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nemo")
    with open_archive(path) as archive:
        tensors = archive.tensors()
    path.unlink()
    assert all(same(tensors[name], tensor) for name, tensor in make_tensors().items())


def test_extracted_files_are_gone_when_the_archive_is_closed(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nemo")
    with open_archive(path) as archive:
        paths = archive.extract_files()
        assert {name: place.read_bytes() for name, place in paths.items()} == FILES
        again = archive.extract_files()
    assert not any(place["tokenizer.model"].parent.exists() for place in (paths, again))


def test_extracting_never_replaces_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nemo")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "tokenizer.model").write_text("mine")
    with open_archive(path) as archive, pytest.raises(FileExistsError):
        archive.extract_files(mine)
    assert (mine / "tokenizer.model").read_text() == "mine"


def test_inspection_tells_what_is_inside(tmp_path: Path) -> None:
    found = inspect_archive(write(tmp_path / "x.nemo", metadata={"note": "n"}))
    assert (found["target"], found["kind"], found["legacy"]) == (TARGET, "whole", False)
    assert found["files"] == {name: len(content) for name, content in FILES.items()}
    assert found["weights"]["embed.weight"] == "F32 [7, 3]"
    assert found["num_parameters"] == 21 + 1 + 3 + 5 + 1 + 3 + 4 + 0 + 6 + 6
    assert found["metadata"] == {"note": "n"}


def test_archives_open_in_many_threads_at_once(tmp_path: Path) -> None:
    path, expected, faults = write(tmp_path / "x.nemo"), make_tensors()["half"], []

    def read() -> None:
        for _ in range(10):
            with open_archive(path) as archive:
                if not same(archive.tensors()["half"], expected):
                    faults.append("tensors")
                paths = archive.extract_files()
                if {name: place.read_bytes() for name, place in paths.items()} != FILES:
                    faults.append("files")

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"lr": 1}}, "`target` must name the class"),
        ({"config": {"target": TARGET, "a": {"b": [Path("x")]}}}, "a.b[0]: must be plain data"),
        ({"config": {"target": TARGET, "a": "${b}"}}, "a: interpolations"),
        ({"config": {"target": TARGET, "a": float("nan")}}, "a: is not a number"),
        ({"config": {"target": TARGET, "trust_remote_code": True}}, "remote code"),
        ({"tensors": {"x": 3}}, "x'"),
        ({"tensors": {"x": torch.empty(2, device="meta")}}, "x: must be a dense tensor"),
        ({"tensors": {"x": torch.eye(2).to_sparse()}}, "x: must be a dense tensor"),
        ({"tensors": {"x": torch.zeros(1, dtype=torch.complex128)}}, "x: tensors of"),
        ({"files": {"../x": b""}}, "'../x': member names are flat"),
        ({"files": {"run.py": b""}}, "run.py: files of this kind"),
        ({"files": {"manifest.json": b""}}, "manifest.json: is a reserved name"),
        ({"files": {"x.txt": Path("/nowhere/x.txt")}}, "/nowhere/x.txt is not a file"),
        ({"files": {"c.json": b'{"auto_map": {"AutoModel": "m.M"}}'}}, "c.json: `auto_map`"),
        ({"kind": "huge"}, "`kind` must be one of whole, slim"),
        ({"metadata": {"when": {1, 2}}}, "metadata: when: must be plain data"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_the_old_file_stays(
    tmp_path: Path, changes: dict, message: str
) -> None:
    path = write(tmp_path / "x.nemo")
    before = path.read_bytes()
    with pytest.raises(ArchiveError) as caught:
        write(path, **changes)
    assert message in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.nemo"]


def test_too_little_space_is_told_before_anything_is_written(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nemo")
    before = path.read_bytes()
    huge = torch.zeros(1).expand(2**45)
    with pytest.raises(ArchiveError, match=r"x\.nemo: needs .* MB but .* free .*untouched"):
        write(path, tensors={"huge": huge})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.nemo"]


def save_for_ever(path: Path, tensor: torch.Tensor, limit: int, errors: Connection) -> None:
    """Save again and again, with files limited to `limit` bytes; tells the error it ends with."""
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        while True:
            write_archive(path, config={"target": TARGET}, tensors={"x": tensor})
    except ArchiveError as error:
        errors.send(str(error))


def start_saving(path: Path, *, limit: int) -> tuple[BaseProcess, Connection]:
    # The tensor is made before the fork, which torch's threads do not survive.
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe()
    arguments = (path, torch.ones(2**22), limit, sender)
    process = fork.Process(target=save_for_ever, args=arguments, daemon=True)
    process.start()
    return process, receiver


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nemo")
    before = path.read_bytes()
    process, errors = start_saving(path, limit=2**20)
    message = errors.recv()
    process.join()
    assert message.startswith(f"{path}: needs ") and "free" in message and "untouched" in message
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.nemo"]


def test_killed_in_the_middle_of_a_save_the_archive_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.nemo"
    write_archive(path, config={"target": TARGET}, tensors={"x": torch.ones(2**22)})
    for _ in range(3):
        process, _ = start_saving(path, limit=0)
        while not any(name.endswith(".writing") for name in os.listdir(tmp_path)):
            time.sleep(0.0005)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with open_archive(path) as archive:
            assert torch.equal(archive.tensors()["x"], torch.ones(2**22))
        for left in tmp_path.glob(".*.writing"):
            left.unlink()


def test_the_class_of_an_archive_is_checked() -> None:
    require_class({"target": TARGET}, TARGET)
    require_class({"target": "torch.nn.modules.linear.Linear"}, torch.nn.Linear)
    with pytest.raises(ArchiveError, match=r"x\.nemo: is a `a\.B`, but `c\.D` is expected"):
        require_class({"target": "a.B"}, "c.D", path="x.nemo")


def test_weights_of_another_model_are_named() -> None:
    state = {name: torch.zeros(2) for name in ("a", "b", "c", "d", "e")}
    check_state_keys(state, state)
    other = {"a": torch.zeros(3), "z": torch.zeros(1)}
    with pytest.raises(ArchiveError) as caught:
        check_state_keys(state, other, path="x.nemo")
    assert str(caught.value) == (
        "x.nemo: the archive lacks 4 weights (`b`, `c`, `d` and 1 more); it has unknown "
        "the weight `z`; it has another shape in the weight `a`."
    )
    with pytest.raises(ArchiveError, match="another shape"):
        check_state_keys(state, other, strict=False)
