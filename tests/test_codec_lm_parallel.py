"""Two ranks train a codec LM as one rank does, with DDP and with FSDP2, on the CPU with gloo."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from whalesong.core.archive import open_archive

pytestmark = pytest.mark.slow

STRATEGIES = {
    "one rank": ["trainer.devices=1", "trainer.accumulate_grad_batches=2"],
    "DDP": ["trainer.devices=2", "trainer.strategy=ddp"],
    "FSDP2": [
        "trainer.devices=2",
        "trainer.strategy={_target_: lightning.pytorch.strategies.ModelParallelStrategy, "
        "data_parallel_size: 2, tensor_parallel_size: 1, process_group_backend: gloo}",
    ],
}


@pytest.fixture(scope="module")
def run(
    small_codec_lm_job: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, torch.Tensor]]:
    """Train with a strategy in a real command and return what was learned."""
    done: dict[str, dict[str, torch.Tensor]] = {}

    def train(strategy: str) -> dict[str, torch.Tensor]:
        if strategy in done:
            return done[strategy]
        logs = tmp_path_factory.mktemp("logs")
        command = [
            *(sys.executable, "-m", "whalesong.cli", *small_codec_lm_job),
            "data.train_ds.batch_size=2",
            f"exp_manager.explicit_log_dir={logs}",
            "exp_manager.seconds_to_sleep=0",
            "trainer.max_steps=3",
            "trainer.val_check_interval=3",
            "model.lr_scheduler=null",
            "model.optimizer._target_=torch.optim.SGD",
            "~model.optimizer.betas",
            "model.optimizer.lr=0.1",
            *STRATEGIES[strategy],
        ]
        if strategy == "one rank":
            command.append("trainer.val_check_interval=6")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, result.stderr[-3000:]
        with open_archive(next((logs / "checkpoints").glob("*.nemo"))) as archive:
            tensors = archive.tensors()
            done[strategy] = {
                name: tensors[name].clone()
                for name in tensors
                if name.startswith(("model.lm.", "model.conditioner."))
            }
        return done[strategy]

    return train


@pytest.mark.parametrize("strategy", ["DDP", "FSDP2"])
def test_two_ranks_equal_one(run: Callable[[str], dict[str, torch.Tensor]], strategy: str) -> None:
    expected, given = run("one rank"), run(strategy)
    assert len(expected) > 20 and expected.keys() == given.keys()
    for name in expected:
        torch.testing.assert_close(given[name], expected[name], atol=1e-5, rtol=1e-3)
