"""To go on in the middle of an epoch costs a walk over the metadata of what was consumed."""

import io
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, Recording, SupervisionSegment

from whalesong.core.schema import validate
from whalesong.data.audio import load_audio
from whalesong.data.codes import CodecInfo
from whalesong.data.codes_writer import write_codes
from whalesong.data.config import DatasetConfig
from whalesong.data.loader import BatchLoader
from whalesong.data.plan import make_plan
from whalesong.data.shar import write_shar
from whalesong.data.steps import Position, plan_steps

CUTS = 800
BATCHES = 2000
ROUNDS = 4
MOST = 3.0
"""Milliseconds a batch."""


@pytest.fixture(scope="module")
def shar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """800 cuts of 1 to 3 s with audio, text and codes in 4 shards."""
    rng = np.random.default_rng(0)
    cuts = []
    for index in range(CUTS):
        data = io.BytesIO()
        samples = 0.1 * rng.standard_normal(rng.integers(16000, 48000))
        soundfile.write(data, samples, 16000, format="WAV")
        cut = Recording.from_bytes(data.getvalue(), recording_id=f"utt{index}").to_cut()
        text = "turn on the light in the kitchen"
        cut.supervisions = [SupervisionSegment(cut.id, f"utt{index}", 0, cut.duration, text=text)]
        cuts.append(cut)
    folder = tmp_path_factory.mktemp("skipping") / "shar"
    write_shar(cuts, folder, fields={"recording": "flac"}, shard_size=CUTS // 4)
    codec = CodecInfo("Tiny", "0123456789abcdef", 16000, 1, 4, 256, 1280)
    for path in folder.glob("cuts.*"):
        number = path.name.split(".")[1]
        fields = {"cuts": [str(path)], "recording": [str(folder / f"recording.{number}.tar")]}
        items = [
            (cut, torch.zeros(4, codec.num_frames(cut.duration), dtype=torch.long))
            for cut in CutSet.from_shar(fields=fields)
        ]
        write_codes(folder / f"codes.{number}.tar", items, codec)
    return folder


def keys_of(kind: str, shar: Path) -> dict[str, Any]:
    """The dataset section of a kind of data: batches of 8 recordings, or of 16 texts."""
    cuts = {"type": "lhotse_shar", "shar_path": str(shar)}
    graphs = {"type": "generated", "_target_": "whalesong.corpora.star_graphs.StarGraphs"}
    buckets = {"batch_size": 8, "use_bucketing": True, "num_buckets": 4}
    return {
        "cuts with codes": {"input_cfg": [cuts], **buckets},
        "conversations": {"input_cfg": [{**cuts, "type": "lhotse_as_conversation"}], **buckets},
        "mixture": {"input_cfg": [{**cuts, "weight": 0.7}, {**cuts, "weight": 0.3}], **buckets},
        "generated text": {"input_cfg": [graphs], "batch_size": 16},
    }[kind]


class Reads:
    """A collator that decodes audio and pads nothing."""

    def load(self, example: Any) -> Any:
        """The samples."""
        return load_audio(example, sample_rate=16000)

    def __call__(self, loaded: list[Any]) -> list[Any]:
        """As they are."""
        return loaded


def milliseconds(batches: Iterable[Any], count: int) -> float:
    """Time of this process for each of `count` batches."""
    begin = time.process_time()
    assert sum(1 for _ in islice(batches, count)) == count
    return 1000 * (time.process_time() - begin) / count


@pytest.mark.parametrize("kind", ["cuts with codes", "conversations", "mixture", "generated text"])
def test_skipping_costs_little(kind: str, shar: Path, survival: Callable[..., None]) -> None:
    plan = make_plan(validate(DatasetConfig, keys_of(kind, shar), path="data"), path="data")
    steps = plan_steps(plan, rank=0, world_size=1, start=Position(), infinite=True)
    spent = min(milliseconds(steps, BATCHES // ROUNDS) for _ in range(ROUNDS))
    survival("R3", survived=spent <= MOST, detail=f"{kind} {spent:.2f} ms a batch")
    assert spent <= MOST


def test_skipping_is_cheaper_than_reading(shar: Path, survival: Callable[..., None]) -> None:
    keys = keys_of("cuts with codes", shar)
    plan = make_plan(validate(DatasetConfig, keys, path="data"), path="data")
    steps = plan_steps(plan, rank=0, world_size=1, start=Position(), infinite=True)
    skipped = milliseconds(steps, 300)
    read = milliseconds(BatchLoader(plan, Reads(), infinite=True), 300)
    survival("R3", detail=f"reading takes {read / skipped:.0f} times as long")
    assert read > 2 * skipped
