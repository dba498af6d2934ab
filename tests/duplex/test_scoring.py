"""The recognizer that listens to the agent."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lhotse.augmentation import get_or_create_resampler
from torch import Tensor

from whalesong.core.errors import ConfigError


@pytest.fixture(scope="module")
def scoring(causal_asr: Path) -> Any:
    from whalesong.duplex.scoring import ScoringASR

    return ScoringASR(str(causal_asr))


def noises(*lengths: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [0.1 * torch.randn(length, generator=generator) for length in lengths]


def test_it_is_loaded_once_for_all(scoring: Any, causal_asr: Path) -> None:
    first = scoring.load()
    scoring.transcribe(noises(8000), 16000)
    assert type(scoring)(str(causal_asr)).load() is first
    assert not first.training
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_what_was_loaded_in_a_validation_serves_elsewhere(scoring: Any, causal_asr: Path) -> None:
    copy = shutil.copy(causal_asr, causal_asr.with_name("copy.nemo"))
    other, audios = type(scoring)(str(copy)), noises(8000)
    with torch.inference_mode():
        heard = other.transcribe(audios, 22050)
    assert not any(parameter.is_inference() for parameter in other.load().parameters())
    assert other.transcribe(audios, 22050) == scoring.transcribe(audios, 22050) == heard


def test_it_is_no_part_of_the_model(
    build_duplex: Callable[..., Any], scoring: Any, causal_asr: Path
) -> None:
    plain, scored = build_duplex(), build_duplex(scoring_asr=str(causal_asr))
    scoring.load()
    assert scored.state_dict().keys() == plain.state_dict().keys()
    assert scored.assets.keys() == plain.assets.keys()


@pytest.mark.parametrize("sample_rate", [8000, 22050, 24000])
def test_audio_of_any_rate_is_resampled_once(scoring: Any, sample_rate: int) -> None:
    (audio,) = noises(sample_rate)
    resampled = get_or_create_resampler(sample_rate, 16000)(audio[None])[0]
    heard = scoring.transcribe([audio], sample_rate)
    assert heard == scoring.transcribe([resampled], 16000)
    assert heard == [scoring.load().transcribe([resampled], verbose=False)[0].text]
    assert heard[0]


def test_rows_are_heard_as_they_are_alone(scoring: Any) -> None:
    audios = noises(30000, 9000, 16000)
    alone = [scoring.transcribe([audio], 16000)[0] for audio in audios]
    assert scoring.transcribe(audios, 16000) == alone


def test_nothing_is_heard_in_next_to_nothing(scoring: Any) -> None:
    audios = noises(0, 100, 8000)
    heard = scoring.transcribe(audios, 16000)
    assert heard[:2] == ["", ""]
    assert heard[2] == scoring.transcribe(audios[2:], 16000)[0]
    assert scoring.transcribe([], 16000) == []
    assert scoring.transcribe(audios[:2], 16000) == ["", ""]


def test_a_recognizer_that_is_not_there_is_named(tmp_path: Path) -> None:
    from whalesong.duplex.scoring import ScoringASR

    missing = ScoringASR(str(tmp_path / "no.nemo"))
    with pytest.raises(ConfigError, match=r"`model.scoring_asr` must be an existing file.*no.nemo"):
        missing.transcribe(noises(8000), 16000)
