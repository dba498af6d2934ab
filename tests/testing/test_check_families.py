"""The families of sound keep the laws, too, as far as they apply."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from whalesong.core.config.compose import compose
from whalesong.core.errors import ConfigError
from whalesong.testing import check_model

OF_TEXT_MODELS = {
    "padding does not change the loss",
    "prompts hold no truth",
    "the future is hidden",
    "a cache changes nothing",
    "tokens are in the vocabulary",
}


def checked(job: list[str]) -> set[str]:
    """Laws that do not apply to the model of a job; all others are kept."""
    name, *overrides = job
    config = compose(name.removeprefix("--config-name="), overrides=overrides)
    report = check_model(config.model.target, config=config)
    assert len(report.checked) + len(report.skipped) == 14
    return set(report.skipped)


@pytest.mark.slow
def test_salm_keeps_the_laws(salm_config: Callable[..., Any], speech_shar: Path) -> None:
    data = {"validation_ds": {"batch_size": 4, "shar_path": str(speech_shar)}}
    config = {"model": salm_config(), "data": {**data, "default_context": "Repeat."}}
    assert set(check_model("SALM", config=config).skipped) == OF_TEXT_MODELS


@pytest.mark.slow
def test_codec_lm_keeps_the_laws(small_codec_lm_job: list[str]) -> None:
    assert checked(small_codec_lm_job) >= OF_TEXT_MODELS


@pytest.mark.slow
def test_audiolm_keeps_the_laws(small_audiolm_job: list[str]) -> None:
    assert checked(small_audiolm_job) >= OF_TEXT_MODELS


@pytest.mark.slow
def test_duplex_keeps_the_laws(small_duplex_job: Callable[..., list[str]]) -> None:
    assert checked(small_duplex_job()) >= OF_TEXT_MODELS


@pytest.mark.slow
def test_family_of_sound_needs_data(build_salm: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="`config` must have `data.validation_ds`"):
        check_model(build_salm())
