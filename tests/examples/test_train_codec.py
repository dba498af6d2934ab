"""The command that makes a codec, on a few recordings."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from whalesong.core.errors import ConfigError, DataError
from whalesong.modules.codec.files import load_codec
from whalesong.modules.codec.training import CodecRecipe
from whalesong.sound.make_codec import make_codec, read_recordings, split_recordings

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "codec_lm" / "train_codec.py"


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds of decaying tones in files of one, in a folder of a folder, one in stereo."""
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "more").mkdir()
    rng, times = np.random.default_rng(0), np.arange(16000) / 16000
    for index in range(8):
        tones = sum(np.sin(2 * np.pi * f * times) for f in rng.uniform(100, 3000, 4))
        audio = 0.1 * tones * np.exp(-2 * times) + 0.001 * rng.standard_normal(16000)
        channels = np.stack([audio, audio], 1) if index == 3 else audio
        soundfile.write(folder / ("more" if index % 2 else "") / f"{index}.wav", channels, 16000)
    (folder / "notes.txt").write_text("not audio")
    return folder


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    "kind", ["mel_rvq", pytest.param("convnext_istft", marks=pytest.mark.slow)]
)
def test_it_writes_a_codec_and_something_to_listen_to(
    kind: str, recordings: Path, tmp_path: Path
) -> None:
    output = tmp_path / "made" / "codec.safetensors"
    sizes = ("--codebooks", "2", "--codebook-size", "64")
    done = run(kind, recordings, output, *sizes, "--steps", "2")
    assert done.returncode == 0, done.stderr
    codec = load_codec(output)
    assert (codec.type_name, codec.num_codebooks, codec.codebook_size) == (kind, 2, 64)
    listen = sorted(path.name for path in (tmp_path / "made" / "codec_examples").iterdir())
    assert listen == ["1_codec.wav", "1_original.wav"]
    assert "2 codebooks of 64, 50 frames/s, 0.6 kbit/s, from 0.1 min of audio" in done.stdout
    assert re.search(r"mel distance \d\.\d{3}, SI-SDR -?\d+\.\d dB", done.stdout)
    assert f"Next: python examples/codec_lm/tokenize_shar.py SHAR_FOLDER {output}" in done.stdout


def test_shar_is_read_like_files(speech_shar: Path) -> None:
    audio = read_recordings(speech_shar, sample_rate=8000, max_seconds=1e9)
    assert [len(samples) for samples in audio] == [4000 + 400 * index for index in range(12)]
    assert len(read_recordings(speech_shar, sample_rate=8000, max_seconds=1.0)) == 2


def test_recordings_are_left_out_once(recordings: Path) -> None:
    audio = read_recordings(recordings, sample_rate=16000, max_seconds=1e9)
    train, held_out = split_recordings(audio, seed=0)
    assert (len(train), len(held_out)) == (7, 1)
    assert {id(samples) for samples in (*train, *held_out)} == {id(samples) for samples in audio}


def test_unusable_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        read_recordings(tmp_path / "nowhere", sample_rate=16000, max_seconds=1)
    with pytest.raises(DataError, match="must hold at least 2 recordings, but holds 0"):
        read_recordings(tmp_path, sample_rate=16000, max_seconds=1)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"broken\.wav: cannot be read as audio"):
        read_recordings(tmp_path, sample_rate=16000, max_seconds=1)


def test_sizes_out_of_range(recordings: Path) -> None:
    audio = read_recordings(recordings, sample_rate=16000, max_seconds=1e9)
    settings = {"sample_rate": 16000, "recipe": CodecRecipe()}
    with pytest.raises(ConfigError, match="`num_codebooks` of a codec .* but is 0"):
        make_codec("mel_rvq", audio, num_codebooks=0, codebook_size=8, **settings)
    with pytest.raises(ConfigError, match="9999 centroids need at least as many vectors"):
        make_codec("mel_rvq", audio, num_codebooks=1, codebook_size=9999, **settings)


def test_a_codec_may_have_another_frame_rate(recordings: Path) -> None:
    audio = read_recordings(recordings, sample_rate=16000, max_seconds=1e9)
    sizes = {"num_codebooks": 1, "codebook_size": 8, "hop_length": 1280, "windows_per_frame": 4}
    blocks = {"block_frames": 8, "context_frames": 4}
    recipe = CodecRecipe()
    codec = make_codec("mel_rvq", audio, sample_rate=16000, recipe=recipe, **sizes, **blocks)
    assert codec.frame_rate == 12.5
    with pytest.raises(ConfigError, match="`windows_per_frame` must divide `hop_length`"):
        make_codec("mel_rvq", audio, sample_rate=16000, recipe=recipe, **sizes | {"hop_length": 2})
