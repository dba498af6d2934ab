"""A run that is stopped by a signal or killed goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from whalesong.core.archive import open_archive

pytestmark = pytest.mark.slow

STEPS = 30


CHANCE = {
    "salm": ["model.lora.lora_dropout=0.1"],
    "codec LM": [
        "model.lm.config.dropout=0.1",
        "model.conditioning.dropout=0.3",
        "model.window_seconds=0.4",
        "exp_manager.ema.enable=true",
    ],
    "AudioLM": ["model.dropout=0.1", "model.prompt.split=[0.2, 0.6]", "model.nar_stage=sample"],
    "duplex": ["model.lora={r: 2, lora_dropout: 0.1, target_modules: [q_proj]}"],
    "speech decoder": [
        "model.freeze_params=['^llm']",
        "model.speech_decoder.dropout=0.1",
        "model.speech_decoder.unconditional_prob=0.2",
    ],
    "ilm": ["model.dropout=0.1"],
    "mdlm": ["model.dropout=0.1", "exp_manager.ema.enable=true"],
}
"""What a resumed run must draw as the whole one does."""


@pytest.fixture(scope="module", params=list(CHANCE))
def command(
    request: pytest.FixtureRequest,
    small_job: list[str],
    small_codec_lm_job: list[str],
    small_audiolm_job: list[str],
    small_duplex_job: Callable[..., list[str]],
    small_text_job: Callable[[str], list[str]],
) -> Callable[[Path], list[str]]:
    jobs = {
        "salm": small_job,
        "codec LM": small_codec_lm_job,
        "AudioLM": small_audiolm_job,
        "duplex": small_duplex_job("s2s_duplex"),
        "speech decoder": small_duplex_job("s2s_duplex_speech_decoder"),
        "ilm": small_text_job("ilm"),
        "mdlm": small_text_job("mdlm"),
    }
    job = jobs[request.param]

    def make(logs: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "whalesong.cli", *job, *CHANCE[request.param]),
            "data.train_ds.batch_size=2",
            "data.train_ds.num_workers=1",
            f"exp_manager.explicit_log_dir={logs}",
            "exp_manager.resume_if_exists=true",
            f"trainer.max_steps={STEPS}",
            "trainer.val_check_interval=5",
        ]

    return make


ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def finish(command: list[str], logs: Path) -> dict[str, torch.Tensor]:
    """Run to the end and return what was learned."""
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    with open_archive(next((logs / "checkpoints").glob("*.nemo"))) as archive:
        tensors = archive.tensors()
        trained = (
            *("lora_", "model.lm.", "model.conditioner.", "audio_head", "speech_generation"),
            *("model.transformer.", "model.embedding.", "model.head."),
        )
        return {n: tensors[n].clone() for n in tensors if any(part in n for part in trained)}


@pytest.fixture(scope="module")
def uninterrupted(
    command: Callable[[Path], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    logs = tmp_path_factory.mktemp("whole")
    return finish(command(logs), logs)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_stopped_run_goes_on_exactly(
    command: Callable[[Path], list[str]],
    uninterrupted: dict[str, torch.Tensor],
    tmp_path: Path,
    number: int,
    code: int,
) -> None:
    with subprocess.Popen(
        command(tmp_path),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        wait_for_checkpoint(tmp_path, process)
        process.send_signal(number)
        sent = time.monotonic()
        output, _ = process.communicate(timeout=60)
        seconds = time.monotonic() - sent
    assert process.returncode == code, output[-2000:]
    assert seconds < 10
    if number != signal.SIGKILL:
        assert "saved" in output and "To go on: " in output
    resumed = finish(command(tmp_path), tmp_path)
    assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted)


def wait_for_checkpoint(logs: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not list((logs / "checkpoints").glob("*last.ckpt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
