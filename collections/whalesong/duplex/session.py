"""`DuplexSession`: a conversation that is heard and answered piece by piece."""

import time
from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor

from whalesong.core.errors import ConfigError, DataError, UserError
from whalesong.data.turns import Turn
from whalesong.duplex.config import DuplexGeneration
from whalesong.duplex.decoding import check_length
from whalesong.duplex.model import DuplexModel
from whalesong.duplex.turn_decoder import TurnDecoder
from whalesong.modules.streaming_perception import StreamingPerception

MAX_TIMINGS = 7500
"""Frames whose times are kept, so that a session does not grow: ten minutes of 80 ms."""
PERCENTILES = (50, 95, 99)


class SessionStep(NamedTuple):
    """What the agent says to a piece of audio."""

    text: str
    """New text; the texts of all steps together are those of the turns, a space between them."""
    audio: Tensor
    """(m,): whole frames at the codec's rate, as far as no later frame changes them."""


class DuplexSession:
    """Hears the user's samples as they come and gives the agent's answer as early as it is settled.

    All steps together say what `offline_inference` says to the whole, however the samples are cut.
    With `attention_window`, and a codec that decodes without all of its past, memory and the time
    of a frame are constant.

    Args:
        model: the network, in evaluation mode, with an encoder that does not look ahead.
        tokenizer: NeMo's `AutoTokenizer` of the LLM.
        generation: how text and codes are drawn.

    Raises:
        ValueError: training mode, or a setting of perception that cannot stream.
    """

    def __init__(self, model: DuplexModel, *, tokenizer: Any, generation: DuplexGeneration) -> None:
        if model.training:
            raise ValueError("the model must be in evaluation mode for a session, but is training.")
        self._model = model
        self._perception = StreamingPerception(model.perception, model.counter)
        self._state = model.start(1, generation)
        self._words = TurnDecoder(tokenizer, model.ids, model.frame_length)
        self._audio_decoder = model.audio_codec.streaming_decoder()
        self._timing = _Timing(model.frame_length)
        self._num_samples = 0
        self._finished = False

    @property
    def turns(self) -> list[Turn]:
        """The agent's turns so far, with times; the last one may not have ended."""
        return self._words.turns

    @property
    def num_frames(self) -> int:
        """Frames that have been answered."""
        return self._state.num_frames

    def step(self, pcm: Tensor) -> SessionStep:
        """Hear some more samples.

        Args:
            pcm: (n,) at the rate of perception, in [-1, 1]; n may be anything, also 0.

        Returns:
            What is settled now: nothing, or the answer to one frame or more.

        Raises:
            DataError: another shape or type, or a sample that is no number.
            ConfigError: the conversation gets longer than the LLM's context.
            UserError: the session is finished.
        """
        self._check_open()
        pcm = check_pcm(pcm)
        started = time.perf_counter()
        self._num_samples += len(pcm)
        answer = self._answer(self._perception.push(pcm))
        self._timing.add(time.perf_counter() - started, self.num_frames)
        return answer

    def finish(self) -> SessionStep:
        """End the conversation; returns the answer to what was not settled yet.

        Raises:
            ConfigError: as `step`.
            UserError: the session is finished.
        """
        self._check_open()
        started = time.perf_counter()
        missing = self._model.counter.min_samples - self._num_samples
        silence = torch.zeros(max(missing, 0) if self._num_samples else 0)
        frames = [self._perception.push(silence), self._perception.finish()]
        text, audio = self._answer(torch.cat(frames))
        rest = self._audio_decoder.flush().mean(dim=1).flatten()
        self._finished = True
        self._timing.add(time.perf_counter() - started, self.num_frames)
        return SessionStep(text, torch.cat([audio, rest.to(audio.device)]))

    def report(self) -> str:
        """Real-time factor, and how long the computing of a frame took, in one line."""
        return self._timing.report()

    @torch.no_grad()
    def _answer(self, frames: Tensor) -> SessionStep:
        """Go on by these frames (f, D), but not beyond the frame of the last sample."""
        model = self._model
        begun = -(-self._num_samples // model.counter.samples_per_frame)
        frames = frames[: max(begun - self.num_frames, 0)] * model.user_channel_weight
        self._check_length(self.num_frames + len(frames))
        texts, pieces = [], [frames.new_zeros(0, dtype=torch.float32)]
        for frame in frames:
            token, codes = model.step(frame[None], self._state)
            texts.append(self._words.push(int(token)))
            decoded = self._audio_decoder.push(model.playable(codes[:, :, None]))
            pieces.append(decoded.mean(dim=1)[0])
        return SessionStep("".join(texts), torch.cat(pieces))

    def _check_open(self) -> None:
        if self._finished:
            raise UserError("a session must not be used after `finish`; start another one.")

    def _check_length(self, num_frames: int) -> None:
        try:
            check_length(self._model, num_frames)
        except ValueError as error:
            raise ConfigError(str(error)) from error


class _Timing:
    """How long frames take to compute; what a step takes that settles none goes to the next one."""

    def __init__(self, frame_length: float) -> None:
        self._frame_length = frame_length
        self._latest: deque[float] = deque(maxlen=MAX_TIMINGS)
        self._total = self._waiting = self._longest = 0.0
        self._num_frames = 0

    def add(self, seconds: float, num_frames: int) -> None:
        """Take the time of a step, after which there are `num_frames` frames."""
        self._total += seconds
        self._waiting += seconds
        new = num_frames - self._num_frames
        if new:
            each = self._waiting / new
            self._latest.extend([each] * min(new, MAX_TIMINGS))
            self._longest = max(self._longest, each)
            self._num_frames, self._waiting = num_frames, 0.0

    def report(self) -> str:
        """One line."""
        if not self._num_frames:
            return "no frame yet"
        times = torch.tensor(self._latest, dtype=torch.float64) * 1000
        quantiles = times.quantile(torch.tensor(PERCENTILES, dtype=torch.float64) / 100).tolist()
        spread = [f"p{p} {ms:.1f}" for p, ms in zip(PERCENTILES, quantiles, strict=True)]
        factor = self._total / (self._num_frames * self._frame_length)
        return (
            f"real-time factor {factor:.3f}, ms per frame of {1000 * self._frame_length:.0f} ms: "
            f"{', '.join(spread)}, max {1000 * self._longest:.1f}"
        )


def check_pcm(pcm: Tensor) -> Tensor:
    """The samples in fp32.

    Raises:
        DataError: another shape or type, or a sample that is no number.
    """
    if not isinstance(pcm, Tensor) or pcm.dim() != 1 or not pcm.is_floating_point():
        kind = f"{pcm.dtype} {tuple(pcm.shape)}" if isinstance(pcm, Tensor) else type(pcm).__name__
        raise DataError(f"`pcm` must be a tensor (n,) of floating-point samples, but is {kind}.")
    if not pcm.isfinite().all():
        index = int((~pcm.isfinite()).nonzero()[0])
        raise DataError(f"`pcm` must be finite, but is {pcm[index].item()} at index {index}.")
    return pcm.float()
