"""The guard: nothing that is not finite reaches weights, moments, averages or a file."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader

from whalesong.core.checkpoint import AtomicCheckpointIO
from whalesong.core.config.trainer import ExpManagerConfig, TrainerConfig
from whalesong.core.errors import ArchiveError
from whalesong.core.language_model import LanguageModelPT
from whalesong.core.parts import Parts
from whalesong.core.schema import Schema
from whalesong.core.training.guard import Finding, FiniteGuard, NotFiniteError, describe, not_finite
from whalesong.core.training.trainer import build_trainer, start_exp_manager

STEPS = 8
CONFIG = {"optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.1}}


class TinyConfig(Schema):
    target: str | None = None
    nemo_version: str | None = None
    optimizer: dict[str, Any]
    lr_scheduler: dict[str, Any] | None = None


class TinyNetwork(nn.Module):
    """A layer, and a norm whose statistics are buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(x))


class TinyLoss:
    """A mean square times what the batch says: NaN, or 1e30 to the loss only."""

    def __init__(self, model: TinyNetwork) -> None:
        self.model = model

    def loss_fn(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        loss = (self.model(batch["x"]) - 1).square().mean() * batch["factor"]
        return {"loss": loss, "num_targets": torch.tensor(len(batch["x"]))}


class TinyModel(LanguageModelPT):
    config_schema = TinyConfig

    def build_parts(self, assets: Any) -> Parts:
        torch.manual_seed(0)
        model = TinyNetwork()
        none: Any = None
        return Parts(model, TinyLoss(model), none, none, none, none)

    evaluate = answer = None  # what only jobs call


class Batches:
    """Batches with ids; `factors` are of single batches, the others have 1."""

    def __init__(self, factors: dict[int, float]) -> None:
        self.x = torch.randn(3 * STEPS, 2, 4, generator=torch.Generator().manual_seed(1))
        self.factors = factors
        self.given = 0

    def __len__(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while self.given < len(self):
            self.given += 1
            number = self.given - 1
            factor = torch.tensor(self.factors.get(number, 1.0))
            x = self.x[number] * factor if factor.isnan() else self.x[number]
            yield {"x": x, "factor": factor}

    def ids_of(self, number: int) -> tuple[str, ...]:
        return f"a{number}", f"b{number}"

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


class Recorder(Callback):
    """Notes the state of the network after each step, and stops where it is told to."""

    def __init__(self, stop_at: int = -1) -> None:
        self.stop_at = stop_at
        self.states: list[dict[str, torch.Tensor]] = []
        self.metrics: list[float | None] = []
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == len(self.states):
            return
        state = pl_module.model.state_dict()
        self.states.append({name: tensor.clone() for name, tensor in state.items()})
        self.metrics.append(trainer.callback_metrics.get("skipped_steps"))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        if trainer.global_step == self.stop_at:
            callback = trainer.checkpoint_callback
            callback._save_last_checkpoint(trainer, callback._monitor_candidates(trainer))
            raise SystemExit(143)


def run(
    folder: Path,
    factors: dict[int, float],
    recorder: Callback,
    *,
    max_skipped_steps: int = 0,
    model: dict[str, Any] | None = None,
    **trainer_settings: Any,
) -> tuple[Trainer, TinyModel]:
    """Train as a job does, with a moving average."""
    config = {
        "accelerator": "cpu", "max_steps": STEPS, "val_check_interval": 2,
        "check_val_every_n_epoch": None, "num_sanity_val_steps": 0, "log_every_n_steps": 1,
        "enable_progress_bar": False, "enable_model_summary": False, **trainer_settings,
    }  # fmt: skip
    guard = FiniteGuard(max_skipped_steps=max_skipped_steps)
    trainer = build_trainer(TrainerConfig(**config), callbacks=[guard, recorder])
    manager = ExpManagerConfig(
        explicit_log_dir=str(folder), resume_if_exists=True, resume_ignore_no_checkpoint=True,
        create_tensorboard_logger=False, log_step_timing=False,
        ema={"enable": True, "decay": 0.8}, checkpoint_callback_params={"filename": "{step}"},
    )  # fmt: skip
    start_exp_manager(trainer, manager)
    module = TinyModel({**CONFIG, **(model or {})}, trainer)
    validation = DataLoader(list(Batches({}))[:2], batch_size=None)
    trainer.fit(module, Batches(factors), validation)
    return trainer, module


def last_of(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "checkpoints").glob("*-last.ckpt")
    return AtomicCheckpointIO().load_checkpoint(path)


def equal(left: Any, right: Any) -> bool:
    """Whether nested containers hold the same, bit by bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right


NAN = float("nan")


@pytest.mark.parametrize(("factor", "value"), [(NAN, "nan"), (1e39, "inf")])
def test_a_bad_loss_stops_at_its_step_and_the_last_checkpoint_stays(
    tmp_path: Path, factor: float, value: str
) -> None:
    with pytest.raises(NotFiniteError) as raised:
        run(tmp_path, {4: factor}, recorder := Recorder())
    message = str(raised.value)
    assert message.startswith(f"step 5: the loss is {value}, with examples a4, b4; it changed")
    assert "step=4-last.ckpt is good" in message and "`max_skipped_steps` (0)" in message
    assert len(message.splitlines()) == 1
    assert len(recorder.states) == 4 and last_of(tmp_path)["global_step"] == 4
    assert not list(tmp_path.rglob("*.nemo"))


def test_with_accumulation_the_micro_batch_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match=r"^step 3: the loss in micro-batch 2 of 3 is nan, "
                       r"with examples a7, b7;"):  # fmt: skip
        run(tmp_path, {7: NAN}, Recorder(), accumulate_grad_batches=3)


@pytest.mark.parametrize("factor", [1e22, -1e30])
def test_a_gradient_too_large_to_be_squared_stops_though_the_loss_is_finite(
    tmp_path: Path, factor: float
) -> None:
    names = "`model.norm.weight`, `model.norm.bias`, `model.out.weight` and 1 more"
    with pytest.raises(NotFiniteError, match=f"^step 3: the gradient of {names} has norm .*, with"):
        run(tmp_path, {2: factor}, Recorder())


class Spoil(Callback):
    """Makes a weight infinite after a step, as an overflow in the optimizer does."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == 1:
            pl_module.model.out.bias.data.fill_(torch.inf)


def test_a_weight_that_an_earlier_step_has_made_infinite_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match=r"^step 2: the loss is inf, .*; it changed nothing: "
                       r"`model.out.bias` is not finite since an earlier step"):  # fmt: skip
        run(tmp_path, {}, Spoil())
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_step_left_out_changes_nothing_but_the_step_and_the_schedule(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    scheduler = {"_target_": "nemo.core.optim.lr_scheduler.CosineAnnealing", "max_steps": STEPS}
    settings = {"max_skipped_steps": 2, "model": {"lr_scheduler": scheduler}}
    run(tmp_path / "good", {}, good := Recorder(), **settings)
    run(tmp_path / "bad", {3: NAN, 4: 1e39, 6: NAN}, recorder := Recorder(), **settings)
    states = recorder.states
    for step in (4, 5, 7):
        assert equal(states[step - 1], states[step - 2])
    assert not equal(states[5]["out.weight"], states[4]["out.weight"])
    assert [int(value) for value in recorder.metrics if value is not None][-1] == 3
    checkpoint = last_of(tmp_path / "bad")
    moments = checkpoint["optimizer_states"][0]["state"].values()
    assert {int(moment["step"]) for moment in moments} == {STEPS - 3}
    assert checkpoint["callbacks"]["ExponentialMovingAverage"]["num_steps"] == STEPS - 3
    assert recorder.rates == good.rates and len(set(good.rates)) == STEPS
    lines = [r.message for r in caplog.records if r.name == "whalesong.core.training.guard"]
    assert lines == [
        "Left out: step 4: the loss is nan, with examples a3, b3 (1 in a row, 1 in all).",
        "Left out: step 5: the loss is inf, with examples a4, b4 (2 in a row, 2 in all).",
        "Left out: step 7: the loss is nan, with examples a6, b6 (1 in a row, 3 in all).",
        "3 of 8 steps were left out in all, because loss or gradient was not finite.",
    ]


def test_one_more_in_a_row_stops(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match=r"^step 5: .*, after 2 steps left out; it changed "
                       r"nothing.*`max_skipped_steps` \(2\)"):  # fmt: skip
        run(tmp_path, {2: NAN, 3: NAN, 4: NAN}, recorder := Recorder(), max_skipped_steps=2)
    assert equal(recorder.states[3], recorder.states[1])


def test_a_resumed_run_counts_on_and_equals_the_whole_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    factors = {1: NAN, 4: NAN, 5: NAN}
    run(tmp_path / "whole", factors, whole := Recorder(), max_skipped_steps=2)
    with pytest.raises(SystemExit):
        run(tmp_path / "resumed", factors, Recorder(stop_at=5), max_skipped_steps=2)
    caplog.clear()
    run(tmp_path / "resumed", factors, resumed := Recorder(), max_skipped_steps=2)
    assert equal(resumed.states[-3:], whole.states[-3:])
    assert "2 of 5 steps were left out so far" in caplog.text
    assert "(2 in a row, 3 in all)" in caplog.text
    for key in ("optimizer_states", "callbacks", "state_dict"):
        one, other = last_of(tmp_path / "whole")[key], last_of(tmp_path / "resumed")[key]
        if key == "callbacks":
            one, other = (
                {k: v for k, v in c.items() if "Checkpoint" not in k} for c in (one, other)
            )
        assert equal(one, other), key


def test_the_count_in_a_row_survives_a_resume(tmp_path: Path) -> None:
    factors = {4: NAN, 5: NAN}
    with pytest.raises(SystemExit):
        run(tmp_path, factors, Recorder(stop_at=5), max_skipped_steps=1)
    with pytest.raises(NotFiniteError, match="^step 6: .*, after 1 step left out;"):
        run(tmp_path, factors, Recorder(), max_skipped_steps=1)


def test_a_bad_validation_warns_and_trains_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    one = TinyLoss.loss_fn

    def loss_fn(self: TinyLoss, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        factor = 1.0 if torch.is_grad_enabled() else NAN
        return {**(given := one(self, batch)), "loss": given["loss"] * factor}

    monkeypatch.setattr(TinyLoss, "loss_fn", loss_fn)
    trainer, _ = run(tmp_path, {}, Recorder(), max_steps=2)
    assert trainer.global_step == 2
    assert "val_loss of the set '0' is nan at step 2." in caplog.text


def test_an_archive_of_a_weight_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    model = TinyModel(CONFIG)
    model.model.out.bias.data.fill_(NAN)
    with pytest.raises(ArchiveError, match=r"x.nemo: `model.out.bias` holds NaN or infinity"):
        model.save_to(tmp_path / "x.nemo")
    assert not list(tmp_path.iterdir())


class Overflow(Callback):
    """Makes the gradients of one step infinite, as half precision does at too large a scale."""

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.global_step == 2:
            pl_module.model.out.weight.grad.fill_(torch.inf)


def test_an_overflow_is_left_to_the_gradient_scaler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scale_of_fp16(monkeypatch, scaler)
    trainer, _ = run(tmp_path, {}, Overflow(), max_steps=5)
    assert trainer.global_step == 5 and scaler.get_scale() == 2.0**9


def test_a_scaler_at_its_end_is_no_excuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale_of_fp16(monkeypatch, torch.amp.GradScaler("cpu", init_scale=0.5))
    with pytest.raises(NotFiniteError, match=r"^step 3: the gradient of `model.out.weight` has"):
        run(tmp_path, {}, Overflow(), max_steps=5)


def scale_of_fp16(monkeypatch: pytest.MonkeyPatch, scaler: torch.amp.GradScaler) -> None:
    """Give a trainer on the CPU the precision plugin that fp16 has on a GPU."""
    from lightning.pytorch.plugins import MixedPrecision

    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    monkeypatch.setattr(
        "lightning.pytorch.trainer.connectors.accelerator_connector._AcceleratorConnector"
        "._check_and_init_precision",
        lambda connector: plugin,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bad", [NAN, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 17, 999])
def test_one_value_among_many_is_found(dtype: torch.dtype, bad: float, place: int) -> None:
    gradients = [torch.ones(7, dtype=dtype), torch.ones(1000, dtype=dtype)]
    losses = [torch.tensor(1.0), torch.tensor(2.0)]
    assert not not_finite(losses, gradients)
    gradients[1][place] = bad
    assert not_finite(losses, gradients)
    assert not_finite([torch.tensor(1.0), torch.tensor(bad, dtype=dtype)], [])
    assert not not_finite([], [])


def test_the_rank_that_has_it_is_named() -> None:
    good = Finding([1.0], {}, [("a",)])
    bad = Finding([NAN], {"w": NAN}, [("b", "c")])
    assert describe([good, bad], step=3) == "step 3: the loss on rank 1 is nan, with examples b, c"
    gradient = Finding([1.0], {"w": NAN}, [("d",)])
    sentence = describe([gradient, gradient], step=3)
    assert sentence == "step 3: the gradient of `w` has norm nan, with examples d, d"


def test_many_ids_are_cut() -> None:
    ids = tuple(str(number) for number in range(40))
    assert describe([Finding([NAN], {}, [ids])], step=1).endswith("30, 31 and 8 more")
    assert describe([Finding([NAN], {}, [()])], step=1).endswith(
        "is nan, with examples without ids"
    )
