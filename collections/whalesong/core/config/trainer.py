"""Schemas of the sections `trainer` and `exp_manager`.

They declare the keys of Lightning 2.4's `Trainer` and of NeMo 3.0's `exp_manager` without
importing either; a test compares them with the real signatures. A key that is left out keeps the
library's own default: hand the section on with `arguments()`.
"""

import re
from typing import Any, Literal

from pydantic import AliasChoices, Field, field_validator

from whalesong.core.config.kinds import (
    MAX_PROCESSES,
    AtLeastOne,
    BatchInterval,
    BatchLimit,
    Count,
    NotNegative,
    Time,
)
from whalesong.core.schema import Schema

Mode = Literal["min", "max"]


class LibrarySchema(Schema):
    """A section that is handed to a library as keyword arguments."""

    def arguments(self) -> dict[str, Any]:
        """The keys that were given, under the library's own names."""
        return self.model_dump(exclude_unset=True, by_alias=True)


class StrategyConfig(LibrarySchema):
    """A distribution strategy by class, for the settings that a registered name does not carry."""

    target: Literal[
        "lightning.pytorch.strategies.DDPStrategy",
        "lightning.pytorch.strategies.FSDPStrategy",
        "lightning.pytorch.strategies.ModelParallelStrategy",
        "lightning.pytorch.strategies.SingleDeviceStrategy",
    ] = Field(alias="_target_")
    """The strategy's class."""
    device: str | None = None
    """SingleDeviceStrategy: the device."""
    process_group_backend: str | None = None
    """Communication library, "nccl" or "gloo"; by device if null."""
    find_unused_parameters: bool | None = None
    """DDP: look for parameters without a gradient. Ours never need it: what is frozen is settled
    before the model is wrapped."""
    gradient_as_bucket_view: bool | None = None
    """DDP: let gradients share memory with the communication buffers."""
    static_graph: bool | None = None
    """DDP: the same parameters are used in every step."""
    bucket_cap_mb: float | None = None
    """DDP: size of the communication buffers."""
    start_method: Literal["popen", "spawn", "fork", "forkserver"] | None = None
    """DDP: how processes are started."""
    data_parallel_size: Literal["auto"] | int | None = None
    """ModelParallel: ranks over which batches and weights are divided (FSDP2)."""
    tensor_parallel_size: Literal["auto"] | int | None = None
    """ModelParallel: ranks over which each layer is divided."""
    save_distributed_checkpoint: bool | None = None
    """ModelParallel: one file per rank instead of one file."""
    sharding_strategy: str | None = None
    """FSDP: what is divided."""
    state_dict_type: Literal["full", "sharded"] | None = None
    """FSDP: one file, or one per rank."""
    cpu_offload: bool | None = None
    """FSDP: keep the weights in main memory."""


class TimeConfig(LibrarySchema):
    """`trainer.max_time` in parts."""

    days: Count = 0
    hours: Count = 0
    minutes: Count = 0
    seconds: Count = 0


class TrainerConfig(LibrarySchema):
    """The section `trainer`: arguments of Lightning's `Trainer`."""

    accelerator: str = "auto"
    strategy: str | StrategyConfig = "auto"
    devices: list[Count] | int | str = "auto"
    num_nodes: int = Field(1, ge=1, le=MAX_PROCESSES)
    precision: (
        Literal[
            64, 32, 16, "64", "32", "16", "bf16", "16-true", "16-mixed", "bf16-true", "bf16-mixed",
            "32-true", "64-true", "transformer-engine", "transformer-engine-float16",
        ]
        | None
    ) = None  # fmt: skip
    logger: Literal[False] | None = None
    """False: `exp_manager` makes the loggers."""
    callbacks: list[dict[str, Any]] | dict[str, Any] | None = None
    fast_dev_run: bool | Count = False
    max_epochs: int | None = Field(None, ge=-1)
    min_epochs: Count | None = None
    max_steps: int = Field(-1, ge=-1)
    min_steps: Count | None = None
    max_time: Time | TimeConfig | None = None
    limit_train_batches: BatchLimit | None = None
    limit_val_batches: BatchLimit | None = None
    limit_test_batches: BatchLimit | None = None
    limit_predict_batches: BatchLimit | None = None
    overfit_batches: BatchLimit = 0
    val_check_interval: BatchInterval | None = None
    check_val_every_n_epoch: AtLeastOne | None = 1
    num_sanity_val_steps: int | None = Field(None, ge=-1)
    log_every_n_steps: AtLeastOne | None = None
    enable_checkpointing: Literal[False] | None = None
    """False: `exp_manager` makes the checkpoint callback."""
    enable_progress_bar: bool | None = None
    enable_model_summary: bool | None = None
    accumulate_grad_batches: int = Field(1, ge=1)
    gradient_clip_val: NotNegative | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    deterministic: bool | Literal["warn"] | None = None
    benchmark: bool | None = None
    inference_mode: bool = True
    use_distributed_sampler: Literal[False] = Field(
        False,
        validation_alias=AliasChoices("use_distributed_sampler", "replace_sampler_ddp"),
    )
    """False: the data loader divides the batches over ranks itself. Before Lightning 2 this
    key was `replace_sampler_ddp`; the old name is accepted."""
    profiler: Literal["simple", "advanced", "pytorch", "xla"] | None = None
    detect_anomaly: bool = False
    barebones: bool = False
    plugins: str | list[str] | None = None
    sync_batchnorm: bool = False
    reload_dataloaders_every_n_epochs: Count = 0
    default_root_dir: str | None = None

    @field_validator("devices")
    @classmethod
    def _some_devices(cls, devices: list[int] | int | str) -> list[int] | int | str:
        if isinstance(devices, int):
            valid = devices == -1 or 1 <= devices <= MAX_PROCESSES
        elif isinstance(devices, str):
            valid = re.fullmatch(r"auto|-1|\d{1,4}(,\d{1,4})*,?", devices) and devices != "0"
        else:
            valid = 0 < len(devices) == len(set(devices))
        if not valid:
            raise ValueError(
                "must be a number of devices from 1 on, a list of different ones, -1 for all or "
                f"auto, but is {devices!r:.60}"
            )
        return devices


class CheckpointCallbackConfig(LibrarySchema):
    """`exp_manager.checkpoint_callback_params`: which checkpoints are kept."""

    filepath: str | None = None
    dirpath: str | None = None
    filename: str | None = Field(None, min_length=1, max_length=200)
    """For example "{step}"; `-last` and the ending are added."""
    monitor: str | None = "val_loss"
    verbose: bool | None = True
    save_last: bool | None = True
    save_top_k: int | None = Field(3, ge=-1)
    save_weights_only: bool | None = False
    mode: Mode | None = "min"
    auto_insert_metric_name: bool = True
    every_n_epochs: Count | None = 1
    every_n_train_steps: Count | None = None
    train_time_interval: Any = None
    prefix: str | None = None
    postfix: str = ".nemo"
    save_best_model: bool = False
    always_save_nemo: bool = False
    save_nemo_on_train_end: bool | None = True
    model_parallel_size: int | None = Field(None, ge=1)
    save_on_train_epoch_end: bool | None = False
    async_save: bool | None = False
    save_last_n_optim_states: int | None = Field(-1, ge=-1)


class EarlyStoppingConfig(LibrarySchema):
    """`exp_manager.early_stopping_callback_params`."""

    monitor: str = "val_loss"
    mode: Mode = "min"
    min_delta: float = 0.001
    patience: Count = 10
    verbose: bool = True
    strict: bool = True
    check_finite: bool = True
    stopping_threshold: float | None = None
    divergence_threshold: float | None = None
    check_on_train_epoch_end: bool | None = None
    log_rank_zero_only: bool = False


class StepTimingConfig(LibrarySchema):
    """`exp_manager.step_timing_kwargs`."""

    reduction: str | None = "mean"
    sync_cuda: bool | None = False
    buffer_size: int | None = Field(1, ge=1)


class EMAConfig(LibrarySchema):
    """`exp_manager.ema`: an exponential moving average of the trained weights.

    Validation and `.nemo` take the averages; checkpoints hold both, and a resumed run goes on with
    both.
    """

    enable: bool = False
    decay: float = Field(0.999, gt=0, lt=1)
    """What each update leaves of the average before it."""
    cpu_offload: bool = False
    """Keep the averages in main memory."""
    validate_original_weights: bool = False
    """Validate and archive the weights of the training instead; the averages are then in the
    checkpoints only."""
    every_n_steps: int = Field(1, ge=1)
    """Optimizer steps from one update to the next."""


class ExpManagerConfig(LibrarySchema):
    """The section `exp_manager`: log folder, loggers, checkpoints and resuming."""

    explicit_log_dir: str | None = None
    """The log folder itself; else it is `exp_dir/name/version`."""
    exp_dir: str | None = None
    name: str | None = None
    version: str | None = None
    use_datetime_version: bool | None = True
    resume_if_exists: bool | None = False
    """Continue from the newest complete checkpoint of the log folder."""
    resume_past_end: bool | None = False
    resume_ignore_no_checkpoint: bool | None = False
    """Start from the beginning where there is no checkpoint yet."""
    resume_from_checkpoint: str | None = None
    create_tensorboard_logger: bool | None = True
    summary_writer_kwargs: dict[str, Any] | None = None
    create_wandb_logger: bool | None = False
    wandb_logger_kwargs: dict[str, Any] | None = None
    create_mlflow_logger: bool | None = False
    mlflow_logger_kwargs: dict[str, Any] | None = None
    create_dllogger_logger: bool | None = False
    dllogger_logger_kwargs: dict[str, Any] | None = None
    create_clearml_logger: bool | None = False
    clearml_logger_kwargs: dict[str, Any] | None = None
    create_neptune_logger: bool | None = False
    neptune_logger_kwargs: dict[str, Any] | None = None
    create_checkpoint_callback: bool | None = True
    checkpoint_callback_params: CheckpointCallbackConfig | None = None
    create_early_stopping_callback: bool | None = False
    early_stopping_callback_params: EarlyStoppingConfig | None = None
    create_ipl_epoch_stopper_callback: bool | None = False
    ipl_epoch_stopper_callback_params: dict[str, Any] | None = None
    create_preemption_callback: bool | None = True
    files_to_copy: list[str] | None = None
    log_step_timing: bool | None = True
    log_delta_step_timing: bool | None = False
    step_timing_kwargs: StepTimingConfig | None = None
    disable_validation_on_resume: bool | None = True
    ema: EMAConfig | None = None
    max_time_per_run: Time | None = None
    """Stop and save after "DD:HH:MM:SS"."""
    seconds_to_sleep: float = Field(5, ge=0, le=3600)
    create_straggler_detection_callback: bool | None = False
    straggler_detection_params: dict[str, Any] | None = None
    create_fault_tolerance_callback: bool | None = False
    fault_tolerance: dict[str, Any] | None = None
    log_tflops_per_sec_per_gpu: bool | None = True
