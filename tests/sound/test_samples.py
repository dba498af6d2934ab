"""Samples in the logs: read back from the event file, and given to W&B as it wants them."""

import io
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from whalesong.sound.samples import log_samples, spectrogram_image

RATE = 16000


def tone(frequency: float, *, channels: int = 1, seconds: float = 0.5) -> torch.Tensor:
    time = torch.arange(int(seconds * RATE)) / RATE
    return 0.5 * torch.sin(2 * math.pi * frequency * time).repeat(channels, 1)


def events(folder: Path) -> EventAccumulator:
    read = EventAccumulator(str(folder), size_guidance={"audio": 0, "images": 0, "tensors": 0})
    return read.Reload()


def test_audio_picture_and_caption_are_in_the_event_file(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    audio = torch.cat([tone(440), 3 * tone(440)])
    for step in (10, 20):
        log_samples([logger], "samples/0", audio, RATE, step=step, caption="a $low_ tone")
    logger.experiment.flush()
    read = events(tmp_path)
    assert [event.step for event in read.Audio("samples/0/audio")] == [10, 20]
    heard, rate = soundfile.read(io.BytesIO(read.Audio("samples/0/audio")[0].encoded_audio_string))
    assert rate == RATE
    assert np.allclose(heard, audio.clamp(-1, 1).mean(dim=0).numpy(), atol=1e-4)
    picture = imread(io.BytesIO(read.Images("samples/0/spectrogram")[1].encoded_image_string))
    assert picture.shape == (300, 800, 3)
    text = read.Tensors("samples/0/caption/text_summary")[0]
    assert text.tensor_proto.string_val == [b"a $low_ tone"]


def test_wandb_gets_all_channels_with_rate_and_caption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    log_samples([logger], "samples/0", tone(440, channels=2), RATE, step=7, caption="a low tone")
    summary = dict(logger.experiment.summary)
    logger.experiment.finish()
    assert summary["trainer/global_step"] == 7
    (path,) = tmp_path.rglob("*.wav")
    samples, rate = soundfile.read(path)
    assert (rate, samples.shape) == (RATE, (8000, 2))
    (picture,) = tmp_path.rglob("*.png")
    assert imread(picture).shape == (300, 800, 3)
    assert summary["samples/0/audio"]["captions"] == ["a low tone"]


def brightest_row(picture: np.ndarray) -> int:
    """The height of the brightest line inside the axes."""
    inside = picture[50:230, 150:700].astype(float).sum(axis=(1, 2))
    return int(inside.argmax())


def test_the_picture_shows_frequency_upwards() -> None:
    low, high = (spectrogram_image(tone(f), RATE) for f in (1000, 6000))
    assert low.dtype == np.uint8
    assert brightest_row(high) < brightest_row(low) - 50


@pytest.mark.parametrize("audio", [torch.zeros(1, 8000), tone(440, seconds=0.001)])
def test_silence_and_short_audio_can_be_drawn(audio: torch.Tensor) -> None:
    assert spectrogram_image(audio, RATE, title="word " * 100).shape == (300, 800, 3)


def test_broken_samples_cost_a_warning_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    logger = TensorBoardLogger(tmp_path, name="", version="")
    log_samples([logger], "samples/0", torch.full((1, 100), float("nan")), RATE, step=1)
    assert "sample 'samples/0' holds NaN" in caplog.text
    with pytest.raises(ValueError, match=r"must be \(C, N\), but has the shape \(100,\)"):
        log_samples([logger], "samples/0", torch.zeros(100), RATE, step=1)


def test_other_loggers_are_passed_over(tmp_path: Path) -> None:
    log_samples([CSVLogger(tmp_path)], "samples/0", tone(440), RATE, step=1)
    assert not list(tmp_path.rglob("*.wav"))
