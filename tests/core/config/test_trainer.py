"""The static schemas hold exactly the keys of the libraries that they are handed to."""

import dataclasses
import inspect
from typing import Any

import pytest

from whalesong.core.config.job import check_job
from whalesong.core.config.optim import OptimConfig, SchedulerConfig
from whalesong.core.config.trainer import (
    CheckpointCallbackConfig,
    EarlyStoppingConfig,
    EMAConfig,
    ExpManagerConfig,
    StepTimingConfig,
    StrategyConfig,
    TrainerConfig,
)
from whalesong.core.eden import Eden
from whalesong.core.errors import ConfigError
from whalesong.core.scaled_adam import ScaledAdam
from whalesong.core.schema import Schema, validate


def keys(schema: type[Schema]) -> set[str]:
    """The field names of a schema, without the class or name that picks what it configures."""
    return set(schema.model_fields) - {"target"}


def arguments(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self", "kwargs"}


def test_trainer_keys_are_lightnings() -> None:
    from lightning.pytorch import Trainer

    assert keys(TrainerConfig) == arguments(Trainer.__init__)


def test_precisions_are_lightnings() -> None:
    from typing import get_args

    from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT

    allowed = {value for member in get_args(_PRECISION_INPUT) for value in get_args(member)}
    for precision in allowed:
        assert validate(TrainerConfig, {"precision": precision}).precision == precision


def test_strategies_exist_and_take_their_keys() -> None:
    from lightning.pytorch import strategies
    from torch.nn.parallel import DistributedDataParallel

    names = StrategyConfig.model_fields["target"].annotation.__args__
    classes = [getattr(strategies, name.rpartition(".")[2]) for name in names]
    known = set().union(*map(arguments, classes), arguments(DistributedDataParallel))
    assert keys(StrategyConfig) <= known


@pytest.mark.parametrize(
    "schema, name",
    [
        (ExpManagerConfig, "ExpManagerConfig"),
        (CheckpointCallbackConfig, "CallbackParams"),
        (EarlyStoppingConfig, "EarlyStoppingParams"),
        (StepTimingConfig, "StepTimingParams"),
        (EMAConfig, "EMAParams"),
    ],
)
def test_exp_manager_keys_are_nemos(schema: type[Schema], name: str) -> None:
    from nemo.utils import exp_manager

    fields = {field.name for field in dataclasses.fields(getattr(exp_manager, name))}
    assert keys(schema) == fields


def test_optimizer_and_scheduler_keys_exist() -> None:
    from nemo.core.optim.lr_scheduler import AVAILABLE_SCHEDULERS
    from nemo.core.optim.optimizers import AVAILABLE_OPTIMIZERS

    optimizers = set().union(*map(arguments, [ScaledAdam, *AVAILABLE_OPTIMIZERS.values()]))
    schedulers = arguments(Eden)
    for scheduler in AVAILABLE_SCHEDULERS.values():
        schedulers |= set().union(*(arguments(base.__init__) for base in scheduler.__mro__))
    assert keys(OptimConfig) - {"name", "sched"} <= optimizers
    assert keys(SchedulerConfig) - {"name"} <= schedulers


SPEC_TRAINER = {
    "devices": 1,
    "num_nodes": 1,
    "accelerator": "gpu",
    "precision": "bf16-true",
    "logger": False,
    "enable_checkpointing": False,
    "replace_sampler_ddp": False,
    "max_epochs": None,
    "max_steps": 100000,
    "log_every_n_steps": 10,
    "val_check_interval": 2000,
    "accumulate_grad_batches": 1,
    "gradient_clip_val": 1.0,
}

SPEC_EXP_MANAGER = {
    "explicit_log_dir": "path/to/output_dir",
    "exp_dir": None,
    "name": "salm",
    "create_wandb_logger": False,
    "wandb_logger_kwargs": {"project": None, "name": None},
    "resume_if_exists": True,
    "resume_ignore_no_checkpoint": True,
    "create_checkpoint_callback": True,
    "checkpoint_callback_params": {
        "monitor": "val_loss",
        "filename": "{step}",
        "save_top_k": 1,
        "mode": "min",
    },
    "create_tensorboard_logger": False,
    "version": None,
}


def test_sections_of_the_specification_pass_unchanged() -> None:
    trainer = validate(TrainerConfig, SPEC_TRAINER).arguments()
    expected = dict(SPEC_TRAINER)
    expected["use_distributed_sampler"] = expected.pop("replace_sampler_ddp")
    assert trainer == expected
    assert validate(ExpManagerConfig, SPEC_EXP_MANAGER).arguments() == SPEC_EXP_MANAGER


def test_strategy_mapping_keeps_its_target() -> None:
    target = "lightning.pytorch.strategies.ModelParallelStrategy"
    given = {"strategy": {"_target_": target, "data_parallel_size": 2}}
    assert validate(TrainerConfig, given).arguments() == given


def test_optimizer_needs_one_name() -> None:
    with pytest.raises(ConfigError, match="`model.optim` must have one of the keys `name` and"):
        validate(OptimConfig, {"lr": 0.1}, path="model.optim")
    given = {"name": "adamw", "lr": 0.1, "betas": [0.9, 0.98], "sched": {"name": "NoamAnnealing"}}
    assert validate(OptimConfig, given).arguments()["betas"] == (0.9, 0.98)


def test_job_leaves_model_and_data_to_their_family() -> None:
    from omegaconf import OmegaConf

    cfg = OmegaConf.create({"job_type": "eval", "model": {"pretrained_llm": "???"}, "trainer": {}})
    assert check_job(cfg).job_type == "eval"
    cfg.job_type = "train"
    assert check_job(cfg).model == {}
    cfg.model = {}
    with pytest.raises(ConfigError, match="`model` is missing; choose an experiment"):
        check_job(cfg)
