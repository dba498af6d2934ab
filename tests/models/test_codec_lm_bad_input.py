"""What a codec LM says to input that it cannot use."""

import io
from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lhotse import Recording, SupervisionSegment

from whalesong.core.config.job import PredictConfig
from whalesong.core.errors import ConfigError, DataError
from whalesong.data.datamodule import build_loader
from whalesong.data.shar import write_shar

ROW = {"text": "a fast tone", "prompt": None}


@pytest.fixture(scope="module")
def build(build_codec_lm: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **changes: build_codec_lm(
        {"cross_attention_cond_ids": ["text", "prompt"]}, **changes
    )


@pytest.fixture(scope="module")
def model(build: Callable[..., Any]) -> Any:
    return build()


@pytest.fixture(scope="module")
def stereo_shar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of two channels at 22.05 kHz."""
    return write_clip(tmp_path_factory.mktemp("stereo") / "shar", num_channels=2)


def write_clip(folder: Path, *, num_channels: int) -> Path:
    """Half a second at 22.05 kHz as shar."""
    data = io.BytesIO()
    soundfile.write(data, 0.1 * np.ones((11025, num_channels)), 22050, format="WAV")
    cut = Recording.from_bytes(data.getvalue(), recording_id="odd").to_cut()
    segment = SupervisionSegment("odd", "odd", 0, cut.duration, text="a tone")
    cut.id, cut.supervisions = "odd", [segment]
    write_shar([cut], folder, fields={"recording": "flac"}, shard_size=1)
    return folder


def first_batch(model: Any, shar: Path) -> dict[str, Any]:
    config = {"shar_path": str(shar), "batch_size": 1, "num_workers": 0}
    return next(iter(build_loader(config, model.parts.train_collator, path="train_ds")))


def test_other_audio_is_converted(model: Any, stereo_shar: Path) -> None:
    batch = first_batch(model, stereo_shar)
    assert batch["audio"].shape == (1, 1, 8000)
    assert model.parts.loss.loss_fn(batch)["loss"].isfinite()


def test_strict_audio_refuses_other_audio_with_both_values(
    build: Callable[..., Any], stereo_shar: Path
) -> None:
    with pytest.raises(DataError, match="cut odd: must have 1 channels, but has 2"):
        first_batch(build(strict_audio=True), stereo_shar)


def test_strict_audio_refuses_another_rate(
    build: Callable[..., Any], music_shar: Path, tmp_path: Path
) -> None:
    model = build(strict_audio=True)
    assert first_batch(model, music_shar)["audio"].shape[1] == 1
    write_clip(tmp_path / "shar", num_channels=1)
    with pytest.raises(DataError, match="cut odd: .*rate of 16000 Hz, but has 22050 Hz"):
        first_batch(model, tmp_path / "shar")


@pytest.mark.parametrize(
    ("begin", "message"),
    [
        (torch.full((1, 1600), nan), "audio without NaN and infinity"),
        (torch.full((1, 1600), inf), "audio without NaN and infinity"),
        (torch.zeros(2, 1600), r"audio \(1, length\), but is \(2, 1600\)"),
        (torch.zeros(1600), r"audio \(1, length\), but is \(1600,\)"),
        (torch.zeros(2, 4, dtype=torch.long), r"codes \(3, length\), but is \(2, 4\)"),
        (torch.zeros(1, 4, dtype=torch.long), r"codes \(3, length\), but is \(1, 4\)"),
        (torch.full((3, 4), -1), "codes from 0 to 31, but has -1 to -1"),
        (torch.full((3, 4), 32), "codes from 0 to 31, but has 32 to 32"),
        (torch.zeros(3, 10, dtype=torch.long), "shorter than `seconds` .10 frames., but has 10"),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused_with_its_row(
    model: Any, begin: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=f"of row 1 must be {message}"):
        model.generate_audio([ROW, ROW], begin=[None, begin], seconds=0.2)


@torch.no_grad()
def test_a_begin_longer_than_the_window_is_gone_on_from(model: Any) -> None:
    begin = torch.randint(32, (3, 40))
    fixed = {"seeds": 1, "window_seconds": 0.4, "stride_seconds": 0.1, "guidance_scale": 1.0}
    made = model.generate_audio([ROW], begin=[begin], seconds=1.0, **fixed)
    assert made.codes[0].shape == (3, 50)
    assert torch.equal(made.codes[0][:, :40], begin)


@pytest.mark.parametrize("seconds", [0.0, -1.0, nan, inf, [0.1, 0.0]])
def test_lengths_of_nothing_are_refused(model: Any, seconds: Any) -> None:
    with pytest.raises(ValueError, match="^`seconds` must be above 0 in every row"):
        model.generate_audio([ROW, ROW], seconds=seconds)


def test_conditions_must_be_one_for_each_row(model: Any) -> None:
    codes = torch.zeros(2, 3, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="^`metadata` must have one entry for each of 2 rows"):
        model.model(codes, metadata=[ROW])
    with pytest.raises(ValueError, match=r"prompt not found in batch metadata \(row 1"):
        model.model(codes, metadata=[ROW, {"text": "a"}])
    with pytest.raises(ValueError, match=r"prompt not found in batch metadata \(row 0"):
        model.generate_audio([{"text": "a"}], seconds=0.1)


@torch.no_grad()
def test_no_metadata_is_no_condition(model: Any) -> None:
    codes = torch.randint(32, (2, 3, 4))
    none = [{"text": None, "prompt": None}] * 2
    assert torch.equal(model.model(codes).logits, model.model(codes, metadata=none).logits)


def test_filling_in_between_two_recordings_is_not_asked_of_it(model: Any) -> None:
    with pytest.raises(ConfigError, match=r"`predict\.end` is not for a codec language model"):
        list(model.answer(PredictConfig(end=["a.wav"])))
