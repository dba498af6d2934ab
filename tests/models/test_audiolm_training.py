"""Training AudioLM: its loss, its stages, resuming, archives."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import whalesong
from whalesong.core.archive import open_archive
from whalesong.core.config.compose import compose
from whalesong.core.errors import ConfigError
from whalesong.core.optim import build_optimizer
from whalesong.data.datamodule import build_loader
from whalesong.experiment import run
from whalesong.models.audiolm.loss import StageDraws

OPTIMIZERS = {
    "AdamW": {"_target_": "torch.optim.AdamW", "lr": 1e-2, "weight_decay": 0.1},
    "ScaledAdam": {"_target_": "whalesong.core.scaled_adam.ScaledAdam", "lr": 0.05},
}


def batches(model: Any, shar: Path, size: int = 4) -> list[dict[str, Any]]:
    config = {"shar_path": str(shar), "batch_size": size, "num_workers": 0, "force_finite": True}
    return list(build_loader(config, model.parts.validation_collator, path="test_ds"))


def weights(logs: Path) -> dict[str, torch.Tensor]:
    with open_archive(next((logs / "checkpoints").glob("*.nemo"))) as opened:
        return {name: tensor.clone() for name, tensor in opened.tensors().items()}


@pytest.fixture
def train(small_audiolm_job: list[str], tmp_path: Path) -> Callable[..., Path]:
    """Run a small training; arguments are overrides; returns the log folder."""

    def make(*overrides: str, logs: str = "logs", steps: int = 4) -> Path:
        small = [
            f"exp_manager.explicit_log_dir={tmp_path / logs}",
            "exp_manager.checkpoint_callback_params.save_top_k=1",
            f"trainer.max_steps={steps}",
            "trainer.val_check_interval=2",
        ]
        name, *job = small_audiolm_job
        run(compose(name.partition("=")[2], overrides=[*job, *small, *overrides]))
        return tmp_path / logs

    return make


# -- the loss -----------------------------------------------------------------------------------


def test_loss_is_half_of_each_half_and_starts_near_the_uniform_one(
    build_audiolm: Callable[..., Any], music_shar: Path
) -> None:
    model = build_audiolm()
    outputs = model.parts.loss.loss_fn(batches(model, music_shar)[0])
    parts = outputs["parts"]
    assert outputs["loss"].item() == pytest.approx(
        (parts["ar_loss"] + parts["nar_loss"]).item() / 2
    )
    for value in parts.values():
        assert abs(value.item() - math.log(32)) < 0.7
    model.parts.loss.ar = False
    alone = model.parts.loss.loss_fn(batches(model, music_shar)[0])
    torch.testing.assert_close(alone["loss"], parts["nar_loss"])


@pytest.mark.parametrize("changes", [{}, {"ar_quantizers": 2, "ar_group": 2}], ids=str)
def test_loss_does_not_depend_on_batching(
    build_audiolm: Callable[..., Any], music_shar: Path, changes: dict[str, Any]
) -> None:
    model = build_audiolm(predict_eos="always", **changes)
    totals = []
    for size in (1, 5, 12):
        outputs = [model.parts.loss.loss_fn(batch) for batch in batches(model, music_shar, size)]
        frames = sum(o["num_targets"] for o in outputs)
        assert all(o["sums"]["codes"].sum() == o["num_targets"] * 3 for o in outputs)
        totals.append(sum(o["loss"] * o["num_targets"] for o in outputs) / frames)
    torch.testing.assert_close(totals[1:], totals[:1] * 2, rtol=1e-5, atol=1e-6)


def test_validation_takes_every_stage_and_leaves_the_draws_alone(
    build_audiolm: Callable[..., Any], music_shar: Path
) -> None:
    model = build_audiolm()
    before = model.parts.loss.draws.state_dict()
    outputs = model.parts.loss.loss_fn(batches(model, music_shar)[0])
    frames = outputs["num_targets"]
    assert outputs["sums"]["codes"].tolist() == [frames] * 3
    assert model.parts.loss.draws.state_dict() == before
    again = model.parts.loss.loss_fn(batches(model, music_shar)[0])
    assert torch.equal(outputs["loss"], again["loss"])


def test_a_batch_without_clips_has_no_loss_and_zero_gradients(
    build_audiolm: Callable[..., Any],
) -> None:
    model = build_audiolm().train()
    outputs = model.parts.loss.loss_fn(model.parts.train_collator([]))
    assert outputs["loss"] == 0 and outputs["num_targets"] == 0
    outputs["loss"].backward()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


# -- stages -------------------------------------------------------------------------------------


def test_draws_depend_on_seed_and_step_only_and_reach_every_stage() -> None:
    draws, others = StageDraws(range(1, 4), "batch"), StageDraws(range(1, 4), "batch")
    draws.seed = others.seed = 7
    seen = []
    for _ in range(40):
        assert draws.draw(["a", "b"], torch.device("cpu")) == others.draw(
            ["c"], torch.device("cpu")
        )
        seen += draws.draw([], torch.device("cpu"))
        draws.advance(), others.advance()
    assert set(seen) == {1, 2, 3}
    resumed = StageDraws(range(1, 4), "batch")
    resumed.load_state_dict(draws.state_dict())
    assert resumed.draw([], torch.device("cpu")) == draws.draw([], torch.device("cpu"))


def test_a_row_draws_its_own_stage_in_any_batch() -> None:
    draws = StageDraws(range(1, 4), "sample")
    ids = [f"cut-{number}" for number in range(30)]
    (together,) = draws.draw(ids, torch.device("cpu"))
    alone = [draws.draw([name], torch.device("cpu"))[0].item() for name in ids]
    assert together.tolist() == alone and set(alone) == {1, 2, 3}
    assert StageDraws(range(1, 4), "all").draw(ids, torch.device("cpu")) == [1, 2, 3]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("nar_stage", ["batch", "sample", "all"])
def test_what_belongs_to_a_stage_moves_only_in_steps_that_draw_it(
    build_audiolm: Callable[..., Any], music_shar: Path, optimizer: str, nar_stage: str
) -> None:
    model = build_audiolm(nar_stage=nar_stage, optimizer=OPTIMIZERS[optimizer]).train()
    torch.nn.init.normal_(model.model.lm.nar.transformer.layers[0].modulation.proj.weight, std=0.1)
    settings = OPTIMIZERS[optimizer]
    built = build_optimizer(model, optimizer=settings, lr_scheduler=None, max_steps=9)["optimizer"]
    vectors = model.model.lm.nar.stage_vectors
    batch = batches(model, music_shar, 2)[0]
    for _ in range(6):
        before = [vector.detach().clone() for vector in vectors]
        drawn = model.parts.loss.draws.draw(batch["ids"], torch.device("cpu"))
        stages = set(torch.cat([torch.as_tensor(s).reshape(-1) for s in drawn]).tolist())
        model.parts.loss.loss_fn(batch)["loss"].backward()
        model.on_before_optimizer_step(built)
        built.step()
        built.zero_grad()
        moved = {s for s in (1, 2) if not torch.equal(before[s - 1], vectors[s - 1])}
        assert moved == stages


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("stage", "moving"), [(1, "lm.ar."), (2, "lm.nar.")])
def test_a_training_stage_moves_its_half_only(
    train: Callable[..., Path],
    build_audiolm: Callable[..., Any],
    tmp_path: Path,
    optimizer: str,
    stage: int,
    moving: str,
) -> None:
    options = ", ".join(f"{key}: {value}" for key, value in OPTIMIZERS[optimizer].items())
    start = build_audiolm()
    start.save_to(tmp_path / "start.nemo")
    end = weights(
        train(
            f"model.train_stage={stage}",
            f"model.init_from={tmp_path}/start.nemo",
            "~model.optimizer",
            f"+model.optimizer={{{options}}}",
            "model.lr_scheduler=null",
            steps=3,
        )
    )
    before = start.state_dict()
    moved = {name for name in before if not torch.equal(before[name], end[name])}
    assert moved and all(moving in name for name in moved)


# -- jobs ---------------------------------------------------------------------------------------


def test_training_logs_both_halves_and_every_quantizer(train: Callable[..., Path]) -> None:
    from whalesong.demos.report import EventAccumulator

    accumulator = EventAccumulator(str(train("trainer.log_every_n_steps=1")))
    accumulator.Reload()
    tags = set(accumulator.Tags()["scalars"])
    assert {"ar_loss", "nar_loss", "val_ar_loss", "val_nar_loss", "val_loss"} <= tags
    assert {f"val_{half}_top{k}" for half in ("ar", "nar") for k in (1, 10)} <= tags
    assert {"val_ar_top1_q0", "val_nar_top1_q1", "val_nar_top1_q2"} <= tags
    assert {"val_ArTop10Accuracy", "val_NarTop10Accuracy"} <= tags


@pytest.mark.parametrize("nar_stage", ["batch", "sample"])
def test_resumed_training_equals_the_uninterrupted_one(
    train: Callable[..., Path], nar_stage: str
) -> None:
    chance = [
        "model.dropout=0.1",
        "model.prompt.split=[0.2, 0.6]",
        "model.prompt.modes={prefix: 1, infill: 1, segment: 1}",
        f"model.nar_stage={nar_stage}",
    ]
    whole = weights(train(*chance, logs="whole", steps=6))
    for steps in (1, 4, 6):
        parts = train(*chance, logs="parts", steps=steps)
    assert all(torch.equal(tensor, weights(parts)[name]) for name, tensor in whole.items())


def test_an_archive_does_not_point_at_the_one_it_began_with(
    build_audiolm: Callable[..., Any], tmp_path: Path
) -> None:
    first, second = tmp_path / "first.nemo", tmp_path / "second.nemo"
    build_audiolm().save_to(first)
    build_audiolm(init_from=str(first)).save_to(second)
    first.unlink()
    assert whalesong.load(second).cfg.init_from is None


def test_batches_may_be_limited_in_frames(train: Callable[..., Path]) -> None:
    limits = ["data.train_ds.batch_size=null", "data.train_ds.batch_tokens=100"]
    assert weights(train(*limits, steps=2))


@pytest.mark.parametrize("name", ["audio-lm", "AudioLM"])
def test_the_model_is_known_by_its_names(train: Callable[..., Path], name: str) -> None:
    logs = train(f"model.target={name}", steps=1)
    archive = next((logs / "checkpoints").glob("*.nemo"))
    assert type(whalesong.load(archive)) is whalesong.AudioLMModel
    assert type(whalesong.AudioLMModel.restore_from(archive)) is whalesong.AudioLMModel


def test_an_archive_gives_the_same_loss_elsewhere(
    build_audiolm: Callable[..., Any],
    music_shar: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    section = {"configs": [{"id": "tempo", "type": "number",
                            "config": {"min_val": 40, "max_val": 200}}]}  # fmt: skip
    model = build_audiolm(conditioning=section)
    expected = model.parts.loss.loss_fn(batches(model, music_shar)[0])["loss"]
    model.save_to(tmp_path / "model.nemo")
    monkeypatch.chdir(tmp_path)
    restored = whalesong.load("model.nemo")
    batch = batches(restored, music_shar)[0]
    assert torch.equal(restored.parts.loss.loss_fn(batch)["loss"], expected)


def test_lora_trains_its_updates_only(build_audiolm: Callable[..., Any], music_shar: Path) -> None:
    model = build_audiolm(lora={"r": 2, "lora_alpha": 4})
    plain = build_audiolm()
    batch = batches(model, music_shar)[0]
    torch.testing.assert_close(
        model.parts.loss.loss_fn(batch)["loss"], plain.parts.loss.loss_fn(batch)["loss"]
    )
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)


# -- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "`num_heads` must divide the width (32), but is 3."),
        ({"nar": {"num_heads": 5}}, "`nar.num_heads` must divide the width (32), but is 5."),
        ({"num_quantizers": 4}, "`num_quantizers` must be that of the codec (3), but is 4."),
        ({"codebook_size": 64}, "`codebook_size` must be that of the codec (32), but is 64."),
        ({"sample_rate": 8000}, "`sample_rate` must be that of the codec (16000), but is 8000."),
        ({"ar_quantizers": 3, "train_stage": 2}, "`train_stage` must be 0 or 1"),
        ({"prompt": {"split": 1.5}}, "`model.prompt.split`"),
        ({"prompt": {"modes": {"prefix": 0}}}, "`model.prompt.modes`"),
        ({"prompt": {"modes": {"suffix": 1}}}, "`model.prompt.modes.suffix`"),
        ({"nar_stage": "some"}, "`model.nar_stage`"),
    ],
    ids=str,
)
def test_a_section_that_does_not_fit_is_refused_in_one_line(
    build_audiolm: Callable[..., Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        build_audiolm(**changes)
    assert message in str(error.value) and "\n" not in str(error.value)
