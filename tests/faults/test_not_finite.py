"""Losses, gradients and weights that are not finite: one line, and nothing of it in a file."""

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.families import FAMILIES, TEXT
from fixtures.forked import Ended, Forked, add_callback, run_forked, xlm
from lightning.pytorch import Callback, Trainer

from whalesong.core.archive import open_archive
from whalesong.core.checkpoint import AtomicCheckpointIO
from whalesong.core.torch_file import named_tensors

TIMEOUT = 120
SHORT = [
    "trainer.max_steps=8",
    "trainer.val_check_interval=2",
    "trainer.limit_val_batches=1",
    "trainer.num_sanity_val_steps=0",
    "trainer.enable_progress_bar=false",
    "data.train_ds.batch_size=2",
    "exp_manager.create_tensorboard_logger=false",
]
IDS = r"with examples? (?!without)[^;]+"

Job = Callable[..., list[str]]


class BadBatch(Callback):
    """Makes the losses of some batches NaN.

    Args:
        numbers: of the batches, from 0 on.
        rank: the one that has them.
    """

    def __init__(self, *numbers: int, rank: int = 0) -> None:
        self.numbers, self.rank = numbers, rank

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Bring the loss in, or take it out."""
        number = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        loss = pl_module.parts.loss
        loss.__dict__.pop("loss_fn", None)
        if number in self.numbers and trainer.global_rank == self.rank:
            whole = loss.loss_fn
            loss.loss_fn = lambda batch: {**(one := whole(batch)), "loss": one["loss"] * torch.nan}


class BadWeight(Callback):
    """Makes one row of every embedding infinite before the fifth step, as a broken memory may."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Overwrite."""
        if trainer.global_step == 4:
            for module in pl_module.modules():
                if isinstance(module, torch.nn.Embedding):
                    module.weight.data.fill_(torch.inf)


def train(job: list[str], folder: Path, callback: Callback | None = None) -> Ended:
    """A whole process of the command."""
    observe = None if callback is None else lambda: add_callback(callback)
    return run_forked(xlm(job, observe=observe), log=folder / "output", timeout=TIMEOUT)


def error_line(ended: Ended) -> str:
    """The one line that an ended process gave for its error."""
    assert ended.code == 2 and "Traceback" not in ended.output, ended.output[-3000:]
    [line] = [line for line in ended.output.splitlines() if line.startswith("Error: ")]
    return line


def assert_files_are_finite(logs: Path) -> int:
    """Look through every checkpoint and archive; returns how many there are."""
    checkpoints, archives = list(logs.rglob("*.ckpt")), list(logs.rglob("*.nemo"))
    for path in checkpoints:
        content = AtomicCheckpointIO().load_checkpoint(path)
        content["callbacks"] = {k: v for k, v in content["callbacks"].items() if "Aver" in k}
        assert all(tensor.isfinite().all() for _, tensor in named_tensors(content))
    for path in archives:
        with open_archive(path) as archive:
            assert all(tensor.isfinite().all() for tensor in archive.tensors().values())
    return len(checkpoints) + len(archives)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rate_that_explodes_stops_within_a_step(
    family: str,
    family_job: Job,
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    section = "model_type" if family in TEXT else "model"
    job = family_job(
        family, tmp_path / "logs", *SHORT, "trainer.gradient_clip_val=null",
        f"{section}.lr_scheduler=null", f"~{section}.optimizer",
        f"+{section}.optimizer={{_target_: torch.optim.SGD, lr: 1e30}}",
    )  # fmt: skip
    line = error_line(train(job, tmp_path))
    assert re.search(rf"step [23]: the (loss is|gradient of `.*` .*has norm) \S+, {IDS};", line)
    assert_files_are_finite(tmp_path / "logs")
    assert not list(tmp_path.rglob("*.nemo"))
    survival("F1", detail="learning rate of 1e30: each family")


@pytest.mark.parametrize("family", FAMILIES)
def test_bad_batches_are_left_out_and_the_rest_is_learned(
    family: str,
    family_job: Job,
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    job = family_job(
        family, tmp_path / "logs", *SHORT, "max_skipped_steps=1", "exp_manager.ema.enable=true"
    )
    ended = train(job, tmp_path, BadBatch(2, 5))
    assert ended.code == 0, ended.output[-3000:]
    lines = [line for line in ended.output.splitlines() if "left out" in line.lower()]
    assert len(lines) == 3 and "2 of 8 steps were left out in all" in lines[-1], lines
    for line, step in zip(lines, (3, 6), strict=False):
        assert re.search(rf"Left out: step {step}: the loss is nan, {IDS} \(1 in a row", line)
    assert assert_files_are_finite(tmp_path / "logs") >= 2
    survival("F1", detail="NaN batches left out: each family")


@pytest.mark.parametrize("family", ["salm", "codec_lm", "mdlm"])
def test_a_weight_that_breaks_leaves_the_last_checkpoint_good(
    family: str,
    family_job: Job,
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    job = family_job(family, tmp_path / "logs", *SHORT, "exp_manager.resume_if_exists=true")
    line = error_line(train(job, tmp_path, BadWeight()))
    assert re.search(rf"step 5: the loss is \S+, {IDS}; it changed nothing, and \S+[=-]4-last\S* "
                     r"is good: `\S+` is not finite since an earlier step", line), line  # fmt: skip
    assert assert_files_are_finite(tmp_path / "logs") >= 1
    resumed = train(job, tmp_path)
    assert resumed.code == 0, resumed.output[-3000:]
    survival("F1", detail="broken weights, then resumed")


def test_one_rank_stops_both_and_names_its_batch(
    family_job: Job,
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    accumulate = "trainer.accumulate_grad_batches=2"
    job = family_job("arlm", tmp_path / "logs", *SHORT, accumulate)
    ended = train_two_ranks(job, tmp_path, BadBatch(5, rank=1))
    line = error_line(ended[0])
    assert re.search(rf"step 3: the loss on rank 1 in micro-batch 2 of 2 is nan, {IDS};", line)
    assert ended[1].code == 2 and "Error" not in ended[1].output
    assert_files_are_finite(tmp_path / "logs")
    survival("F1", detail="one of two ranks")


def test_both_ranks_leave_out_what_one_has(
    family_job: Job,
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    job = family_job("arlm", tmp_path / "logs", *SHORT, "max_skipped_steps=1")
    ended = train_two_ranks(job, tmp_path, BadBatch(3, rank=1))
    assert [one.code for one in ended] == [0, 0], ended[0].output[-3000:]
    assert "Left out: step 4: the loss on rank 1 is nan" in ended[0].output
    assert "1 of 8 steps were left out in all" in ended[0].output
    assert "left out" not in ended[1].output
    assert assert_files_are_finite(tmp_path / "logs") >= 2
    survival("F1")


def train_two_ranks(job: list[str], folder: Path, callback: Callback) -> list[Ended]:
    """Two processes as a cluster's launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def start(rank: int) -> Forked:
        def observe() -> None:
            os.environ |= {
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2",
                "NODE_RANK": "0", "LOCAL_RANK": str(rank), "RANK": str(rank),
            }  # fmt: skip
            add_callback(callback)

        arguments = [*job, "trainer.devices=2", "trainer.strategy=ddp"]
        return Forked(xlm(arguments, observe=observe), log=folder / f"output{rank}")

    processes = [start(0), start(1)]
    return [process.wait(TIMEOUT) for process in processes]
