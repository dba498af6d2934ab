"""Laws of a checkpoint file: whole or not at all, plain data only, finite, and read safely."""

import multiprocessing
import os
import random
import resource
import signal
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from whalesong.core.checkpoint import (
    AtomicCheckpointIO,
    heal_checkpoints,
    plain_hyper_parameters,
    refuse_non_finite,
)
from whalesong.core.errors import CheckpointError

IO = AtomicCheckpointIO()


def make_checkpoint() -> dict[str, Any]:
    """What a ModelPT's checkpoint looks like: DictConfig hyper-parameters and their class."""
    torch.manual_seed(0)
    weight = torch.randn(40, 10)
    return {
        "global_step": 12,
        "state_dict": {"embed": weight, "head": weight, "half": torch.randn(3).bfloat16()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.randn(40, 10)}}, "param_groups": []}],
        "lr_schedulers": [{"last_epoch": 3, "_last_lr": [0.1]}],
        "hyper_parameters": {"cfg": OmegaConf.create({"lr": "${base}", "base": 0.1, "l": [1]})},
        "hparams_type": DictConfig,
    }


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "step=12.ckpt"
    IO.save_checkpoint(make_checkpoint(), path)
    found, expected = IO.load_checkpoint(path), make_checkpoint()
    assert torch.equal(found["state_dict"]["embed"], expected["state_dict"]["embed"])
    assert torch.equal(found["state_dict"]["half"], expected["state_dict"]["half"])
    assert found["state_dict"]["head"].data_ptr() == found["state_dict"]["embed"].data_ptr()
    assert found["hyper_parameters"] == {"cfg": {"lr": 0.1, "base": 0.1, "l": [1]}}
    assert found["lr_schedulers"] == expected["lr_schedulers"]
    assert os.listdir(path.parent) == ["step=12.ckpt"]


def test_the_checkpoint_given_is_not_changed() -> None:
    given = make_checkpoint()
    plain = plain_hyper_parameters(given)
    assert given["hparams_type"] is DictConfig
    assert isinstance(given["hyper_parameters"]["cfg"], DictConfig)
    assert "hparams_type" not in plain and type(plain["hyper_parameters"]["cfg"]) is dict


def test_what_could_not_be_read_back_is_refused_at_the_save(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    IO.save_checkpoint({"global_step": 1}, path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"x\.ckpt: would hold pathlib\..*Path, which"):
        IO.save_checkpoint({"callbacks": {"a": Path("x")}}, path)
    with pytest.raises(CheckpointError, match="storage_options"):
        IO.save_checkpoint({}, path, storage_options={"a": 1})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.ckpt"]


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").mkdir()
    with pytest.raises(CheckpointError, match=r"x\.ckpt: is a folder"):
        IO.save_checkpoint({"a": 1}, tmp_path / "x.ckpt")


def test_removing(tmp_path: Path) -> None:
    IO.save_checkpoint({"a": 1}, tmp_path / "x.ckpt")
    (tmp_path / "sharded.ckpt" / "shards").mkdir(parents=True)
    for name in ("x.ckpt", "sharded.ckpt", "missing.ckpt"):
        IO.remove_checkpoint(tmp_path / name)
    assert os.listdir(tmp_path) == []


class Payload:
    """Unpickling it creates the marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.marker),))


def test_a_hostile_checkpoint_is_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, marker = tmp_path / "x-last.ckpt", tmp_path / "executed"
    torch.save({"state_dict": {}, "callbacks": Payload(marker)}, path)
    with pytest.raises(CheckpointError) as caught:
        IO.load_checkpoint(path)
    assert str(caught.value) == (
        f"{path}: refers to 'posix.mkdir'; only numbers, strings, containers and tensors are read."
    )
    assert not marker.exists()


def test_references_without_end_are_no_trap(tmp_path: Path) -> None:
    bomb: list = [torch.ones(1)]
    for _ in range(60):
        bomb = [bomb, bomb]
    torch.save({"x": bomb}, tmp_path / "x.ckpt")
    assert IO.load_checkpoint(tmp_path / "x.ckpt")["x"][0] is not None
    deep: list = []
    for _ in range(150):
        deep = [deep]
    torch.save({"x": deep}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="nested deeper than 100 levels"):
        IO.load_checkpoint(tmp_path / "x.ckpt")


def test_files_that_are_no_checkpoint_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    with pytest.raises(CheckpointError, match=r"x\.ckpt: cannot be opened \(No such file"):
        IO.load_checkpoint(path)
    path.write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match=r"x\.ckpt: is no whole zip archive"):
        IO.load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match=r"x\.ckpt: holds a list, not a checkpoint"):
        IO.load_checkpoint(path)


def flat(content: Any) -> list:
    """Everything in a checkpoint, tensors by their bytes."""
    if isinstance(content, torch.Tensor):
        return [content.dtype, content.shape, content.contiguous().view(torch.uint8).tolist()]
    if isinstance(content, dict):
        return [[key, flat(value)] for key, value in content.items()]
    return [flat(item) for item in content] if isinstance(content, list) else [content]


def test_no_flip_or_cut_loads_other_numbers(tmp_path: Path) -> None:
    path, chance = tmp_path / "x.ckpt", random.Random(0)
    IO.save_checkpoint(make_checkpoint(), path)
    good, expected, refused = path.read_bytes(), flat(IO.load_checkpoint(path)), 0
    for trial in range(300):
        bad = bytearray(good)
        if trial % 3:
            bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        else:
            del bad[chance.randrange(len(bad)) :]
        path.write_bytes(bad)
        try:
            assert flat(IO.load_checkpoint(path)) == expected
        except CheckpointError as error:
            assert str(error).startswith(f"{path}: ") and len(str(error).splitlines()) == 1
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named(value: float) -> None:
    checkpoint = make_checkpoint()
    checkpoint["state_dict"]["fp8"] = torch.ones(2).to(torch.float8_e4m3fn)
    refuse_non_finite(checkpoint)
    checkpoint["state_dict"]["half"][1] = value
    with pytest.raises(CheckpointError, match="step 12: `state_dict.half` holds NaN or infinity"):
        refuse_non_finite(checkpoint)
    refuse_non_finite(checkpoint, allow=["state_dict.half"])
    checkpoint = make_checkpoint()
    checkpoint["optimizer_states"][0]["state"][0]["exp_avg"][3, 3] = value
    with pytest.raises(CheckpointError, match="optimizer_states.0.state.0.exp_avg"):
        refuse_non_finite(checkpoint)


def save_for_ever(path: Path, tensor: torch.Tensor, limit: int, errors: Connection) -> None:
    """Save again and again, with files limited to `limit` bytes; tells the error it ends with."""
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        while True:
            IO.save_checkpoint({"x": tensor}, path)
    except CheckpointError as error:
        errors.send(str(error))


def start_saving(path: Path, *, limit: int) -> tuple[BaseProcess, Connection]:
    # A fork spares the import of Lightning; the tensor is made here, since torch's threads
    # do not survive a fork.
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe()
    arguments = (path, torch.ones(2**22), limit, sender)
    process = fork.Process(target=save_for_ever, args=arguments, daemon=True)
    process.start()
    return process, receiver


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    IO.save_checkpoint({"global_step": 7}, path)
    process, errors = start_saving(path, limit=2**20)
    message = errors.recv()
    process.join()
    assert message.startswith(f"{path}: needs ") and "free" in message and "untouched" in message
    assert IO.load_checkpoint(path) == {"global_step": 7} and os.listdir(tmp_path) == ["x.ckpt"]


def test_killed_in_the_middle_of_a_save_the_old_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    IO.save_checkpoint({"x": torch.ones(2**22)}, path)
    for _ in range(3):
        process, _ = start_saving(path, limit=0)
        while not unfinished(tmp_path):
            time.sleep(0.0005)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert torch.equal(IO.load_checkpoint(path)["x"], torch.ones(2**22))
        heal_checkpoints(tmp_path)
        assert not unfinished(tmp_path)


def unfinished(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".writing")]


class Net(pl.LightningModule):
    """One weight, trained on nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def fit(folder: Path, max_steps: int, ckpt_path: Path | None = None) -> pl.Trainer:
    torch.manual_seed(0)
    trainer = pl.Trainer(
        max_steps=max_steps,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = torch.utils.data.DataLoader(torch.ones(64, 2), batch_size=2)
    trainer.fit(Net(), data, ckpt_path=ckpt_path)
    return trainer


@pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint that ended before the epoch")
def test_lightning_trains_saves_and_resumes_through_it(tmp_path: Path) -> None:
    whole = fit(tmp_path, 6)
    fit(tmp_path, 3).save_checkpoint(tmp_path / "x.ckpt")
    resumed = fit(tmp_path, 6, tmp_path / "x.ckpt")
    assert resumed.global_step == 6
    weights = [trainer.lightning_module.layer.weight for trainer in (whole, resumed)]
    assert torch.equal(*weights)
