"""Making a codec from a folder of recordings: reading, fitting or training, measuring."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isnan, log2
from pathlib import Path
from random import Random

import soundfile
import torch
from lhotse.cut import Cut
from torch import Tensor, nn
from tqdm.auto import tqdm

from whalesong.core.errors import ConfigError, DataError
from whalesong.data.audio import load_audio
from whalesong.data.faults import Faults
from whalesong.data.shar_source import shar_shards
from whalesong.metrics.reconstruction import si_sdr, stoi
from whalesong.modules.codec.config import parse_fields
from whalesong.modules.codec.convnext_istft import ConvNextISTFTSizes
from whalesong.modules.codec.files import OwnCodec
from whalesong.modules.codec.mel_rvq import MelRVQSizes, fit_mel_rvq
from whalesong.modules.codec.spectrum import LogMel
from whalesong.modules.codec.training import CodecRecipe, train_convnext_codec
from whalesong.sound.wav import file_cut

FRAME_RATE = 50
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_MEASURED_SECONDS = 10


@dataclass(frozen=True)
class Quality:
    """How near the audio of a codec is to the original, on average over recordings."""

    mel_distance: float
    """Mean difference of log-mel magnitudes."""
    si_sdr: float
    """In dB; low where the phase is free, whatever the sound."""
    stoi: float
    """Intelligibility of speech, at most 1; not a number where all is too short or silent."""

    def __str__(self) -> str:
        parts = [f"mel distance {self.mel_distance:.3f}", f"SI-SDR {self.si_sdr:.1f} dB"]
        return ", ".join(parts if isnan(self.stoi) else [*parts, f"STOI {self.stoi:.3f}"])


def read_recordings(folder: Path, *, sample_rate: int, max_seconds: float) -> list[Tensor]:
    """Read recordings (N,) of a shar folder, or of all audio files under a folder.

    Args:
        sample_rate: rate in Hz of the result; channels are averaged.
        max_seconds: enough audio to stop reading.

    Raises:
        DataError: there is no audio, or some that cannot be read.
    """
    audio, seconds = [], 0.0
    with tqdm(total=max_seconds, desc="Reading", unit="s", leave=False) as bar:
        for cut in _cuts(folder):
            samples = load_audio(cut, sample_rate=sample_rate, channel_selector="average")
            audio.append(torch.from_numpy(samples))
            bar.update(len(samples) / sample_rate)
            seconds += len(samples) / sample_rate
            if seconds >= max_seconds:
                break
    if len(audio) < 2:
        raise DataError(f"{folder}: must hold at least 2 recordings, but holds {len(audio)}.")
    return audio


def split_recordings(audio: Sequence[Tensor], *, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Recordings to learn from, and a tenth of them, at most 20, to measure with."""
    order = Random(seed).sample(range(len(audio)), len(audio))
    count = min(max(len(audio) // 10, 1), 20)
    return [audio[index] for index in order[count:]], [audio[index] for index in order[:count]]


def make_codec(
    kind: str,
    audio: Sequence[Tensor],
    *,
    sample_rate: int,
    num_codebooks: int,
    codebook_size: int,
    recipe: CodecRecipe,
    hop_length: int | None = None,
    **sizes_of_kind: float,
) -> OwnCodec:
    """Fit a `mel_rvq` or train a `convnext_istft` codec.

    Args:
        audio: recordings (N,) at `sample_rate`.
        recipe: of the training; of `mel_rvq`, only the seed counts.
        hop_length: samples of a frame; None gives 50 frames a second.
        **sizes_of_kind: further sizes, see `MelRVQSizes` and `ConvNextISTFTSizes`.

    Raises:
        ConfigError: the audio is too short, or a size is out of range.
    """
    hop = hop_length or sample_rate // FRAME_RATE
    sizes = {
        "sample_rate": sample_rate,
        "hop_length": hop,
        "num_codebooks": num_codebooks,
        "codebook_size": codebook_size,
        **sizes_of_kind,
    }
    owner = f"a codec of type '{kind}'"
    try:
        if kind == "mel_rvq":
            mel_sizes = parse_fields(MelRVQSizes, {"n_fft": _window(hop), **sizes}, owner)
            return fit_mel_rvq(audio, mel_sizes, seed=recipe.seed)
        conv_sizes = parse_fields(ConvNextISTFTSizes, {"n_fft": 2 * hop, **sizes}, owner)
        return _train(audio, conv_sizes, recipe)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def measure_codec(codec: OwnCodec, audio: Sequence[Tensor]) -> Quality:
    """Compare recordings (N,), of each at most the first ten seconds, with what comes back."""
    rate = codec.sample_rate
    hop = rate // FRAME_RATE
    log_mel = LogMel(rate, n_fft=_window(hop), hop_length=hop, n_mels=80, floor=1e-4)
    rows = []
    for samples in audio:
        samples = samples[: _MEASURED_SECONDS * rate]
        back = reconstruct(codec, samples)
        padded = nn.functional.pad(torch.stack([samples, back]), (0, -len(samples) % hop))
        ours, theirs = log_mel(padded)
        pair = samples.double().numpy(), back.double().numpy()
        rows.append(((ours - theirs).abs().mean(), si_sdr(*pair), stoi(*pair, rate)))
    return Quality(*(_mean(column) for column in zip(*rows, strict=True)))


def reconstruct(codec: OwnCodec, samples: Tensor) -> Tensor:
    """Recording (N,) -> codes -> recording (N,)."""
    codes, _ = codec.encode(samples[None, None])
    return codec.decode(codes)[0, 0, : len(samples)]


def describe(codec: OwnCodec, audio: Sequence[Tensor]) -> str:
    """Sizes of a codec, and how long the recordings (N,) were that it is made from."""
    bits = codec.num_codebooks * codec.frame_rate * log2(codec.codebook_size)
    minutes = sum(map(len, audio)) / codec.sample_rate / 60
    return (
        f"{codec.num_codebooks} codebooks of {codec.codebook_size}, {codec.frame_rate:g} frames/s, "
        f"{bits / 1000:.1f} kbit/s, from {minutes:.1f} min of audio"
    )


def write_examples(codec: OwnCodec, audio: Sequence[Tensor], folder: Path) -> None:
    """Write `1_original.wav`, `1_codec.wav` and so on, to listen to."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, samples in enumerate(audio, 1):
        for name, data in (("original", samples), ("codec", reconstruct(codec, samples))):
            path = folder / f"{number}_{name}.wav"
            soundfile.write(path, data.numpy().clip(-1, 1), codec.sample_rate)


def _window(hop: int) -> int:
    """Samples of 64 ms, as many more than a hop as can be halved."""
    return hop + 2 * round(1.1 * hop)


def _train(audio: Sequence[Tensor], sizes: ConvNextISTFTSizes, recipe: CodecRecipe) -> OwnCodec:
    with tqdm(total=100, desc="Training", unit="%", leave=False) as bar:

        def show(share: float, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update(int(100 * share) - bar.n)

        return train_convnext_codec(audio, sizes, recipe, on_step=show)


def _cuts(folder: Path) -> Iterator[Cut]:
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder.")
    if any(folder.glob("cuts.*.jsonl*")):
        faults = Faults("raise")
        for shard in shar_shards(str(folder)):
            yield from shard.read(Random(0), faults)
        return
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in AUDIO_SUFFIXES:
            yield file_cut(path)


def _mean(values: Sequence[Tensor | float | None]) -> float:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")
