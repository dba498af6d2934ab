"""The frame counter tells, from lengths alone, what perception gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from whalesong.modules.adapters import StackingMLPAdapter
from whalesong.modules.frames import FrameCounter, Strided, mask_from_lens
from whalesong.modules.perception import encode_audio, frame_counter

NEMO = "nemo.collections.speechlm2.modules.perception."
ADAPTERS = {
    "identity": {"_target_": NEMO + "IdentityConnector", "d_model": None},
    "mlp": {
        "_target_": "whalesong.modules.adapters.StackingMLPAdapter",
        "feat_in": None,
        "output_dim": None,
        "stacking_factor": 3,
    },
    "conformer": {
        "_target_": "nemo.collections.asr.modules.ConformerEncoder",
        "feat_in": None, "feat_out": -1, "n_layers": 1, "d_model": 64, "n_heads": 4,
        "subsampling": "dw_striding", "subsampling_factor": 2, "subsampling_conv_channels": 8,
    },
    "qformer": {
        "_target_": "whalesong.modules.adapters.QFormerAdapter",
        "feat_in": None, "output_dim": None, "num_queries": 5,
    },
    "qformer over windows": {
        "_target_": "whalesong.modules.adapters.QFormerAdapter",
        "feat_in": None, "output_dim": None, "num_queries": 2, "window_frames": 4,
    },
    "multi-layer": {
        "_target_": NEMO + "MultiLayerProjectionConnector",
        "target_layer_ids": [0],
        "input_dim": None,
        "output_dim": None,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=list(ADAPTERS))
def perception(request: pytest.FixtureRequest, build_salm: Callable[..., Any]) -> Any:
    adapter = dict(ADAPTERS[request.param])
    return build_salm(perception={"modality_adapter": adapter}).model.perception


@torch.no_grad()
def test_counts_equal_what_perception_gives(perception: Any) -> None:
    counter = frame_counter(perception)
    first = counter.min_samples
    for begin in range(first, first + 4000, 1600):
        lens = torch.arange(begin, begin + 1600, 137)
        audio = torch.randn(len(lens), int(lens.max()))
        _, frames = perception(input_signal=audio, input_signal_length=lens)
        assert frames.tolist() == [counter(n) for n in lens.tolist()]


@torch.no_grad()
def test_rows_come_in_reading_order_and_do_not_depend_on_their_batch(perception: Any) -> None:
    counter = frame_counter(perception)
    audios = [torch.randn(n) * 0.1 for n in (16000, 9000, 12345)]
    lens = torch.tensor([len(audio) for audio in audios])
    batch = torch.nn.utils.rnn.pad_sequence(audios, batch_first=True)
    together = encode_audio(perception, batch, lens, counter)
    alone = [encode_audio(perception, a[None], torch.tensor([len(a)]), counter) for a in audios]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_long_audio_in_chunks_has_the_counted_frames(perception: Any) -> None:
    whole = frame_counter(perception)
    chunked = whole.in_chunks(chunk_seconds=1.0, context_seconds=0.25)
    for num_samples in (15000, 47000, 53211, 64000):
        audio, lens = torch.randn(1, num_samples), torch.tensor([num_samples])
        rows = encode_audio(perception, audio, lens, chunked)
        assert len(rows) == chunked(num_samples)
        if not whole.has_queries:
            assert len(rows) == whole(num_samples)


def test_context_makes_chunks_alike_the_whole(build_salm: Callable[..., Any]) -> None:
    perception = build_salm().model.perception
    counter = frame_counter(perception)
    audio, lens = torch.randn(1, 64000) * 0.1, torch.tensor([64000])

    def difference(context: float) -> float:
        chunked = counter.in_chunks(chunk_seconds=1.0, context_seconds=context)
        with torch.no_grad():
            rows = encode_audio(perception, audio, lens, chunked)
            return float((rows - encode_audio(perception, audio, lens, counter)).abs().mean())

    assert difference(4.0) < 1e-5 < difference(1.0) < difference(0.0)


def test_chunks_cover_the_audio_once() -> None:
    counter = FrameCounter(Strided(400, 160, 400), (Strided(3, 2, 2),) * 3, 16000)
    chunked = counter.in_chunks(chunk_seconds=2.0, context_seconds=0.5)
    for num_samples in range(20000, 150000, 7777):
        pieces = chunked.chunks(num_samples)
        assert sum(keep for *_, keep in pieces) == counter(num_samples)
        assert pieces[0][0] == 0 and pieces[-1][1] == num_samples


def test_stacking_adapter_ignores_what_is_behind_the_end() -> None:
    adapter = StackingMLPAdapter(feat_in=4, output_dim=6, stacking_factor=2, hidden_dim=8)
    frames, lens = torch.randn(1, 4, 7), torch.tensor([5])
    changed = frames.clone()
    changed[:, :, 5:] = 9.0
    out, out_lens = adapter(frames, lens)
    assert out.shape == (1, 6, 4) and out_lens.tolist() == [3]
    other, _ = adapter(changed, lens)
    torch.testing.assert_close(out[:, :, :3], other[:, :, :3])


def test_mask_from_lens() -> None:
    assert mask_from_lens(torch.tensor([0, 2]), 3).tolist() == [[False] * 3, [True, True, False]]
