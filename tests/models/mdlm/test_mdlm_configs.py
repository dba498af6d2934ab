"""The YAML of mdlm composes, and what it says is what a model gets."""

from collections.abc import Callable

import pytest

from whalesong.core.config.compose import compose
from whalesong.core.families import assembled


@pytest.mark.parametrize("data", ["star_mini", "star_easy", "star_medium", "star_hard", "text"])
def test_every_experiment_has_its_parts(data: str) -> None:
    job = ["job_type=train", f"experiment={data}_mdlm"]
    if data == "text":
        for key in ("train_ds", "validation_ds"):
            job.append(f"datamodule.{key}.input_cfg.0.paths=a.txt")
    cfg = assembled(compose("config", overrides=job))
    assert cfg.model.noise_schedule._target_.endswith("mdlm.noise_schedule.LogLinearNoise")
    parts = [cfg.model.network, cfg.model.loss, cfg.model.predictor, *cfg.model.collators.values()]
    assert all(".mdlm." in part._target_ for part in parts)


def test_the_network_may_be_told_the_noise(text_config: Callable[..., dict]) -> None:
    section = text_config("mdlm", "model.time_conditioning=true")
    assert section["network"]["time_conditioning"] is True
    assert text_config("mdlm")["network"]["time_conditioning"] is False
