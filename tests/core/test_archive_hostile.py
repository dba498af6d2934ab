"""No archive, however made, gets anything: one line, nothing written, nothing executed.

The forged archives carry right checksums wherever the attack does not consist in a wrong one,
since who makes an archive makes its manifest too.
"""

import gzip
import io
import json
import os
import pickle
import random
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fixtures.forging import (
    GOOD_WEIGHTS,
    PLAIN,
    TARGET,
    Payload,
    entry,
    forge,
    safetensors_bytes,
    tar_with,
    torch_bytes,
    zip_with,
)

from whalesong.core.archive import inspect_archive, layout, open_archive, write_archive
from whalesong.core.errors import ArchiveError

ALLOWED = {TARGET, "torch.optim.AdamW"}
HONEST = [({"name": layout.CONFIG}, PLAIN), ({"name": layout.LEGACY_WEIGHTS}, torch_bytes())]


def tar_of(path: Path, *extra: tuple[dict, bytes], mode: str = "w") -> Path:
    """A tar by Python's own writer: an honest base, then members with any fields."""
    return tar_with(path, *HONEST, *extra, mode=mode)


def legacy(path: Path, weights: bytes, config: bytes = PLAIN) -> Path:
    members = [({"name": layout.CONFIG}, config), ({"name": layout.LEGACY_WEIGHTS}, weights)]
    return tar_with(path, *members)


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that must look the same afterwards; work folder and temporary folder are in it."""
    folder = tmp_path / "canary"
    for name in ("work", "tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "keep").write_text("keep")
    monkeypatch.chdir(folder / "work")
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "tmp"))
    before = (snapshot(folder), open_files(), os.getcwd())
    yield folder
    assert (snapshot(folder), open_files(), os.getcwd()) == before


def snapshot(folder: Path) -> dict[str, bytes | None]:
    found = sorted(folder.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in found}


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def refused(path: Path) -> str:
    """Open as a model does; the one line of the refusal."""
    with pytest.raises(ArchiveError) as caught:
        with open_archive(path, allowed=ALLOWED) as archive:
            archive.tensors()
            archive.extract_files()
    message = str(caught.value)
    assert (
        message.startswith(f"{path}: ") and message.count(str(path)) == 1 and message.endswith(".")
    )
    assert len(message.splitlines()) == 1 and len(message) < 1000
    return message


def test_the_honest_forms_are_read(tmp_path: Path, canary: Path) -> None:
    for path in (forge(tmp_path / "a.nemo"), tar_of(tmp_path / "b.nemo")):
        with open_archive(path, allowed=ALLOWED) as archive:
            assert archive.tensors()["x"].shape == (2,)
            assert archive.config == {"target": TARGET}


LINK = {"name": "link", "linkname": "/etc/passwd"}
TARS: dict[str, tuple[tuple[dict, bytes], str]] = {
    "parent": (({"name": "../evil"}, b"x"), "must be flat"),
    "inner parent": (({"name": "a/../../evil"}, b"x"), "must be flat"),
    "absolute": (({"name": "/tmp/evil"}, b"x"), "must be flat"),
    "dot dot": (({"name": ".."}, b"x"), "must be flat"),
    "folder": (({"name": "d/x"}, b"x"), "must be flat"),
    "back slash": (({"name": "..\\evil"}, b"x"), "must be flat"),
    "newline": (({"name": "a\nb"}, b"x"), "must be flat"),
    "hidden": (({"name": ".bashrc"}, b"x"), "names are flat"),
    "long name": (({"name": "n" * 150}, b"x"), "not allowed"),
    "symlink": ((LINK | {"type": tarfile.SYMTYPE}, b""), "symbolic link"),
    "hard link": ((LINK | {"type": tarfile.LNKTYPE}, b""), "hard link"),
    "character device": (({"name": "null", "type": tarfile.CHRTYPE}, b""), "character device"),
    "block device": (({"name": "disk", "type": tarfile.BLKTYPE}, b""), "block device"),
    "fifo": (({"name": "pipe", "type": tarfile.FIFOTYPE}, b""), "fifo"),
    "directory": (({"name": "d", "type": tarfile.DIRTYPE}, b""), "folder"),
    "sparse": (({"name": "s", "type": tarfile.GNUTYPE_SPARSE}, b""), "sparse file"),
    "contiguous": (({"name": "c", "type": tarfile.CONTTYPE}, b"x"), "special file"),
    "config twice": (({"name": layout.CONFIG}, b"target: os.system\n"), "is there twice"),
    "config twice, ./": (({"name": "./" + layout.CONFIG}, b"target: x\n"), "is there twice"),
    "weights twice": (({"name": "MODEL_WEIGHTS.ckpt"}, b"x"), "is there twice"),
    "unnamed member": (({"name": "extra.txt"}, b"x"), "extra.txt: is not named"),
    "code": (({"name": "modeling.py"}, b"x"), "may hold code"),
    "pickle": (({"name": "tokenizer.pkl"}, b"x"), "may hold code"),
    "path by pax": (({"name": "a", "pax_headers": {"path": "../a"}}, b"x"), "which is not allowed"),
    "sparse by pax": (
        ({"name": "a", "pax_headers": {"GNU.sparse.realsize": "9" * 15}}, b"x"),
        "which is not allowed",
    ),
    "huge pax": (({"name": "a", "pax_headers": {"comment": "x" * 10**6}}, b"x"), "header has"),
    "size by pax": (({"name": "a", "pax_headers": {"size": "9" * 15}}, b"x"), "behind the end"),
}


@pytest.mark.parametrize("case", TARS)
def test_hostile_members(tmp_path: Path, canary: Path, case: str) -> None:
    member, message = TARS[case]
    assert message in refused(tar_of(tmp_path / "x.nemo", member))


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_archives(tmp_path: Path, canary: Path, mode: str) -> None:
    assert "is compressed" in refused(tar_of(tmp_path / "x.nemo", mode=mode))


def test_things_that_are_no_archive(tmp_path: Path, canary: Path) -> None:
    path = tmp_path / "x.nemo"
    assert "cannot be opened" in refused(path)
    for content, message in [
        (b"", "is empty"),
        (b"x" * 5000, "is not a tar"),
        (bytes(10240), "model_config.yaml: is missing"),
        (zip_with([("a", b"b")]) * 9, "is compressed (zip)"),
        (gzip.compress(bytes(10**7)), "is compressed (gzip)"),
    ]:
        path.write_bytes(content)
        assert message in refused(path)
    path.unlink()
    path.mkdir()
    assert "is not a file" in refused(path)
    path.rmdir()
    os.mkfifo(path)
    assert "is not a file" in refused(path)


def test_too_many_members(tmp_path: Path, canary: Path) -> None:
    extra = [({"name": f"f{number}"}, b"") for number in range(1200)]
    assert "more than 1000" in refused(tar_of(tmp_path / "x.nemo", *extra))


def test_folder_entries_without_end(tmp_path: Path, canary: Path) -> None:
    folder = {"name": ".", "type": tarfile.DIRTYPE}
    path = tar_of(tmp_path / "x.nemo", *[(folder, b"")] * 3000)
    assert "more than 1000 members" in refused(path)


@pytest.mark.parametrize(
    "record", [b"0 mtime=1\n", b"3 mtime=1\n", b"99 mtime=1\n", b"mtime=1\n", b"-9 size=1\n", b" "]
)
def test_damaged_extended_headers(tmp_path: Path, canary: Path, record: bytes) -> None:
    extended = ({"name": "pax", "type": tarfile.XHDTYPE}, record)
    found = refused(tar_of(tmp_path / "x.nemo", extended, ({"name": "a"}, b"")))
    assert "an extended header" in found


def test_hidden_bytes_behind_the_end(tmp_path: Path, canary: Path) -> None:
    path = forge(tmp_path / "x.nemo")
    honest = path.read_bytes()
    for tail in (b"x" * 512, bytes(512), bytes(10240), honest):
        path.write_bytes(honest + tail)
        refused(path)


ALIAS_BOMB = b"a: &a [x,x,x,x]\n" + b"".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)},*{chr(97 + i)}]\n".encode() for i in range(20)
)
CONFIGS: dict[str, tuple[bytes, str]] = {
    "alias bomb": (ALIAS_BOMB, "aliases are not allowed"),
    "python tag": (b"a: !!python/object/apply:os.mkdir ['evil']\n", "tags are not allowed"),
    "plain tag": (b"a: !!binary aGk=\n", "tags are not allowed"),
    "key twice": (PLAIN + b"a: 1\na: 2\n", "'a': is given twice"),
    "merge": (PLAIN + b"<<: {target: os.system}\n", "is no valid YAML"),
    "environment": (PLAIN + b"a: {b: ['${oc.env:HOME}']}\n", "a.b[0]: interpolations"),
    "interpolated key": (PLAIN + b"'${x}': 1\n", "keys are plain strings"),
    "deep flow": (PLAIN + b"a: " + b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
    "deep mapping": (PLAIN + b"a: " + b"{a: " * 90 + b"1" + b"}" * 90, "nested too deep"),
    "many": (PLAIN + b"a: [" + b"1," * 250_000 + b"]", "too long"),
    "too large": (PLAIN + b"#" * 2**21, "more than 1048576"),
    "long number": (PLAIN + b"a: " + b"9" * 100_000, "a number is too long"),
    "sexagesimal": (PLAIN + b"a: 1" + b":59" * 100_000, "a number is too long"),
    "date": (PLAIN + b"a: 2026-01-01\n", "a: must be plain data"),
    "not utf-8": (PLAIN + b"a: \xff\xfe\n", "is no valid YAML"),
    "list": (b"- target\n", "must hold a mapping"),
    "two documents": (PLAIN + b"---\na: 1\n", "is no valid YAML"),
    "list as key": (PLAIN + b"? [1]\n: 2\n", "[1]: keys are strings"),
    "no class": (b"a: 1\n", "`target` must name"),
    "other class": (b"target: os.system\n", "target: is not the one"),
    "remote code": (PLAIN + b"llm: {trust_remote_code: true}\n", "`llm.trust_remote_code`"),
    "remote code, a text": (PLAIN + b"trust_remote_code: 'yes'\n", "`trust_remote_code`"),
    "auto map": (PLAIN + b"a: [{auto_map: {AutoModel: x--y.Z}}]\n", "`a[0].auto_map`"),
    "kernel": (PLAIN + b"attn_implementation: evil/kernel\n", "remote code"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_hostile_configurations(tmp_path: Path, canary: Path, case: str) -> None:
    config, message = CONFIGS[case]
    path = forge(tmp_path / "x.nemo", config=config)
    assert message in refused(path)
    with pytest.raises(ArchiveError):
        inspect_archive(path)


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path, canary: Path) -> None:
    config = PLAIN + b'"a\\e[31m\\nError": {_target_: "os.system\\e[2J"}\n'
    message = refused(forge(tmp_path / "x.nemo", config=config))
    assert message.isprintable() and r"a\x1b[31m Error._target_" in message


TARGETS = [
    "os.system",
    "builtins.exec",
    "subprocess.Popen",
    "pathlib.Path.touch",
    "hydra.utils.call",
    "torch.load",
    "torch.optim.AdamW.__init__",
    "torch.optim.adamw",
    "nemo.utils.file_utils.os.system",
    "transformers.AutoModel.from_pretrained",
    "torch.optim.AdamW2",
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("place", ["{here}", "a: {{{here}}}", "a: [1, {{b: [{{{here}}}]}}]"])
def test_unknown_targets_at_any_depth(
    tmp_path: Path, canary: Path, target: str, place: str
) -> None:
    for key in ("_target_", "cls", "class_path"):
        config = PLAIN + place.format(here=f"{key}: '{target}'").encode()
        found = refused(forge(tmp_path / "x.nemo", config=config))
        assert f"{key}`: '{target}' is not an allowed class" in found


@pytest.mark.parametrize("target", TARGETS)
def test_an_archive_of_an_unknown_class(tmp_path: Path, canary: Path, target: str) -> None:
    config = f"target: '{target}'\n".encode()
    path = forge(tmp_path / "x.nemo", config=config, fields={"target": target})
    assert f"`target`: '{target}' is not an allowed class" in refused(path)


@pytest.mark.parametrize("key", ["_args_", "_partial_", "_recursive_", "_convert_", "_mode_"])
def test_control_keys_of_hydra(tmp_path: Path, canary: Path, key: str) -> None:
    config = PLAIN + f"a: {{_target_: torch.optim.AdamW, {key}: [1]}}\n".encode()
    assert f"a.{key}" in refused(forge(tmp_path / "x.nemo", config=config))


def test_a_target_that_is_no_text(tmp_path: Path, canary: Path) -> None:
    for value in ("[os.system]", "{a: 1}", "3"):
        config = PLAIN + f"a: {{_target_: {value}}}\n".encode()
        assert "must be the name of a class" in refused(forge(tmp_path / "x.nemo", config=config))


JSONS: dict[str, tuple[bytes, str]] = {
    "auto map": (b'{"auto_map": {"AutoConfig": "c.C"}}', "`auto_map`"),
    "deep": (b'{"a": [{"b": {"trust_remote_code": true}}]}', "`trust_remote_code`"),
    "one": (b'{"model_type": "x", "trust_remote_code": "1"}', "`trust_remote_code`"),
    "kernel": (b'{"attn_implementation": "evil/kernel"}', "`attn_implementation`"),
    "not JSON": (b"{", "is no valid JSON"),
    "nested": (b"[" * 100_000 + b"]" * 100_000, "JSON"),
    "escaped": (b'{"\\u0061uto_map": ["x"]}', "`auto_map`"),
    "key twice": (b'{"auto_map": ["x"], "auto_map": null}', "`auto_map`"),
}


@pytest.mark.parametrize("case", JSONS)
def test_hostile_json_files(tmp_path: Path, canary: Path, case: str) -> None:
    content, message = JSONS[case]
    found = refused(forge(tmp_path / "x.nemo", files={"llm_config.json": content}))
    assert message in found and "llm_config.json" in found


def test_a_vocabulary_may_hold_any_word(tmp_path: Path, canary: Path) -> None:
    vocabulary = json.dumps({"model": {"vocab": {"auto_map": 17, "trust_remote_code": 18}}})
    path = forge(tmp_path / "x.nemo", files={"tokenizer.json": vocabulary.encode()})
    with open_archive(path, allowed=ALLOWED) as archive:
        assert archive.files == ["tokenizer.json"]


WEIGHTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "shorter than"),
    "huge header": (safetensors_bytes({}, length=2**62), "claims a header"),
    "header behind the end": (safetensors_bytes({}, length=1000), "claims a header"),
    "not JSON": (safetensors_bytes(b"{" * 64), "no valid safetensors"),
    "nested": (safetensors_bytes(b"[" * 100_000), "no valid safetensors"),
    "list": (safetensors_bytes(b"[]"), "no valid safetensors"),
    "overlap": (
        safetensors_bytes({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
        "b: does not begin",
    ),
    "gap": (safetensors_bytes({"a": entry([1], 4, 8)}, bytes(8)), "a: does not begin"),
    "hidden bytes": (safetensors_bytes({"a": entry([1], 0, 4)}, bytes(99)), "belong to no tensor"),
    "behind the end": (safetensors_bytes({"a": entry([9], 0, 36)}, bytes(4)), "does not begin"),
    "negative": (safetensors_bytes({"a": entry([-1], 0, -4)}), "invalid type, shape"),
    "overflow": (safetensors_bytes({"a": entry([2**59, 2**59], 0, 4)}, bytes(4)), "does not fit"),
    "fraction": (safetensors_bytes({"a": entry([1.0], 0, 4)}, bytes(4)), "invalid type, shape"),
    "bool": (safetensors_bytes({"a": entry([True], 0, 4)}, bytes(4)), "invalid type, shape"),
    "unknown type": (safetensors_bytes({"a": entry([1], 0, 4, "X9")}, bytes(4)), "invalid type"),
    "no shape": (safetensors_bytes({"a": {"dtype": "F32"}}), "no valid safetensors"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_hostile_safetensors(tmp_path: Path, canary: Path, case: str) -> None:
    weights, message = WEIGHTS[case]
    found = refused(forge(tmp_path / "x.nemo", weights=weights))
    assert message in found and layout.WEIGHTS in found


FIELDS: dict[str, tuple[dict, str]] = {
    "format": ({"format": "zip"}, "format"),
    "newer": ({"format_version": 2}, "format_version: 2 needs a newer"),
    "kind": ({"kind": "other"}, "kind: must be"),
    "target": ({"target": "a.B"}, "target: is not the one"),
    "extra key": ({"more": 1}, "exactly the keys"),
    "no members": ({"members": {}}, "do not agree"),
    "members a list": ({"members": []}, "members: must be a dict"),
    "odd member": ({"members": {layout.CONFIG: {"size": 3}}}, "must have a `sha256`"),
    "alias to nothing": ({"aliases": {"y": "z"}}, "aliases"),
    "alias over a tensor": ({"aliases": {"x": "x"}}, "aliases"),
    "alias to a list": ({"aliases": {"y": ["x"]}}, "aliases"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_hostile_manifests(tmp_path: Path, canary: Path, case: str) -> None:
    fields, message = FIELDS[case]
    found = refused(forge(tmp_path / "x.nemo", fields=fields))
    assert message in found and layout.MANIFEST in found


def test_a_manifest_can_not_be_left_out(tmp_path: Path, canary: Path) -> None:
    members = [({"name": layout.CONFIG}, PLAIN), ({"name": layout.WEIGHTS}, GOOD_WEIGHTS)]
    path = tar_with(tmp_path / "x.nemo", *members)
    assert "manifest.json: is missing" in refused(path)


def test_pickles_are_not_executed(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = canary / "executed"
    payload = Payload(marker)
    for weights, message in [
        (torch_bytes({"x": payload}), "refers to"),
        (torch_bytes({"x": torch.ones(2), "y": [payload]}), "refers to"),
        (pickle.dumps({"x": payload}, 2), "no whole zip"),
        (zip_with([("archive/data.pkl", pickle.dumps(payload, 2))]), "cannot be read"),
        (zip_with([("a/data.pkl", pickle.dumps(payload, 2)), ("a/version", b"3")]), ""),
    ]:
        found = refused(legacy(tmp_path / "x.nemo", weights))
        assert message in found and layout.LEGACY_WEIGHTS in found
        assert not marker.exists()


def recompressed(method: int) -> bytes:
    with zipfile.ZipFile(io.BytesIO(torch_bytes())) as archive:
        return zip_with([(e.filename, archive.read(e)) for e in archive.infolist()], method)


def script_bytes() -> bytes:
    """A zip as TorchScript writes it, with code beside the pickle."""
    names = ("data.pkl", "constants.pkl", "code/__torch__.py", "version")
    return zip_with([(f"archive/{name}", b"") for name in names])


def lied_about_storage() -> bytes:
    """A file whose pickle claims a storage of 200 numbers over 8 stored bytes."""
    with zipfile.ZipFile(io.BytesIO(torch_bytes({"x": torch.ones(200)}))) as archive:
        entries = [(e.filename, archive.read(e)) for e in archive.infolist()]
    return zip_with(
        [(name, data[:8] if name.endswith("data/0") else data) for name, data in entries]
    )


LEGACY: dict[str, tuple[Callable[[], bytes], str]] = {
    "deflated": (lambda: recompressed(zipfile.ZIP_DEFLATED), "is compressed"),
    "bomb": (lambda: zip_with([("archive/data/0", bytes(10**8))], 8), "claims entries larger"),
    "entry twice": (lambda: zip_with([("a", b""), ("a", b"")]), "names an entry twice"),
    "no tensor": (lambda: torch_bytes({"x": 3}), "'x': is not a tensor"),
    "a list": (lambda: torch_bytes([torch.ones(1)]), "holds a list"),
    "nested": (lambda: torch_bytes({"x": {"y": torch.ones(1)}}), "'x': is not a tensor"),
    "number as name": (lambda: torch_bytes({3: torch.ones(1)}), "3: is not a tensor"),
    "stretched": (lambda: torch_bytes({"x": torch.ones(1).expand(2**40)}), "more elements"),
    "sparse": (lambda: torch_bytes({"x": torch.eye(3).to_sparse()}), "not a plain dense"),
    "meta": (lambda: torch_bytes({"x": torch.ones(3, device="meta")}), "not a plain dense"),
    "short storage": (lied_about_storage, "model_weights.ckpt"),
    "truncated": (lambda: torch_bytes()[:-30], "no whole zip"),
    "script": (script_bytes, "cannot be read"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", LEGACY)
def test_hostile_legacy_weights(tmp_path: Path, canary: Path, case: str) -> None:
    make, message = LEGACY[case]
    found = refused(legacy(tmp_path / "x.nemo", make()))
    assert message in found and layout.LEGACY_WEIGHTS in found


def test_a_legacy_artifact_that_is_missing(tmp_path: Path, canary: Path) -> None:
    config = PLAIN + b"tokenizer: {model: 'nemo:tok.model'}\n"
    path = legacy(tmp_path / "x.nemo", torch_bytes(), config)
    assert "tok.model: is named by the configuration" in refused(path)


def test_damaged_legacy_weights_are_refused_at_the_opening(tmp_path: Path, canary: Path) -> None:
    weights = bytearray(torch_bytes({"x": torch.ones(5000)}))
    weights[len(weights) // 2] ^= 1
    with pytest.raises(ArchiveError, match="wrong checksum"):
        open_archive(legacy(tmp_path / "x.nemo", bytes(weights)))


def honest(path: Path) -> Path:
    torch.manual_seed(0)
    write_archive(
        path,
        config={"target": TARGET, "lr": 0.1},
        tensors={"x": torch.randn(300), "y": torch.randn(3).half()},
        files={"a.json": b'{"k": 1}', "b.model": bytes(700)},
        metadata={"base": "1234"},
    )
    return path


def test_no_flipped_bit_passes(tmp_path: Path, canary: Path) -> None:
    path = honest(tmp_path / "x.nemo")
    good, chance = path.read_bytes(), random.Random(0)
    used = len(good.rstrip(b"\0")) + 1024
    for _ in range(300):
        bad = bytearray(good)
        bad[chance.randrange(used)] ^= 1 << chance.randrange(8)
        path.write_bytes(bad)
        refused(path)


def test_no_truncation_or_swap_of_blocks_passes(tmp_path: Path, canary: Path) -> None:
    path = honest(tmp_path / "x.nemo")
    good, chance = path.read_bytes(), random.Random(0)
    for _ in range(100):
        path.write_bytes(good[: chance.randrange(len(good))])
        refused(path)
    for _ in range(100):
        first, second = sorted(chance.sample(range(0, len(good), 512), 2))
        if (one := good[first : first + 512]) != (two := good[second : second + 512]):
            swapped = bytearray(good)
            swapped[first : first + 512], swapped[second : second + 512] = two, one
            path.write_bytes(swapped)
            refused(path)
