"""From raw samples, as they come, to the frames of NeMo's `AudioPerceptionModule`."""

import torch
from torch import Tensor, nn

from whalesong.modules.adapters import StackingMLPAdapter
from whalesong.modules.frames import FrameCounter
from whalesong.modules.streaming_conformer import ConformerStream, Groups, Stage, each

BLOCK_SECONDS = 1.0
"""Longer pieces are cut, so that memory does not depend on them."""


class StreamingPerception:
    """Perception piece by piece: all frames together are those of `perception` on the whole.

    A frame comes out as soon as no later sample can change it. With subsampling by causal
    convolutions that is `window_size / 2` behind its begin; with stacking, it is
    `window_size / 2 - window_stride` behind its end: a `window_size` of twice the stride makes it
    come with its last sample.

    Args:
        perception: NeMo's `AudioPerceptionModule`, in evaluation mode; it keeps no state.
        counter: its frame counter.

    Attributes:
        num_frames: frames given so far.

    Raises:
        ValueError: a setting with which frames would wait for the end, or memory would grow.
    """

    def __init__(self, perception: nn.Module, counter: FrameCounter) -> None:
        if perception.training:
            raise ValueError("`perception` must be in evaluation mode to stream, but is training.")
        self._sample_rate = counter.sample_rate
        self._stages = perception_stages(perception, counter)
        self._finished = False
        self.num_frames = 0

    def push(self, samples: Tensor) -> Tensor:
        """Take samples (N,), which may be none; return the frames (f, D) that are settled.

        Raises:
            ValueError: another shape, or after `finish`.
        """
        if samples.dim() != 1:
            raise ValueError(f"`samples` must be (N,), but is {tuple(samples.shape)}.")
        blocks = samples.split(round(BLOCK_SECONDS * self._sample_rate))
        return torch.cat([self._advance(block, last=False) for block in blocks])

    def finish(self) -> Tensor:
        """Return the frames (f, D) that were waiting for samples that did not come.

        Raises:
            ValueError: called twice.
        """
        frames = self._advance(torch.zeros(0), last=True)
        self._finished = True
        return frames

    @torch.no_grad()
    def _advance(self, samples: Tensor, *, last: bool) -> Tensor:
        if self._finished:
            raise ValueError("the stream must not be used after `finish`, but is.")
        frames = samples
        for stage in self._stages:
            frames = stage(frames, last)
        self.num_frames += frames.shape[1]
        return frames[0]


class MelStream:
    """NeMo's mel front end on pieces of audio, each with the little past that its windows need.

    Args:
        preprocessor: `AudioToMelSpectrogramPreprocessor`.
        counter: counts its frames.

    Raises:
        ValueError: a setting with which features depend on the whole audio.
    """

    def __init__(self, preprocessor: nn.Module, counter: FrameCounter) -> None:
        featurizer = preprocessor.featurizer
        check_features(featurizer)
        half, window = featurizer.n_fft // 2, featurizer.win_length
        self._preprocessor, self._count = preprocessor, counter.features
        self._width = featurizer.nfilt
        self._hop = featurizer.hop_length
        # Samples behind the begin of a frame that its window reaches, centred in the transform.
        self._reach = (featurizer.n_fft - window) // 2 + window - half
        self._context = half // self._hop + 1  # frames; one sample more for preemphasis
        self._samples = featurizer.fb.new_zeros(0, dtype=torch.float32)
        self._begin = 0
        self._done = 0

    def __call__(self, samples: Tensor, last: bool) -> Tensor:
        """Map samples (N,) to the settled mel frames (1, t, C)."""
        self._samples = torch.cat([self._samples, samples.to(self._samples)])
        ready = max(self._ready(self._begin + len(self._samples), last), self._done)
        if ready == self._done:
            return self._preprocessor.dtype_sentinel_tensor.new_zeros(1, 0, self._width)
        lens = torch.tensor([len(self._samples)], device=self._samples.device)
        features, _ = self._preprocessor(input_signal=self._samples[None], length=lens)
        first = self._begin // self._hop
        frames = features[:, :, self._done - first : ready - first].transpose(1, 2)
        self._forget(ready)
        return frames

    def _ready(self, num_samples: int, last: bool) -> int:
        """How many frames cannot change any more."""
        counted = self._count(num_samples)
        return counted if last else min(counted, (num_samples - self._reach) // self._hop + 1)

    def _forget(self, done: int) -> None:
        begin = max(done - self._context, 0) * self._hop
        self._samples = self._samples[begin - self._begin :].clone()
        self._begin, self._done = begin, done


def check_features(featurizer: nn.Module) -> None:
    """Refuse features that depend on the whole audio.

    Raises:
        ValueError: names the setting and what it must be.
    """
    normalize = featurizer.normalize
    if normalize in ("per_feature", "all_features") or "fixed_mean" in (normalize or ""):
        raise ValueError(
            f"`perception.preprocessor.normalize` must be 'NA' to stream, but is {normalize!r}."
        )
    for name, value in (("exact_pad", False), ("frame_splicing", 1)):
        if getattr(featurizer, name) != value:
            raise ValueError(
                f"`perception.preprocessor.{name}` must be {value} to stream, "
                f"but is {getattr(featurizer, name)}."
            )


def perception_stages(perception: nn.Module, counter: FrameCounter) -> list[Stage]:
    """All of perception as stages, from samples (N,) to frames (1, f, D).

    Raises:
        ValueError: a part or a setting that cannot stream.
    """
    from nemo.collections.asr.modules import ConformerEncoder
    from nemo.collections.speechlm2.modules import perception as nemo

    encoder, adapter = perception.encoder, perception.modality_adapter
    if not isinstance(encoder, ConformerEncoder):
        raise ValueError(
            f"`perception.encoder` must be a ConformerEncoder to stream, "
            f"but is a {type(encoder).__name__}."
        )
    check_stacking(perception)
    options = {}
    if isinstance(adapter, nemo.MultiLayerProjectionConnector):
        layers = perception.encoder_multilayer
        options = {"taps": layers.layer_idx_list, "with_final": layers.include_final_output}
    return [
        MelStream(perception.preprocessor, counter),
        ConformerStream(encoder, "perception.encoder", **options),
        *adapter_stages(adapter),
        each(perception.proj),
    ]


def adapter_stages(adapter: nn.Module) -> list[Stage]:
    """A modality adapter as stages.

    Raises:
        ValueError: an adapter that looks at more than a few neighbouring frames.
    """
    from nemo.collections.asr.modules import ConformerEncoder
    from nemo.collections.speechlm2.modules import perception as nemo

    if isinstance(adapter, nemo.IdentityConnector):
        return []
    if isinstance(adapter, nemo.MultiLayerProjectionConnector):
        return [each(adapter.proj)]
    if isinstance(adapter, StackingMLPAdapter):
        return [Groups(adapter.stacking_factor, keep_rest=True), each_group(adapter)]
    if isinstance(adapter, ConformerEncoder):
        return [ConformerStream(adapter, "perception.modality_adapter")]
    raise ValueError(
        f"`perception.modality_adapter` must be an IdentityConnector, a StackingMLPAdapter, a "
        f"MultiLayerProjectionConnector or a causal ConformerEncoder to stream, "
        f"but is a {type(adapter).__name__}."
    )


def check_stacking(perception: nn.Module) -> None:
    """Refuse features whose padding decides how many stacks there are.

    Raises:
        ValueError: names the setting and what it must be.
    """
    encoder, pad_to = perception.encoder, perception.preprocessor.featurizer.pad_to
    front, factor = encoder.pre_encode, encoder.subsampling_factor
    if isinstance(front, nn.Linear) or hasattr(front, "_sampling_num"):
        return
    if not isinstance(pad_to, int) or pad_to < 1 or pad_to % factor:
        raise ValueError(
            f"`perception.preprocessor.pad_to` must be a multiple of "
            f"`perception.encoder.subsampling_factor` ({factor}) to stream, but is {pad_to}."
        )


def each_group(adapter: nn.Module) -> Stage:
    """A stage that calls an adapter, which wants (1, D, f), with whole groups of frames."""

    def stage(frames: Tensor, last: bool) -> Tensor:
        lens = torch.tensor([frames.shape[1]], device=frames.device)
        return adapter(frames.transpose(1, 2), lens)[0].transpose(1, 2)

    return stage
