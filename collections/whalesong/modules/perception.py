"""From waveforms to frames in the embedding space of an LLM, by NeMo's `AudioPerceptionModule`."""

import torch
from torch import Tensor, nn

from whalesong.modules.frames import (
    FrameCounter,
    Queries,
    Strided,
    encoder_stages,
    feature_stage,
    mask_from_lens,
)


def frame_counter(perception: nn.Module) -> FrameCounter:
    """Read the frame counter off a live `AudioPerceptionModule`.

    Raises:
        ValueError: the adapter has neither `stages` nor a layout that is known here.
    """
    featurizer = perception.preprocessor.featurizer
    stages = (*encoder_stages(perception.encoder), *adapter_stages(perception.modality_adapter))
    return FrameCounter(feature_stage(featurizer), stages, int(featurizer.sample_rate))


def adapter_stages(adapter: nn.Module) -> tuple[Strided | Queries, ...]:
    """How a modality adapter changes the number of frames."""
    from nemo.collections.speechlm2.modules import perception as nemo

    if hasattr(adapter, "stages"):
        return adapter.stages
    if isinstance(adapter, nemo.IdentityConnector | nemo.MultiLayerProjectionConnector):
        return ()
    if hasattr(adapter, "pre_encode"):
        return encoder_stages(adapter)
    raise ValueError(
        f"`modality_adapter` must tell how it changes the number of frames by a `stages` property, "
        f"but {type(adapter).__name__} has none."
    )


def encode_audio(
    perception: nn.Module, audio: Tensor, audio_lens: Tensor, counter: FrameCounter
) -> Tensor:
    """Encode a batch of waveforms into one row per frame, in reading order.

    Audio longer than `counter.chunk_samples` is encoded in overlapping pieces in the same batch.

    Args:
        perception: NeMo's `AudioPerceptionModule`.
        audio: waveforms (A, N), fp32.
        audio_lens: samples of each (A,).
        counter: its frame counter.

    Returns:
        Frames of all audios one after another, (sum of F, D).
    """
    if counter.chunk_samples is None or audio.shape[1] <= counter.chunk_samples:
        encoded, lens = perception(input_signal=audio, input_signal_length=audio_lens)
        return encoded[mask_from_lens(lens, encoded.shape[1])]
    pieces, spans = [], []
    for row, length in zip(audio, audio_lens.tolist(), strict=True):
        for begin, end, skip, keep in counter.chunks(length):
            pieces.append(row[begin:end])
            spans.append((skip, skip + keep))
    lens = torch.tensor([len(piece) for piece in pieces], device=audio_lens.device)
    batch = nn.utils.rnn.pad_sequence(pieces, batch_first=True)
    encoded, _ = perception(input_signal=batch, input_signal_length=lens)
    return torch.cat(
        [frames[begin:end] for frames, (begin, end) in zip(encoded, spans, strict=True)]
    )


def settle_modes(llm: nn.Module, perception: nn.Module, *, training: bool) -> None:
    """Put what is frozen into evaluation mode: no dropout, dither or BatchNorm statistics."""
    if not training:
        return
    for part in (llm, perception.encoder):
        if is_frozen(part):
            part.eval()
    if is_frozen(perception.encoder):
        perception.preprocessor.eval()


def is_frozen(module: nn.Module) -> bool:
    """No parameter of it is trained."""
    return not any(parameter.requires_grad for parameter in module.parameters())
