"""The recipe of `ConvNextISTFTCodec`: from recordings to a codec in minutes on a CPU."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whalesong.modules.codec.convnext_istft import ConvNextISTFTCodec, ConvNextISTFTSizes
from whalesong.modules.codec.quantizer import CodebookLearner
from whalesong.modules.codec.spectrum import ShortTimeFourier

_RISING_STEPS = 50
_LOSS_WINDOWS = (2048, 1024, 512, 256)
_LOG_FLOOR = 1e-2
_LONGEST_WARMUP = 0.25


@dataclass(frozen=True, kw_only=True)
class CodecRecipe:
    """How a codec is trained.

    Attributes:
        num_steps: optimizer steps.
        max_seconds: end earlier, after this much wall clock; the learning rate follows.
        batch_size: crops of recordings in a step.
        crop_frames: frames of a crop.
        learning_rate: after a short rise; it falls to zero along a cosine.
        warmup_steps: first steps without the quantizer, so that k-means finds sensible vectors; at
            most a quarter of the training.
        start_crops: crops whose vectors the codebooks start from.
        waveform_weight: of the distance of samples at the beginning; phases are learned from it.
        final_waveform_weight: the same at the end; it changes evenly.
        magnitude_weight: of the distance of spectral magnitudes.
        log_weight: of the distance of their logarithms, which sees soft sounds.
        commitment_weight: of the distance between vectors and their quantized ones.
        cut_probability: share of steps that use a random number of codebooks, so that fewer of
            them can be used later.
        seed: of all draws.
    """

    num_steps: int = 2500
    max_seconds: float | None = None
    batch_size: int = 4
    crop_frames: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 150
    start_crops: int = 256
    waveform_weight: float = 40.0
    final_waveform_weight: float = 10.0
    magnitude_weight: float = 8.0
    log_weight: float = 0.2
    commitment_weight: float = 1.0
    cut_probability: float = 0.1
    seed: int = 0


def train_convnext_codec(
    audio: Sequence[Tensor],
    sizes: ConvNextISTFTSizes,
    recipe: CodecRecipe | None = None,
    *,
    on_step: Callable[[float, float], None] | None = None,
) -> ConvNextISTFTCodec:
    """Train a codec on recordings.

    Args:
        audio: recordings (N,) at the sample rate of `sizes`, of any length.
        sizes: of the codec.
        recipe: of the training; None takes the defaults.
        on_step: called after each step with the share of the training that is done, and the loss.

    Returns:
        The codec, frozen. Equal arguments give an equal one, unless `max_seconds` ended it.

    Raises:
        ValueError: no recording, or too few vectors to start the codebooks from.
    """
    recipe = recipe or CodecRecipe()
    training = _Training(audio, sizes, recipe)
    began = time.monotonic()
    for step in range(recipe.num_steps):
        share = step / recipe.num_steps
        if recipe.max_seconds is not None:
            share = max(share, (time.monotonic() - began) / recipe.max_seconds)
        if share >= 1:
            break
        loss = training.step(step, share)
        if on_step is not None:
            on_step(share, loss)
    return training.finish()


class ReconstructionLoss(nn.Module):
    """Distance of samples, of magnitudes and of their logarithms at four time scales."""

    def __init__(self, *, magnitude_weight: float, log_weight: float) -> None:
        super().__init__()
        self.magnitude_weight = magnitude_weight
        self.log_weight = log_weight
        self.transforms = nn.ModuleList(
            ShortTimeFourier(n_fft, n_fft // 4) for n_fft in _LOSS_WINDOWS
        )

    def forward(self, audio: Tensor, target: Tensor, *, waveform_weight: float) -> Tensor:
        """The loss of audio (B, N) that should be `target` (B, N)."""
        loss = waveform_weight * (audio - target).abs().mean()
        for transform in self.transforms:
            ours, theirs = transform(audio).abs(), transform(target).abs()
            # The magnitudes of noise grow with the root of the window.
            weight = self.magnitude_weight / transform.window.sum().sqrt()
            loss = loss + weight * (ours - theirs).abs().mean()
            logarithms = (ours + _LOG_FLOOR).log() - (theirs + _LOG_FLOOR).log()
            loss = loss + self.log_weight * logarithms.abs().mean()
        return loss


class _Training:
    """A codec and what it takes to train it."""

    def __init__(
        self, audio: Sequence[Tensor], sizes: ConvNextISTFTSizes, recipe: CodecRecipe
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.codec = ConvNextISTFTCodec(sizes).requires_grad_()
        self._recipe = recipe
        self._crops = _Crops(audio, recipe.crop_frames * sizes.hop_length, seed=recipe.seed)
        self._draws = torch.Generator().manual_seed(recipe.seed)
        self._learner = CodebookLearner(self.codec.quantizer, seed=recipe.seed)
        self._loss = ReconstructionLoss(
            magnitude_weight=recipe.magnitude_weight, log_weight=recipe.log_weight
        )
        self._quantizes = False
        self._optimizer = torch.optim.AdamW(
            self.codec.parameters(), lr=recipe.learning_rate, betas=(0.8, 0.99), weight_decay=1e-3
        )

    def step(self, step: int, share: float) -> float:
        """One optimizer step when `share` of the training is done; the loss."""
        if step >= self._recipe.warmup_steps or share >= _LONGEST_WARMUP:
            self._start_codebooks()
        rising = min(1.0, (step + 1) / _RISING_STEPS)
        for group in self._optimizer.param_groups:
            falling = 0.5 + 0.5 * math.cos(math.pi * share)
            group["lr"] = self._recipe.learning_rate * rising * falling
        loss = self._batch_loss(share)
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.codec.parameters(), 1.0)
        self._optimizer.step()
        return float(loss.detach())

    def finish(self) -> ConvNextISTFTCodec:
        """The codec, frozen."""
        self._start_codebooks()
        return self.codec.requires_grad_(False)

    def _batch_loss(self, share: float) -> Tensor:
        recipe = self._recipe
        target = self._crops.draw(recipe.batch_size)
        vectors = self.codec.latents(target)
        commitment = vectors.new_zeros(())
        if self._quantizes:
            vectors, commitment = self._learner(vectors, num_codebooks=self._num_codebooks())
        change = recipe.final_waveform_weight - recipe.waveform_weight
        loss = self._loss(
            self.codec.synthesize(vectors),
            target,
            waveform_weight=recipe.waveform_weight + share * change,
        )
        return loss + recipe.commitment_weight * commitment

    @torch.no_grad()
    def _start_codebooks(self) -> None:
        if self._quantizes:
            return
        vectors = self.codec.latents(self._crops.draw(self._recipe.start_crops))
        self._learner.start(vectors.flatten(0, 1))
        self._quantizes = True

    def _num_codebooks(self) -> int:
        """All, or in some of the steps a random number."""
        most = self.codec.num_codebooks
        if float(torch.rand((), generator=self._draws)) >= self._recipe.cut_probability:
            return most
        return int(torch.randint(1, most + 1, (), generator=self._draws))


class _Crops:
    """Random pieces of recordings, which stand one behind the other."""

    def __init__(self, audio: Sequence[Tensor], length: int, *, seed: int) -> None:
        if not audio:
            raise ValueError("Training needs recordings, but there are none.")
        samples = torch.cat([recording.float() for recording in audio])
        self._samples = nn.functional.pad(samples, (0, max(length - len(samples), 0)))
        self._length = length
        self._draws = torch.Generator().manual_seed(seed)

    def draw(self, count: int) -> Tensor:
        """(count, length)"""
        last = len(self._samples) - self._length
        begins = torch.randint(last + 1, (count,), generator=self._draws).tolist()
        return torch.stack([self._samples[begin : begin + self._length] for begin in begins])
