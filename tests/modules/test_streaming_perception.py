"""Perception piece by piece gives the frames of the whole, early, and in constant memory."""

import logging
import resource
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fixtures.memory import bytes_of_tensors
from torch import Tensor, nn

from whalesong.modules.adapters import QFormerAdapter, StackingMLPAdapter
from whalesong.modules.frames import FrameCounter
from whalesong.modules.perception import frame_counter
from whalesong.modules.streaming_perception import StreamingPerception

NEMO = "nemo.collections.speechlm2.modules.perception."
PREPROCESSOR = {
    "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
    "sample_rate": 16000, "normalize": "NA", "features": 16, "n_fft": 512, "window_size": 0.025,
    "window_stride": 0.01, "pad_to": 8,
}  # fmt: skip
ENCODER = {
    "_target_": "nemo.collections.asr.modules.ConformerEncoder",
    "feat_in": 16, "n_layers": 2, "d_model": 16, "n_heads": 2, "conv_kernel_size": 5,
    "subsampling": "dw_striding", "subsampling_factor": 8, "subsampling_conv_channels": 8,
    "causal_downsampling": True, "att_context_size": [6, 0], "conv_context_size": "causal",
    "conv_norm_type": "layer_norm",
}  # fmt: skip
IDENTITY = {"_target_": NEMO + "IdentityConnector", "d_model": 16}
MULTI_LAYER = {
    "_target_": NEMO + "MultiLayerProjectionConnector",
    "target_layer_ids": [0],
    "input_dim": 16,
    "output_dim": 12,
}
CASES: dict[str, dict[str, Any]] = {
    "causal convolutions": {},
    "convolutions": {"encoder": {"causal_downsampling": False, "subsampling": "striding"}},
    "stacking": {"encoder": {"subsampling": "stacking_norm"}},
    "no subsampling": {"encoder": {"subsampling_factor": 1}},
    "chunks": {"encoder": {"att_context_style": "chunked_limited", "att_context_size": [6, 2]}},
    "no past": {"encoder": {"att_context_size": [0, 0]}},
    "absolute positions": {"encoder": {"self_attention_model": "abs_pos"}},
    "batch norm": {"encoder": {"conv_norm_type": "batch_norm", "xscaling": False}},
    "narrow output": {"encoder": {"feat_out": 16, "d_model": 24}},
    "short window": {"preprocessor": {"window_size": 0.01, "n_fft": 256}},
    "wide window": {"preprocessor": {"window_size": 0.05, "n_fft": 1024, "preemph": None}},
    "conformer as adapter": {"adapter": {**ENCODER, "subsampling_factor": 1, "n_layers": 1}},
    "multi-layer adapter": {"adapter": MULTI_LAYER},
    "stacking adapter": {
        "encoder": {"subsampling_factor": 4},
        "module": StackingMLPAdapter(feat_in=16, output_dim=12, stacking_factor=2, hidden_dim=8),
    },
}
Build = Callable[..., nn.Module]


@pytest.fixture(scope="module")
def build() -> Build:
    from nemo.collections.speechlm2.modules.perception import AudioPerceptionModule
    from nemo.utils import logging as nemo_logging
    from omegaconf import OmegaConf

    nemo_logging.setLevel(logging.ERROR)

    def build(
        preprocessor: dict[str, Any] | None = None,
        encoder: dict[str, Any] | None = None,
        adapter: dict[str, Any] | None = None,
        module: nn.Module | None = None,
    ) -> nn.Module:
        torch.manual_seed(0)
        config = {
            "preprocessor": PREPROCESSOR | (preprocessor or {}),
            "encoder": ENCODER | (encoder or {}),
            "modality_adapter": adapter or IDENTITY,
            "output_dim": 12,
        }
        perception = AudioPerceptionModule(OmegaConf.create(config)).eval()
        if module is not None:
            perception.modality_adapter, perception.proj = module.eval(), nn.Identity()
        for parameter in perception.parameters():
            nn.init.normal_(parameter, mean=0.1, std=0.2)  # none at zero or one
        return perception

    return build


@torch.no_grad()
def whole(perception: nn.Module, audio: Tensor) -> Tensor:
    frames, lens = perception(
        input_signal=audio[None], input_signal_length=torch.tensor([len(audio)])
    )
    return frames[0, : int(lens)]


def cut(audio: Tensor, sizes: list[int]) -> Iterator[Tensor]:
    begin, turn = 0, 0
    while begin < len(audio):
        yield audio[begin : begin + sizes[turn % len(sizes)]]
        begin, turn = begin + sizes[turn % len(sizes)], turn + 1


def stream(perception: nn.Module, pieces: Iterator[Tensor]) -> Tensor:
    streaming = StreamingPerception(perception, frame_counter(perception))
    frames = torch.cat([*(streaming.push(piece) for piece in pieces), streaming.finish()])
    assert streaming.num_frames == len(frames)
    return frames


@pytest.mark.parametrize("case", CASES)
def test_pieces_give_the_frames_of_the_whole(case: str, build: Build) -> None:
    perception = build(**CASES[case])
    for num_samples in (1, 159, 1280, 1479, 5121, 33333):
        audio = 0.1 * torch.randn(num_samples)
        expected = whole(perception, audio)
        assert len(expected) == frame_counter(perception)(num_samples)
        for sizes in ([1280], [num_samples], [777, 1, 0, 5000]):
            torch.testing.assert_close(
                stream(perception, cut(audio, sizes)), expected, atol=1e-5, rtol=1e-4
            )


def test_single_samples_give_the_frames_of_the_whole(build: Build) -> None:
    perception, audio = build(), 0.1 * torch.randn(2000)
    frames = stream(perception, cut(audio, [1]))
    torch.testing.assert_close(frames, whole(perception, audio), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("encoder", "window", "behind"),
    [
        ({}, 0.025, 200),
        ({}, 0.02, 160),
        ({"subsampling": "stacking"}, 0.025, 1320),
        ({"subsampling": "stacking"}, 0.02, 1280),
    ],
)
def test_a_frame_comes_as_soon_as_it_is_settled(
    encoder: dict[str, Any], window: float, behind: int, build: Build
) -> None:
    perception = build(encoder=encoder, preprocessor={"window_size": window})
    streaming = StreamingPerception(perception, frame_counter(perception))
    streaming.push(torch.randn(5 * 1280 + behind - 1))
    assert streaming.num_frames == 5
    assert len(streaming.push(torch.randn(1))) == 1


def test_streams_of_one_encoder_do_not_meet(build: Build) -> None:
    perception = build(encoder={"conv_norm_type": "batch_norm"})
    audios = 0.1 * torch.randn(2, 20000)
    before = {name: value.clone() for name, value in perception.state_dict().items()}
    streams = [StreamingPerception(perception, frame_counter(perception)) for _ in audios]
    frames: list[list[Tensor]] = [[], []]
    for begin in range(0, 20000, 1280):
        for row, streaming in enumerate(streams):
            frames[row].append(streaming.push(audios[row, begin : begin + 1280]))
    for row, streaming in enumerate(streams):
        together = torch.cat([*frames[row], streaming.finish()])
        expected = whole(perception, audios[row])
        torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-4)
    for name, value in perception.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_ten_minutes_need_the_memory_of_one(build: Build) -> None:
    perception = build(encoder={"n_layers": 1})
    streaming = StreamingPerception(perception, frame_counter(perception))
    minute = 0.1 * torch.randn(60 * 16000)

    def push_minutes(count: int) -> tuple[int, int]:
        """Bytes of all tensors afterwards, and the peak of the process in KiB."""
        for piece in [*cut(minute, [12800])] * count:
            streaming.push(piece)
        return bytes_of_tensors(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    held, peak = push_minutes(1)
    held_later, peak_later = push_minutes(9)
    assert streaming.num_frames == 7500
    assert held_later <= held + 4096
    assert peak_later - peak < 10 * 1024


@pytest.mark.parametrize(
    ("changes", "setting", "value"),
    [
        ({"preprocessor": {"normalize": "per_feature"}}, "preprocessor.normalize", "per_feature"),
        ({"preprocessor": {"exact_pad": True}}, "preprocessor.exact_pad", "True"),
        ({"preprocessor": {"pad_to": 0}, "encoder": {"subsampling": "stacking"}},
         "preprocessor.pad_to", "0"),
        ({"encoder": {"att_context_size": [-1, -1]}}, "encoder.att_context_size", "[-1, -1]"),
        ({"encoder": {"att_context_size": [-1, 0]}}, "encoder.att_context_size", "[-1, 0]"),
        ({"encoder": {"att_context_size": [6, 1]}}, "encoder.att_context_size", "[6, 1]"),
        ({"encoder": {"conv_context_size": None}}, "encoder.conv_context_size", "[2, 2]"),
        ({"encoder": {"conv_norm_type": "group_norm4"}}, "encoder.conv_norm_type", "group_norm4"),
        ({"encoder": {"subsampling": "vggnet"}}, "encoder.subsampling", "vggnet"),
        ({"encoder": {"self_attention_model": "rel_pos_local_attn", "att_context_size": [6, 6]}},
         "encoder.self_attention_model", "rel_pos_local_attn"),
        ({"encoder": {"reduction": "pooling", "reduction_factor": 2, "reduction_position": 0}},
         "encoder.reduction", "SubsamplingReductionModule"),
        ({"adapter": {**ENCODER, "subsampling_factor": 1, "att_context_size": [-1, -1]}},
         "modality_adapter.att_context_size", "[-1, -1]"),
        ({"module": QFormerAdapter(feat_in=16, output_dim=12)}, "modality_adapter", "QFormer"),
    ],
)  # fmt: skip
def test_what_cannot_stream_is_refused_by_name(
    changes: dict[str, Any], setting: str, value: str, build: Build
) -> None:
    perception = build(**changes)
    counter = FrameCounter(frame_counter(build()).features, (), 16000)
    with pytest.raises(ValueError) as caught:
        StreamingPerception(perception, counter)
    message = str(caught.value)
    assert message.startswith(f"`perception.{setting}` must be ") and value in message


def test_misuse_is_refused(build: Build) -> None:
    perception = build()
    counter = frame_counter(perception)
    with pytest.raises(ValueError, match="evaluation mode"):
        StreamingPerception(perception.train(), counter)
    streaming = StreamingPerception(perception.eval(), counter)
    with pytest.raises(ValueError, match=r"must be \(N,\), but is \(1, 5\)"):
        streaming.push(torch.zeros(1, 5))
    streaming.finish()
    with pytest.raises(ValueError, match="after `finish`"):
        streaming.push(torch.zeros(5))
