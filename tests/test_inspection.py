"""`xlm job_type=inspect` tells what a file holds, loads nothing, and refuses damage in one line."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from whalesong import inspection
from whalesong.cli import main
from whalesong.core.archive import write_archive
from whalesong.core.errors import ArchiveError, CheckpointError

CONFIG = {
    "target": "whalesong.models.audiolm.audiolm.AudioLMModel",
    "sample_rate": 16000,
    "pretransform": {"type": "mel_rvq", "config": {"model_path": "codec.safetensors"}},
    "d_model": 32,
    "num_layers": 2,
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.001},
}
TENSORS = {
    "model.ar.weight": torch.ones(4, 8),
    "model.ar.bias": torch.ones(8, dtype=torch.bfloat16),
    "model.nar.weight": torch.ones(3, dtype=torch.int64),
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "small model.nemo"
    write_archive(
        path, config=CONFIG, tensors=TENSORS, files={"codec.json": b"{}"}, metadata={"note": "a\nb"}
    )
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "step-7-last.ckpt"
    content = {
        "state_dict": {"model.ar.weight": torch.ones(4, 8)},
        "global_step": 7,
        "epoch": 1,
        "hyper_parameters": {"cfg": {**CONFIG, "note": "\x1b[31m"}},
        "LanguageDataModule": {"consumed": 14},
        "optimizer_states": [{}],
    }
    torch.save(content, path)
    return path


@pytest.mark.parametrize("page", ["README.rst", "SECURITY.rst"])
def test_command_of_a_page(
    page: str,
    archive: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (Path(__file__).parents[1] / page).read_text()
    (path,) = re.findall(r"^    xlm job_type=inspect model=(\S+)$", text, flags=re.MULTILINE)
    monkeypatch.chdir(archive.parent)
    Path(path).parent.mkdir(parents=True)
    archive.rename(path)
    assert inspected(Path(path), capsys)["class"] == CONFIG["target"]


def inspected(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What the command prints, by the first word or words of each line."""
    main(["job_type=inspect", f"model={path}"])
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    return {key.strip(): value.strip() for key, _, value in map(_columns, out.splitlines())}


def _columns(line: str) -> tuple[str, str, str]:
    return line.strip().partition("  ")


def test_archive_is_described(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = inspected(archive, capsys)
    assert told["class"] == CONFIG["target"]
    assert (told["kind"], told["written by"].split()[0]) == ("whole", "whalesong")
    assert told["checksums"] == "all 4 files are as they were written"
    assert told["classes"] == "may be restored"
    assert told["metadata note"] == "a b"
    assert told["codec.json"] == "2"
    assert told["all"] == "43 in 3 tensors"
    assert (told["float32"], told["bfloat16"], told["I64"]) == ("32", "8", "3")
    assert (told["model.ar"], told["model.nar"]) == ("40", "3")
    assert (told["sample rate"], told["codec"], told["width"]) == ("16000", "mel_rvq", "32")
    assert "lr: 0.001" in told
    (evaluation,) = [line for line in told if line.startswith("xlm job_type=eval")]
    assert f"'eval.ckpt_path={archive}'" in evaluation
    assert any(line.startswith("xlm job_type=predict") for line in told)


def test_checkpoint_is_described(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = inspected(checkpoint, capsys)
    assert (told["step"], told["epoch"], told["batches of data"]) == ("7", "1", "14")
    assert (told["class"], told["optimizer"]) == (CONFIG["target"], "yes")
    assert told["model.ar"] == "32"


def test_legacy_archive_is_described(tiny_asr: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = inspected(tiny_asr, capsys)
    assert told["written by"] == "NeMo"
    assert told["classes"] == "is restored by NeMo, not by Whalesong"
    assert "NeMo has no others" in told["checksums"]
    assert int(told["encoder"].replace(",", "")) > 0
    assert not any(line.startswith("xlm ") for line in told)


@pytest.mark.parametrize("number", [3, 700, -2000])
def test_damaged_archive_is_one_line(
    archive: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    content = bytearray(archive.read_bytes())
    content[number] ^= 1
    archive.write_bytes(content)
    assert_one_line(archive, capsys)


def test_cut_files_are_one_line(
    archive: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (archive, checkpoint):
        path.write_bytes(path.read_bytes()[:-1500])
        assert_one_line(path, capsys)


def test_foreign_class_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.nemo"
    config = {**CONFIG, "optimizer": {"_target_": "os.system", "command": "true"}}
    write_archive(path, config=config, tensors=TENSORS)
    assert "optimizer._target_" in assert_one_line(path, capsys)


def test_pickle_is_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Payload:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "executed",))

    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "payload": Payload()}, path)
    assert_one_line(path, capsys)
    assert not (tmp_path / "executed").exists()


def assert_one_line(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["job_type=inspect", f"model={path}"])
    printed = capsys.readouterr()
    assert (caught.value.code, printed.out) == (1, "")
    assert printed.err.count("\n") == 1 and printed.err.startswith(f"Error: {path}: ")
    return printed.err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "`model` is mandatory for job_type=inspect: model=FILE.nemo."),
        (["model="], "`model` is mandatory for job_type=inspect: model=FILE.nemo."),
        (["model=no.nemo"], "`model` must be an existing file, but 'no.nemo' is not."),
        (["model=.", "a=1"], "`a` is not for job_type=inspect, which has `model`."),
    ],
)
def test_wrong_request_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["job_type=inspect", *arguments])
    assert (caught.value.code, capsys.readouterr().err) == (2, f"Error: {message}\n")


def test_quoted_names_and_pluses_mean_the_file(archive: Path) -> None:
    for model in (f"model='{archive}'", f'model="{archive}"', f"+model={archive}"):
        assert inspection.requested_file(["job_type=inspect", model]) == archive


def test_python_gets_the_error_of_the_file(tmp_path: Path) -> None:
    for name, error in (("a.nemo", ArchiveError), ("a.ckpt", CheckpointError)):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(error):
            inspection.read(tmp_path / name)


def test_nothing_heavy_is_imported(archive: Path) -> None:
    heavy = ("nemo", "lightning", "lhotse", "transformers", "hydra")
    code = (
        "import sys; from whalesong.cli import main; main(sys.argv[1:]); "
        f"assert not set({heavy}) & set(sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    arguments = [sys.executable, "-c", code, "job_type=inspect", f"model={archive}"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert spent.ru_utime - before.ru_utime < 6  # 2 s, but for other work of the machine
