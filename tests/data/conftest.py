"""Small real corpora in lhotse shar, and a collator that tells what it was given."""

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lhotse import Recording, SupervisionSegment
from lhotse.shar import SharWriter

from whalesong.core.schema import validate
from whalesong.data.audio import load_audio
from whalesong.data.config import DatasetConfig
from whalesong.data.plan import BatchPlan, make_plan


def wav_bytes(samples: np.ndarray, sample_rate: int = 8000, subtype: str = "PCM_16") -> bytes:
    """Encode samples, (N,) or (N, C)."""
    data = io.BytesIO()
    soundfile.write(data, samples, sample_rate, format="WAV", subtype=subtype)
    return data.getvalue()


def write_corpus(
    folder: Path, *, count: int = 24, shard_size: int = 6, prefix: str = "utt", longest: float = 0.5
) -> Path:
    """Write cuts of 0.1 s to `longest` seconds; the first sample of cut i is i / 1000."""
    rng = np.random.default_rng(count)
    folder.mkdir(parents=True)
    with SharWriter(str(folder), fields={"recording": "wav"}, shard_size=shard_size) as writer:
        for i in range(count):
            seconds = 0.1 + (longest - 0.1) * rng.random()
            samples = 0.05 * rng.standard_normal(int(seconds * 8000))
            samples[0] = i / 1000
            id = f"{prefix}{i}"
            cut = Recording.from_bytes(wav_bytes(samples), recording_id=id).to_cut()
            cut.id = id
            cut.supervisions = [
                SupervisionSegment(
                    id=id, recording_id=id, start=0, duration=cut.duration, text=f"number {i}"
                )
            ]
            writer.write(cut)
    return folder


class TellTale:
    """A collator whose batch holds ids, first samples, and a draw of each random generator."""

    def load(self, example: Any) -> tuple[str, float]:
        """Read the audio."""
        cuts = getattr(example, "audios", None)
        cuts = [example] if cuts is None else cuts
        firsts = [float(load_audio(cut, sample_rate=8000)[0]) for cut in cuts]
        return example.id, sum(firsts)

    def __call__(self, loaded: list[tuple[str, float]]) -> dict[str, Any]:
        """Keep the order."""
        return {
            "ids": [id for id, _ in loaded],
            "firsts": [round(first, 3) for _, first in loaded],
            "draws": (random.random(), float(np.random.rand()), float(torch.rand(()))),
        }


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 cuts in 4 shards."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "shar")


@pytest.fixture(scope="session")
def make_corpus() -> Callable[..., Path]:
    """See `write_corpus`."""
    return write_corpus


@pytest.fixture(scope="session")
def encode_wav() -> Callable[..., bytes]:
    """See `wav_bytes`."""
    return wav_bytes


@pytest.fixture
def collator() -> TellTale:
    """See `TellTale`."""
    return TellTale()


@pytest.fixture(scope="session")
def plan_of() -> Callable[..., BatchPlan]:
    """Build a plan from the keys of a dataset."""

    def build(*, on_bad_cut: str = "raise", measure_tokens: Any = None, **keys: Any) -> BatchPlan:
        config = validate(DatasetConfig, keys, path="data.train_ds")
        return make_plan(
            config, path="data.train_ds", on_bad_cut=on_bad_cut, measure_tokens=measure_tokens
        )

    return build
