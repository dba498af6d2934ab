import itertools
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from lhotse import CutSet

from whalesong.core.errors import ConfigError, DataError
from whalesong.corpora.espeak import Synthesizer
from whalesong.corpora.grammar import VOCABULARY, split_of
from whalesong.corpora.spoken_commands import (
    ACCENTS,
    SPEAKERS,
    synthesize_commands,
    write_spoken_commands,
)

COUNTS = {"num_train": 30, "num_validation": 6, "num_test": 12}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "commands"
    summary = write_spoken_commands(folder, **COUNTS, seed=3, shard_size=10)
    return folder, summary


def read_split(corpus, split):
    return list(CutSet.from_shar(in_dir=str(corpus[0] / split)))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_shar_reads_back_with_text_audio_and_duration(corpus, split):
    cuts = read_split(corpus, split)
    assert len(cuts) == COUNTS[f"num_{split}"] == corpus[1][split].num_cuts
    assert len({cut.id for cut in cuts}) == len(cuts)
    for cut in cuts:
        audio = cut.load_audio()
        assert audio.shape == (1, cut.num_samples)
        assert cut.sampling_rate == 16000
        assert 1.0 <= cut.duration <= 4.0
        assert np.sqrt(np.mean(audio**2)) > 0.005
        (supervision,) = cut.supervisions
        assert set(supervision.text.split()) <= set(VOCABULARY)
        assert split_of(supervision.text) == split
        assert supervision.duration == cut.duration
        assert supervision.language == "en"


def test_shards_hold_what_was_asked(corpus):
    names = sorted(path.name for path in (corpus[0] / "train").iterdir())
    assert names == [f"cuts.00000{n}.jsonl.gz" for n in range(3)] + [
        f"recording.00000{n}.tar" for n in range(3)
    ]


def test_splits_share_no_variant_rate_or_pitch():
    for one, other in itertools.combinations(SPEAKERS.values(), 2):
        assert not set(one.variants) & set(other.variants)
        assert not set(one.rates_wpm) & set(other.rates_wpm)
        assert not set(one.pitches) & set(other.pitches)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_written_cuts_keep_to_the_speakers_of_their_split(corpus, split):
    speakers = SPEAKERS[split]
    for cut in read_split(corpus, split):
        supervision = cut.supervisions[0]
        accent, variant = supervision.speaker.split("+")
        assert accent in ACCENTS
        assert variant in speakers.variants
        assert supervision.custom["rate_wpm"] in speakers.rates_wpm
        assert supervision.custom["pitch"] in speakers.pitches


def test_equal_seeds_give_equal_audio_and_other_seeds_other_cuts(corpus):
    written = read_split(corpus, "test")
    for one, two in zip(written, synthesize("test", seed=3), strict=True):
        assert one.supervisions == two.supervisions
        np.testing.assert_array_equal(one.load_audio(), two.load_audio())
    other = synthesize("test", seed=4)
    assert {cut.supervisions[0].text for cut in written} != {
        cut.supervisions[0].text for cut in other
    }


def synthesize(split, *, seed):
    count = COUNTS[f"num_{split}"]
    return list(synthesize_commands(Synthesizer(), split=split, count=count, seed=seed))


def test_a_killed_writer_leaves_no_corpus_and_the_next_run_succeeds(tmp_path):
    folder = tmp_path / "commands"
    code = (
        "from whalesong.corpora.spoken_commands import write_spoken_commands as write\n"
        f"write({str(folder)!r}, num_train=100000, num_validation=1, num_test=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    partial = tmp_path / ".partial-commands"
    deadline = time.monotonic() + 60
    while not (partial / "train").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert partial.exists()
    assert not folder.exists()
    write_spoken_commands(folder, num_train=2, num_validation=1, num_test=1)
    assert sorted(path.name for path in folder.iterdir()) == ["test", "train", "validation"]
    assert not partial.exists()


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="must be new or empty"):
        write_spoken_commands(tmp_path, num_train=1, num_validation=1, num_test=1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="`num_test` must be at least 1, but is 0"):
        write_spoken_commands(tmp_path / "x", num_train=1, num_validation=1, num_test=0)
