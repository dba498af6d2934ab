"""The two text-to-music models: their own YAML with tiny T5 and EnCodec folders."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

import whalesong
from whalesong.core.config.compose import compose
from whalesong.demos.report import EventAccumulator
from whalesong.experiment import run

PRECISIONS = {"music_prefix": "bf16-mixed", "music_fusion": "32"}
STEPS = 10
WARMUP = 1  # 10 % of the steps


@pytest.fixture(scope="module")
def music_job(
    tiny_t5: Path, tiny_encodec: Path, music_shar: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """A job of one of the models with small sizes, and copies of the pretrained folders."""

    def make(name: str, *overrides: str) -> Any:
        folder = tmp_path_factory.mktemp(name)
        t5, encodec = (shutil.copytree(source, folder / source.name)
                       for source in (tiny_t5, tiny_encodec))  # fmt: skip
        small = [
            "job_type=train",
            f"model.pretransform.config.model_path={encodec}",
            "model.lm.config.embed_dim=64",
            "model.lm.config.depth=2",
            "model.conditioning.cond_dim=64",
            "model.window_seconds=0.2",
            f"data.train_ds.shar_path={music_shar}",
            f"data.validation_ds.datasets.val.shar_path={music_shar}",
            "data.train_ds.batch_size=1",
            "data.validation_ds.batch_size=2",
            "data.train_ds.num_workers=0",
            f"exp_manager.explicit_log_dir={folder / 'logs'}",
            "trainer.accelerator=cpu",
            f"trainer.max_steps={STEPS}",
            "trainer.val_check_interval=8",
            "trainer.limit_val_batches=1",
            "trainer.enable_progress_bar=false",
        ]
        cfg = compose(name, overrides=[*small, *overrides])
        cfg.model.conditioning.configs[0].config.t5_model_name = str(t5)
        OmegaConf.resolve(cfg)
        return cfg

    return make


@pytest.fixture(scope="module", params=list(PRECISIONS))
def trained(request: pytest.FixtureRequest, music_job: Callable[..., Any]) -> SimpleNamespace:
    """A finished training: its job, checkpoints by their step, and archive."""
    cfg = music_job(request.param, f"trainer.precision={PRECISIONS[request.param]}")
    run(cfg)
    folder = Path(cfg.exp_manager.explicit_log_dir) / "checkpoints"
    checkpoints = {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.ckpt")}
    return SimpleNamespace(
        cfg=cfg,
        checkpoints=checkpoints,
        last=checkpoints[f"step={STEPS}-last"],
        archive=folder / f"{request.param}.nemo",
    )


@pytest.fixture(scope="module")
def restored(trained: SimpleNamespace) -> Any:
    return whalesong.load(trained.archive)


@pytest.fixture(params=list(PRECISIONS))
def model(request: pytest.FixtureRequest, music_job: Callable[..., Any]) -> Any:
    """An untrained model in which every part matters."""
    torch.manual_seed(0)
    model = whalesong.CodecLMModel(music_job(request.param).model).eval()
    with torch.no_grad():
        for parameter in model.model.lm.backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def pretrained_parts(model: Any) -> dict[str, nn.Module]:
    text = model.model.conditioner.conditioners["text"]
    return {"codec": model.model.pretransform, "t5": text.model}


def conditions_of(model: Any, count: int) -> list[dict[str, Any]]:
    texts = ["rain", "a fast techno beat with a synth lead", "slow tone"]
    prompts = [torch.arange(4 * n).reshape(4, n) for n in (3, 9, 6)]
    return [
        {name: (texts if name == "text" else prompts)[row] for name in model.condition_ids}
        for row in range(count)
    ]


# -- training -----------------------------------------------------------------------------------


def test_the_pretrained_parts_leave_training_as_they_came(
    trained: SimpleNamespace, restored: Any
) -> None:
    fresh = whalesong.CodecLMModel(trained.cfg.model)
    for name, part in pretrained_parts(fresh).items():
        after = pretrained_parts(restored)[name].state_dict()
        assert len(after) > 10
        assert all(torch.equal(tensor, after[key]) for key, tensor in part.state_dict().items())
    changed = [
        not torch.equal(a, b)
        for a, b in zip(fresh.parameters(), restored.parameters(), strict=True)
        if a.requires_grad
    ]
    assert sum(changed) > len(changed) / 2


def test_weight_decay_is_on_linear_layers_only(trained: SimpleNamespace, restored: Any) -> None:
    linear = [m.weight for m in restored.modules() if isinstance(m, nn.Linear)]
    decayed = [p for p in restored.parameters() if p.requires_grad and any(p is w for w in linear)]
    spared = [
        p for p in restored.parameters() if p.requires_grad and all(p is not d for d in decayed)
    ]
    optimizer = trained.last["optimizer_states"][0]
    shapes = [
        [optimizer["state"][index]["exp_avg"].shape for index in group["params"]]
        for group in optimizer["param_groups"]
    ]
    assert shapes == [[p.shape for p in decayed], [p.shape for p in spared]]
    assert [group["weight_decay"] for group in optimizer["param_groups"]] == [0.1, 0.0]
    assert all(group["betas"] == (0.9, 0.99) for group in optimizer["param_groups"])


def test_learning_rate_falls_as_a_cosine_after_the_warm_up(trained: SimpleNamespace) -> None:
    for checkpoint in trained.checkpoints.values():
        schedule = checkpoint["lr_schedulers"][0]
        assert (schedule["warmup_steps"], schedule["max_steps"]) == (WARMUP, STEPS)
        phase = (checkpoint["global_step"] - WARMUP) / (STEPS - WARMUP) * torch.pi
        expected = 3e-4 * (1 + torch.cos(torch.tensor(phase))) / 2
        assert schedule["_last_lr"][0] == pytest.approx(float(expected), abs=1e-9)


def test_a_step_takes_four_batches(trained: SimpleNamespace) -> None:
    batches = trained.last["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"]
    assert batches == 4 * STEPS and trained.last["global_step"] == STEPS


def test_the_three_best_checkpoints_are_kept(trained: SimpleNamespace) -> None:
    name = next(key for key in trained.last["callbacks"] if key.startswith("NeMoModelCheckpoint"))
    kept = trained.last["callbacks"][name]["best_k_models"]
    assert {Path(path).stem for path in kept} | {f"step={STEPS}-last"} == set(trained.checkpoints)
    events = EventAccumulator(trained.cfg.exp_manager.explicit_log_dir)
    events.Reload()
    losses = sorted(event.value for event in events.Scalars("val_loss"))
    assert len(losses) == 5
    assert sorted(map(float, kept.values())) == pytest.approx(losses[:3])


def test_the_archive_holds_the_moving_average(trained: SimpleNamespace, restored: Any) -> None:
    averages = trained.last["callbacks"]["ExponentialMovingAverage"]["averages"]
    weights = dict(restored.named_parameters())
    assert averages.keys() == {name for name, p in weights.items() if p.requires_grad}
    assert all(torch.equal(average, weights[name]) for name, average in averages.items())
    raw = trained.last["state_dict"]
    assert any(not torch.equal(average, raw[name]) for name, average in averages.items())


def test_the_archive_needs_neither_folder(trained: SimpleNamespace, restored: Any) -> None:
    rows = conditions_of(restored, 2)
    fixed = {"seconds": 0.5, "seeds": [1, 2]}
    whole = whalesong.CodecLMModel(trained.cfg.model).eval()
    whole.load_state_dict(restored.state_dict())
    before = whole.generate_audio(rows, **fixed)
    config = trained.cfg.model
    shutil.rmtree(config.pretransform.config.model_path)
    shutil.rmtree(config.conditioning.configs[0].config.t5_model_name)
    after = whalesong.load(trained.archive).generate_audio(rows, **fixed)
    for row in range(2):
        assert torch.equal(before.codes[row], after.codes[row])
        assert torch.equal(before.audio[row], after.audio[row])


def test_gradients_are_clipped(music_job: Callable[..., Any]) -> None:
    cfg = music_job("music_prefix", "trainer.max_steps=1", "exp_manager.ema.enable=false")
    run(cfg)
    (path,) = Path(cfg.exp_manager.explicit_log_dir).glob("checkpoints/*last.ckpt")
    state = torch.load(path, weights_only=True)["optimizer_states"][0]["state"]
    norm = torch.stack([part["exp_avg"].norm() for part in state.values()]).norm()
    assert norm == pytest.approx(0.1 * 1.0, rel=1e-3)  # (1 - beta) * clipped gradient


# -- frozen parts and conditions ------------------------------------------------------------------


def test_no_gradient_reaches_the_pretrained_parts(model: Any, music_shar: Path) -> None:
    codes = torch.randint(64, (2, 4, 9))
    batch = {
        "codes": codes,
        "codes_lens": torch.tensor([9, 5]),
        "metadata": conditions_of(model, 2),
    }
    model.train().parts.loss.loss_fn(batch)["loss"].backward()
    for part in pretrained_parts(model).values():
        assert not part.training
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def logits_of(model: Any, metadata: list[dict[str, Any]]) -> Tensor:
    codes = torch.arange(4 * 6).reshape(1, 4, 6).expand(len(metadata), -1, -1)
    return model.model(codes, metadata=metadata).logits


@torch.no_grad()
def test_every_condition_tells(model: Any) -> None:
    first, second = conditions_of(model, 2)
    before = logits_of(model, [first])
    for name in first:
        after = logits_of(model, [{**first, name: second[name]}])
        assert (after - before).abs().max() > 1e-3, name


@torch.no_grad()
def test_padding_of_conditions_does_not_tell(model: Any) -> None:
    rows = conditions_of(model, 3)
    together = logits_of(model, rows)
    for row, alone in enumerate(rows):
        torch.testing.assert_close(together[row], logits_of(model, [alone])[0], rtol=0, atol=1e-4)


@torch.no_grad()
def test_dropping_every_condition_is_having_none(model: Any) -> None:
    rows = conditions_of(model, 2)
    none = logits_of(model, [dict.fromkeys(row) for row in rows])
    codes = torch.arange(4 * 6).reshape(1, 4, 6).expand(2, -1, -1)
    null = model.model.lm(codes, None, model.model.conditioner.null(2)).logits
    torch.testing.assert_close(none, null, rtol=0, atol=1e-5)
    model.model.conditioner.train().dropout = 1.0
    dropped = logits_of(model, rows)
    torch.testing.assert_close(dropped, null, rtol=0, atol=1e-5)
