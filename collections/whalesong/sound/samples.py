"""Generated audio in TensorBoard and W&B, to be heard and, as a spectrogram, seen."""

import logging
from collections.abc import Iterable

import numpy as np
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

_LOG = logging.getLogger(__name__)
_DYNAMIC_RANGE = 80.0
"""Decibels below the loudest point that a picture shows."""


def log_samples(
    loggers: Iterable[Logger],
    tag: str,
    audio: Tensor,
    sample_rate: int,
    *,
    step: int,
    caption: str = "",
) -> None:
    """Log one sample as audio `<tag>/audio`, picture `<tag>/spectrogram`, and its caption.

    Loggers other than TensorBoard and W&B are passed over. A sample with NaN or infinity costs a
    warning, not the training.

    Args:
        loggers: those of the trainer.
        tag: name of the sample, the same at each step so that steps can be compared.
        audio: (C, N); TensorBoard gets the mean of the channels. Clipped to -1 ... 1.
        sample_rate: its rate in Hz.
        step: the training step.
        caption: what was asked for.

    Raises:
        ValueError: the audio is empty or not (C, N).
    """
    if audio.dim() != 2 or audio.numel() == 0:
        raise ValueError(f"`audio` must be (C, N), but has the shape {tuple(audio.shape)}.")
    audio = audio.detach().float().cpu()
    if not audio.isfinite().all():
        _LOG.warning("sample '%s' holds NaN or infinity and is not logged", tag)
        return
    audio = audio.clamp(-1, 1)
    wanted = [logger for logger in loggers if isinstance(logger, TensorBoardLogger | WandbLogger)]
    picture = spectrogram_image(audio, sample_rate, title=caption) if wanted else None
    for logger in wanted:
        if isinstance(logger, TensorBoardLogger):
            writer = logger.experiment
            writer.add_audio(f"{tag}/audio", audio.mean(dim=0), step, sample_rate)
            writer.add_image(f"{tag}/spectrogram", picture, step, dataformats="HWC")
            writer.add_text(f"{tag}/caption", caption, step)
        else:
            waves = [audio.T.numpy()]
            logger.log_audio(
                f"{tag}/audio", waves, step, sample_rate=[sample_rate], caption=[caption]
            )
            logger.log_image(f"{tag}/spectrogram", [picture], step, caption=[caption])


def spectrogram_image(audio: Tensor, sample_rate: int, *, title: str = "") -> np.ndarray:
    """Draw the spectrogram of the mean of the channels: seconds by kHz, 80 dB deep.

    Args:
        audio: (C, N).
        sample_rate: its rate in Hz.
        title: written above it, shortened to one line.

    Returns:
        RGB picture (height, width, 3), uint8.
    """
    figure = Figure(figsize=(8, 3), dpi=100, layout="tight")
    canvas = FigureCanvasAgg(figure)  # not `pyplot`, whose figures are global and stay in memory
    axes = figure.add_subplot()
    decibels = _decibels(audio.mean(dim=0))
    extent = (0, audio.shape[1] / sample_rate, 0, sample_rate / 2000)
    axes.imshow(
        decibels, origin="lower", aspect="auto", extent=extent, vmin=-_DYNAMIC_RANGE, vmax=0
    )
    axes.set_xlabel("s")
    axes.set_ylabel("kHz")
    line = " ".join(title.split())
    axes.set_title(line if len(line) <= 90 else f"{line[:87]}...", parse_math=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _decibels(samples: Tensor, *, fft_size: int = 1024) -> np.ndarray:
    """Power below the loudest point, (frequencies, frames), from -80 to 0; silence is -80."""
    spectrum = torch.stft(
        torch.nn.functional.pad(samples, (0, max(fft_size - len(samples), 0))),
        fft_size,
        hop_length=fft_size // 4,
        window=torch.hann_window(fft_size),
        pad_mode="constant",
        return_complex=True,
    )
    power = spectrum.abs().square()
    relative = 10 * (power.clamp_min(1e-12) / power.max().clamp_min(1e-4)).log10()
    return relative.clamp(min=-_DYNAMIC_RANGE, max=0).numpy()
