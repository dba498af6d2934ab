"""NeMo's own files are read without being unpacked, and nothing in them runs."""

import pickle
from pathlib import Path

import pytest
import torch
from fixtures.forging import Payload, tar_with, torch_bytes

from whalesong.modules.nemo_file import CONFIG, WEIGHTS, check_classes, read_nemo

PLAIN = b"encoder: {_target_: a.B}\n"


def write(path: Path, config: bytes = PLAIN, weights: bytes | None = None, *more) -> Path:
    content = torch_bytes() if weights is None else weights
    return tar_with(path, ({"name": f"./{CONFIG}"}, config), ({"name": WEIGHTS}, content), *more)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_honest_file(tmp_path: Path, mode: str) -> None:
    members = [({"name": CONFIG}, PLAIN), ({"name": WEIGHTS}, torch_bytes())]
    config, weights = read_nemo(tar_with(tmp_path / "x.nemo", *members, mode=mode))
    assert config == {"encoder": {"_target_": "a.B"}}
    assert torch.equal(weights["x"], torch.ones(2))


def test_hostile_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    payload = Payload(tmp_path / "executed")
    aliases, path = b"a: &a [x]\nb: *a\n", tmp_path / "x.nemo"
    for arguments, message in [
        ((b"- a\n",), "must hold a mapping"),
        ((aliases,), "aliases are not allowed"),
        ((b"a: !!python/name:os.system\n",), "could not determine a constructor"),
        ((PLAIN + b"#" * 2**20,), "more than 1048576"),
        ((PLAIN, torch_bytes({"x": payload})), "of data only, but model_weights.ckpt refers to"),
        ((PLAIN, pickle.dumps(payload)), "not a zip file"),
        ((PLAIN, torch_bytes([1])), "holds more than tensors by name"),
        ((PLAIN, None, ({"name": CONFIG}, b"a: 1\n")), "is there twice"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            read_nemo(write(path, *arguments))
        assert "must be a `.nemo` file" in str(caught.value) and str(caught.value).isprintable()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "section",
    [
        {"_target_": "os.system"},
        {"_target_": "a.B", "x": [{"_target_": "os.system"}]},
        {"_target_": "a.B", "_args_": [1]},
        {"_target_": "a.B", "cls": "os.system"},
        {"_target_": "a.B", "x": "${oc.env:HOME}"},
    ],
)
def test_only_exact_classes_pass(section: dict) -> None:
    check_classes({"_target_": "a.B", "size": 3}, {"a.B"}, path="encoder")
    with pytest.raises(ValueError, match="`encoder"):
        check_classes(section, {"a.B"}, path="encoder")
