"""Two ranks give what one rank gives, with DDP and with FSDP2, on the CPU with gloo."""

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


TEXT = ("arlm", "mlm", "ilm", "mdlm")
LEARNED = (
    *("lora_", "modality_adapter", "model.lm.", "model.conditioner."),
    *("embed_audio_tokens", "audio_head", "speech_generation", "llm.model.layers.1."),
    *("model.transformer.", "model.embedding.", "model.head.", "stop_head"),
)


@pytest.fixture(
    scope="module", params=["salm", "codec LM", "AudioLM", "duplex", "speech decoder", *TEXT]
)
def run(
    request: pytest.FixtureRequest,
    small_job: list[str],
    small_codec_lm_job: list[str],
    small_audiolm_job: list[str],
    small_duplex_job: Callable[..., list[str]],
    small_text_job: Callable[[str], list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], dict[str, torch.Tensor]]:
    """Train with a strategy in a real command and return what was learned."""
    jobs = {
        "salm": small_job,
        "codec LM": small_codec_lm_job,
        "AudioLM": small_audiolm_job,
        "duplex": small_duplex_job("s2s_duplex"),
        "speech decoder": small_duplex_job("s2s_duplex_speech_decoder"),
        **{name: small_text_job(name) for name in TEXT},
    }
    job = jobs[request.param]
    section = "model_type" if request.param in TEXT else "model"
    done: dict[str, dict[str, torch.Tensor]] = {}

    def train(strategy: str) -> dict[str, torch.Tensor]:
        if strategy in done:
            return done[strategy]
        logs = tmp_path_factory.mktemp("logs")
        command = [
            *(sys.executable, "-m", "whalesong.cli", *job),
            "data.train_ds.batch_size=2",
            "data.validation_ds.batch_size=5",
            f"exp_manager.explicit_log_dir={logs}",
            "exp_manager.seconds_to_sleep=0",
            "trainer.max_steps=3",
            f"{section}.lr_scheduler=null",
            f"~{section}.optimizer",
            f"+{section}.optimizer={{_target_: torch.optim.SGD, lr: 0.1}}",
            "trainer.val_check_interval=3",
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
            done[strategy] = {
                name: tensor.clone()
                for name, tensor in archive.tensors().items()
                if any(part in name for part in LEARNED)
            }
        return done[strategy]

    return train


@pytest.mark.parametrize("strategy", ["DDP", "FSDP2"])
def test_two_ranks_equal_one(run: Callable[[str], dict[str, torch.Tensor]], strategy: str) -> None:
    expected, given = run("one rank"), run(strategy)
    assert len(expected) > 4 and expected.keys() == given.keys()
    for name in expected:
        torch.testing.assert_close(given[name], expected[name], atol=1e-5, rtol=1e-3)
