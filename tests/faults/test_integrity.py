"""A3: no damaged archive or checkpoint is read as if it were whole; what is read is saved again."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

TRIALS = 600


@pytest.fixture(scope="module")
def model(text_config: Callable[..., dict]) -> Any:
    import whalesong

    return whalesong.TextLMModel(text_config("ilm"))


def damaged(content: bytes, chance: random.Random) -> Iterator[bytes]:
    """Flips of bits and bytes, cuts, zeroed and doubled pieces."""
    for trial in range(TRIALS):
        place, length = chance.randrange(len(content)), chance.randrange(1, 600)
        bad = bytearray(content)
        kind = trial % 6
        if kind < 2:
            bad[place] ^= 1 << chance.randrange(8)
        elif kind == 2:
            bad[place] = chance.randrange(256)
        elif kind == 3:
            bad = bad[:place]
        elif kind == 4:
            bad[place : place + length] = bytes(len(bad[place : place + length]))
        else:
            bad[place:place] = bad[place : place + length]
        yield bytes(bad)


def count(
    read: Callable[[Path], dict[str, torch.Tensor]], path: Path, chance: random.Random
) -> tuple[int, int, list[str]]:
    """Trials, those that the file survived, and what went wrong."""
    content, expected = path.read_bytes(), {k: v.clone() for k, v in read(path).items()}
    tried, wrong = 0, []
    for bad in damaged(content, chance):
        if bad == content:
            continue
        tried += 1
        path.write_bytes(bad)
        try:
            found = read(path)
        except ValueError as error:
            if not (str(error).startswith(f"{path}: ") and str(error).isprintable()):
                wrong.append(repr(error))
            continue
        if found.keys() != expected.keys():
            wrong.append("other names")
        elif not all(torch.equal(found[name], expected[name]) for name in expected):
            wrong.append("other numbers")
    return tried, tried - len(wrong), wrong


def test_damaged_archives(model: Any, tmp_path: Path, survival: Callable[..., None]) -> None:
    from whalesong.core.archive import open_archive

    def read(path: Path) -> dict[str, torch.Tensor]:
        with open_archive(path) as archive:
            return archive.tensors()

    model.save_to(tmp_path / "x.nemo")
    tried, survived, wrong = count(read, tmp_path / "x.nemo", random.Random(0))
    survival("A3", tried=tried, survived=survived, detail=".nemo")
    assert not wrong, wrong[:5]
    assert tried > 500


def test_damaged_checkpoints(model: Any, tmp_path: Path, survival: Callable[..., None]) -> None:
    from whalesong.core.checkpoint import AtomicCheckpointIO

    io, path = AtomicCheckpointIO(), tmp_path / "x.ckpt"

    def read(path: Path) -> dict[str, torch.Tensor]:
        return io.load_checkpoint(path)["state_dict"]

    io.save_checkpoint({"state_dict": dict(model.state_dict()), "global_step": 3}, path)
    tried, survived, wrong = count(read, path, random.Random(1))
    survival("A3", tried=tried, survived=survived, detail=".ckpt")
    assert not wrong, wrong[:5]
    assert tried > 500


@pytest.mark.parametrize(
    "family", ["SALM", "codec LM", "AudioLM", "duplex", "speech decoder", "ilm"]
)
def test_a_restored_model_is_saved_again_anywhere(
    family: str,
    build_salm: Callable[..., Any],
    build_codec_lm: Callable[..., Any],
    build_audiolm: Callable[..., Any],
    build_duplex: Callable[..., Any],
    text_config: Callable[..., dict],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Out of a read-only folder that is gone afterwards, in another working directory."""
    import whalesong

    build = {
        "SALM": build_salm,
        "codec LM": build_codec_lm,
        "AudioLM": build_audiolm,
        "duplex": build_duplex,
        "speech decoder": lambda: build_duplex("duplex_s2s_speech_decoder"),
        "ilm": lambda: whalesong.TextLMModel(text_config("ilm")),
    }
    first, work = tmp_path / "first" / "model.nemo", tmp_path / "work"
    first.parent.mkdir()
    work.mkdir()
    build[family]().save_to(first)
    content = first.read_bytes()
    first.parent.chmod(0o500)
    monkeypatch.chdir(work)
    model = whalesong.load(first)
    first.parent.chmod(0o700)
    first.unlink()
    model.save_to(tmp_path / "deep" / "again.nemo")
    assert (tmp_path / "deep" / "again.nemo").read_bytes() == content
    assert os.listdir(work) == []
