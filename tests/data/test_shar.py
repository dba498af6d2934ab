"""Writing shar: what is read back, and what is never left behind."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from whalesong.core.errors import DataError
from whalesong.data.audio import load_audio
from whalesong.data.shar import UniqueIds, manifest_to_shar, write_shar


@pytest.fixture
def manifest(tmp_path):
    """Five recordings, two of them with the same file name."""
    rows = []
    for k, name in enumerate(["a/x.wav", "b/x.wav", "y.wav", "z.flac", "b/w.wav"]):
        path = tmp_path / "wavs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.full(4000 + 400 * k, 0.1 * (k + 1)), 8000)
        rows.append({"audio_filepath": f"wavs/{name}", "text": f"text {k}", "speaker": f"s{k}"})
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rewrite(manifest, index, **changes):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[index].update(changes)
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_manifest_becomes_shar_that_lhotse_and_the_plan_read(manifest, tmp_path, plan_of):
    summary = manifest_to_shar(manifest, tmp_path / "shar", shard_size=2, sample_rate=16000)
    assert summary.num_cuts == 5 and summary.seconds == pytest.approx(3.0)
    for cuts in (
        CutSet.from_shar(in_dir=str(tmp_path / "shar")),
        plan_of(shar_path=str(tmp_path / "shar"), batch_size=9, shuffle=False).examples(0),
    ):
        cuts = list(cuts)
        assert [cut.id for cut in cuts] == ["x", "x-2", "y", "z", "w"]
        assert [cut.supervisions[0].text for cut in cuts] == [f"text {k}" for k in range(5)]
        assert [cut.speaker for cut in cuts] == [f"s{k}" for k in range(5)]
        levels = [np.median(load_audio(cut, sample_rate=16000)) for cut in cuts]
        assert np.allclose(levels, [0.1, 0.2, 0.3, 0.4, 0.5], atol=1e-3)
        assert all(cut.sampling_rate == 16000 for cut in cuts)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0), "holds no samples"),
        (np.full(800, np.nan), "not finite"),
        (np.zeros((800, 2)), "2 channels"),
    ],
)
def test_bad_audio_is_named_and_nothing_is_left(manifest, tmp_path, samples, message):
    soundfile.write(tmp_path / "wavs" / "y.wav", samples, 8000, subtype="FLOAT")
    with pytest.raises(DataError, match=rf"manifest.jsonl, line 3: .*y.wav.*{message}"):
        manifest_to_shar(manifest, tmp_path / "shar")
    assert {path.name for path in tmp_path.iterdir()} == {"wavs", "manifest.jsonl"}
    summary = manifest_to_shar(manifest, tmp_path / "shar", on_bad_cut="skip")
    assert (summary.num_cuts, summary.left_out) == (4, 1)


def test_bad_lines_are_named(manifest, tmp_path):
    for changes, message in [
        ({"text": " "}, "empty text"),
        ({"text": "fine", "audio_filepath": "gone.wav"}, "gone.wav"),
        ({"audio_filepath": "wavs/y.wav", "duration": 9.0}, "holds 0.60 s"),
    ]:
        rewrite(manifest, 2, **changes)
        with pytest.raises(DataError, match=rf"manifest.jsonl, line 3: .*{message}"):
            manifest_to_shar(manifest, tmp_path / "shar")


def test_nothing_is_written_over(manifest, tmp_path):
    (tmp_path / "shar").mkdir()
    (tmp_path / "shar" / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="must be new or empty"):
        manifest_to_shar(manifest, tmp_path / "shar")
    with pytest.raises(DataError, match="no cuts to write"):
        write_shar([], tmp_path / "other")
    assert not (tmp_path / "other").exists()


SLOW = """
import sys, time
from whalesong.data import shar
inner = shar._in_memory
def slowly(*arguments):
    time.sleep(0.2)
    print("one", flush=True)
    return inner(*arguments)
shar._in_memory = slowly
shar.manifest_to_shar(sys.argv[1], sys.argv[2], shard_size=1)
"""


def test_a_killed_writer_leaves_no_folder_and_the_next_one_finishes(manifest, tmp_path):
    command = [sys.executable, "-c", SLOW, str(manifest), str(tmp_path / "shar")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        process.stdout.readline(), process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
    assert not (tmp_path / "shar").exists()
    assert manifest_to_shar(manifest, tmp_path / "shar").num_cuts == 5
    assert not list(tmp_path.glob(".*"))


def test_unique_ids():
    ids = UniqueIds()
    assert [ids.make(name) for name in ["a", "a-2", "a", "a", "b"]] == [
        "a",
        "a-2",
        "a-3",
        "a-4",
        "b",
    ]
    begin = time.monotonic()
    assert len({ids.make("many") for _ in range(20000)}) == 20000
    assert time.monotonic() - begin < 2
