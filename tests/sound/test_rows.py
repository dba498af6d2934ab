"""One entry for each row, whatever the user gives."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from whalesong.core.errors import ConfigError, DataError
from whalesong.modules.codec.files import load_codec
from whalesong.sound.rows import check_rows, count_rows, read_clips, row_seconds, row_seeds, spread


def test_rows_are_counted_by_the_first_that_tells() -> None:
    assert count_rows(None, 2.0, ["a", "b"], [1]) == 2
    assert count_rows(None, ["a", "b"], batch_size=3) == 3
    assert count_rows(None, 7) == 1
    assert count_rows([]) == 0


def test_every_argument_must_have_an_entry_for_each_row() -> None:
    check_rows(2, metadata=None, begin=[None, None])
    with pytest.raises(ValueError, match="^`begin` must have one entry for each of 2 rows, but ha"):
        check_rows(2, metadata=None, begin=[None])


def test_seeds_count_up_and_are_random_without_any() -> None:
    assert row_seeds(5, 3) == [5, 6, 7]
    assert row_seeds([9, 1], 2) == [9, 1]
    torch.manual_seed(0)
    assert len(set(row_seeds(None, 8))) == 8


def test_lengths_are_above_zero() -> None:
    assert row_seconds(2, 2) == [2.0, 2.0] and row_seconds([1.0, 0.5], 2) == [1.0, 0.5]
    with pytest.raises(ValueError, match="^`seconds` must be above 0 in every row, but is"):
        row_seconds([1.0, float("nan")], 2)


def test_one_value_is_for_all_rows() -> None:
    assert spread(["a"], 3, key="prompts") == ["a"] * 3
    assert spread(["a", "b"], 2, key="prompts") == ["a", "b"]
    with pytest.raises(ConfigError, match=r"^`predict\.prompts` must have one entry, or one for"):
        spread(["a", "b"], 3, key="prompts")


def test_files_are_read_as_the_codec_takes_them(mel_rvq: Path, tmp_path: Path) -> None:
    codec = load_codec(mel_rvq)
    path = str(tmp_path / "a.wav")
    soundfile.write(path, 0.1 * np.ones((4000, 2)), 8000)
    assert read_clips([], 2, key="begin", codec=codec) == [None, None]
    first, second = read_clips([path], 2, key="begin", codec=codec)
    assert first is second and first.shape == (1, 8000)
    with pytest.raises(DataError, match="the audio file 'b.wav' does not exist"):
        read_clips(["b.wav"], 1, key="begin", codec=codec)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"broken\.wav: cannot be read as audio"):
        read_clips([str(tmp_path / "broken.wav")], 1, key="begin", codec=codec)
    with pytest.raises(ConfigError, match=r"`predict\.end` must have one entry"):
        read_clips([path, path], 3, key="end", codec=codec)
