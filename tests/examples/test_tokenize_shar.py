"""Codes ahead of training: those of the codec, resumable, in several processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from lhotse import CutSet

from whalesong.core.errors import ConfigError, DataError
from whalesong.corpora.music_loops import write_music_loops
from whalesong.data.codes import load_codes, read_codec_info
from whalesong.data.datamodule import build_loader
from whalesong.models.codec_lm.collator import CodecLMCollator
from whalesong.modules.codec.files import load_codec, save_codec
from whalesong.modules.codec.mel_rvq import MelRVQCodec, MelRVQSizes
from whalesong.sound.codec_info import describe_codec
from whalesong.sound.tokenize import read_pretransform, tokenize_shar

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "codec_lm" / "tokenize_shar.py"


def write_codec(path, *, seed=0):
    """A codec that nobody has fitted, which is as good to count frames."""
    codec = MelRVQCodec(MelRVQSizes(n_fft=640, n_mels=16, num_codebooks=2, codebook_size=32))
    generator = torch.Generator().manual_seed(seed)
    codec.quantizer.codebooks.copy_(
        4 * torch.randn(codec.quantizer.codebooks.shape, generator=generator) - 4
    )
    save_codec(codec, path)
    return path


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenize")
    sizes = {"num_train": 12, "num_validation": 1, "num_test": 1}
    write_music_loops(folder / "loops", **sizes, seconds=2, shard_size=4)
    return folder / "loops" / "train", write_codec(folder / "codec.safetensors")


@pytest.fixture
def shar(parts, tmp_path):
    return Path(shutil.copytree(parts[0], tmp_path / "shar"))


@pytest.fixture
def codec_path(parts):
    return parts[1]


def run_script(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def check_codes(folder, codec_path, *, audio_from=None):
    """Every cut of the folder has the codes that the codec gives its audio."""
    codec = load_codec(codec_path)
    info = describe_codec(codec)
    cuts = list(CutSet.from_shar(in_dir=str(folder)))
    assert len(cuts) == 12
    recordings = CutSet.from_shar(in_dir=str(audio_from or folder))
    for cut, other in zip(cuts, recordings, strict=True):
        codes, _ = codec.encode(torch.from_numpy(other.load_audio())[None])
        assert torch.equal(load_codes(cut, info), codes[0])


def test_two_processes_write_the_codes_of_the_codec(shar, codec_path):
    done = run_script(shar, codec_path, "--jobs", 2)
    assert done.returncode == 0, done.stderr
    assert "codes of 12 cuts in 3 shards\n" in done.stdout
    assert f"data.train_ds.shar_path={shar}" in done.stdout
    check_codes(shar, codec_path)
    assert [path.name for path in shar.parent.iterdir()] == ["shar"]


@pytest.mark.parametrize("apart", [False, True])
def test_training_reads_codes_and_captions(shar, codec_path, tmp_path, apart):
    codec = describe_codec(load_codec(codec_path))
    output = tmp_path / "codes" if apart else None
    folder = tokenize_shar(shar, read_pretransform(codec_path), output=output).folder
    keys = {"prompt": "text", "bpm": "tempo_bpm"}
    collator = CodecLMCollator(codec, condition_keys=keys, max_frames=50, training=True)
    section = {"shar_path": str(folder), "batch_size": 5, "seed": 1}
    batches = list(build_loader(section, collator, path="data.train_ds"))
    assert [batch["codes"].shape for batch in batches] == [(5, 2, 50), (5, 2, 50), (2, 2, 50)]
    rows = [row for batch in batches for row in batch["metadata"]]
    assert all(isinstance(row["prompt"], str) and 50 < row["bpm"] < 180 for row in rows)
    for batch, again in zip(batches, build_loader(section, collator, path="data"), strict=True):
        assert torch.equal(batch["codes"], again["codes"])


def test_another_folder_gets_cuts_and_codes_alone(shar, codec_path, tmp_path):
    before = sorted(path.name for path in shar.iterdir())
    summary = tokenize_shar(shar, read_pretransform(codec_path), output=tmp_path / "codes")
    assert (summary.num_cuts, summary.num_shards, summary.num_kept) == (12, 3, 0)
    assert {path.name.split(".")[0] for path in summary.folder.iterdir()} == {"cuts", "codes"}
    check_codes(tmp_path / "codes", codec_path, audio_from=shar)
    assert sorted(path.name for path in shar.iterdir()) == before


def test_a_killed_run_leaves_the_folder_as_it_was_and_goes_on(shar, codec_path, tmp_path):
    before = sorted(path.name for path in shar.iterdir())
    waiting = tmp_path / ".codes-shar"
    code = (
        "import time\n"
        "from whalesong.sound import tokenize\n"
        "whole = tokenize.tokenize_shard\n"
        "def slow(*arguments):\n"
        "    time.sleep(0 if arguments[0].number == '000000' else 60)\n"
        "    return whole(*arguments)\n"
        "tokenize.tokenize_shard = slow\n"
        f"section = tokenize.read_pretransform({str(codec_path)!r})\n"
        f"tokenize.tokenize_shar({str(shar)!r}, section)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (waiting / "codes.000000.tar").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sorted(path.name for path in shar.iterdir()) == before
    summary = tokenize_shar(shar, read_pretransform(codec_path))
    assert (summary.num_shards, summary.num_kept) == (3, 1)
    check_codes(shar, codec_path)
    assert not waiting.exists()
    assert tokenize_shar(shar, read_pretransform(codec_path)).num_kept == 3


def test_a_run_that_was_killed_while_it_moved_its_files_goes_on(shar, codec_path, tmp_path):
    section = read_pretransform(codec_path)
    tokenize_shar(shar, section)
    (tmp_path / ".codes-shar").mkdir()
    for number in (1, 2):
        name = f"codes.00000{number}.tar"
        (shar / name).rename(tmp_path / ".codes-shar" / name)
    assert tokenize_shar(shar, section).num_kept == 3
    check_codes(shar, codec_path)


def test_codes_of_another_codec_are_never_mixed(shar, codec_path, tmp_path):
    section = read_pretransform(codec_path)
    tokenize_shar(shar, section)
    other = read_pretransform(write_codec(tmp_path / "other.safetensors", seed=1))
    with pytest.raises(DataError, match=r"000000\.tar: holds codes of MelRVQCodec .*, not of Mel"):
        tokenize_shar(shar, other)
    (tmp_path / ".codes-shar").mkdir()
    (shar / "codes.000000.tar").rename(tmp_path / ".codes-shar" / "codes.000000.tar")
    for number in (1, 2):
        (shar / f"codes.00000{number}.tar").unlink()
    assert tokenize_shar(shar, other).num_kept == 0
    assert read_codec_info(shar / "codes.000000.tar") == tokenize_shar(shar, other).codec


def test_a_recording_that_cannot_be_read_is_named(shar, codec_path):
    path = shar / "recording.000001.tar"
    path.write_bytes(path.read_bytes().replace(b"fLaC", b"cAlf"))
    with pytest.raises(DataError, match=rf"{path}, cut train-000004: "):
        tokenize_shar(shar, read_pretransform(codec_path))
    assert not list(shar.glob("codes.*"))


def test_the_section_of_a_yaml_file_is_taken(codec_path, tmp_path):
    section = {"type": "mel_rvq", "config": {"model_path": str(codec_path)}}
    assert read_pretransform(codec_path) == section
    for name, content in (
        ("bare", section),
        ("part", {"pretransform": section}),
        ("whole", {"sample_rate": 16000, "model": {"pretransform": section, "lm": {}}}),
    ):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        assert read_pretransform(path) == section


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.yaml", None, "holds no codec .*No such file"),
        ("text.yaml", "just words", "must hold a section `pretransform` with a `type`"),
        ("bad.yaml", "a: [", "holds no codec"),
        ("bad.safetensors", "x", "holds no codec"),
    ],
)
def test_files_without_a_codec_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_pretransform(tmp_path / name)


def test_folders_without_recordings_and_wrong_settings_are_refused(shar, codec_path, tmp_path):
    section = read_pretransform(codec_path)
    with pytest.raises(DataError, match="no such shar folder"):
        tokenize_shar(tmp_path / "nowhere", section)
    with pytest.raises(ConfigError, match="`jobs` must be at least 1, but is 0"):
        tokenize_shar(shar, section, jobs=0)
    with pytest.raises(ConfigError, match="the codec: Unknown pretransform type: zz"):
        tokenize_shar(shar, {"type": "zz", "config": {}})
    (shar / "recording.000002.tar").unlink()
    with pytest.raises(DataError, match=r"has no file recording\.000002\.\* of shard 000002"):
        tokenize_shar(shar, section)
