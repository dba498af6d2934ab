"""Training both duplex families: what is logged, what is trained, archives, resuming."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import whalesong
from whalesong.core.archive import open_archive
from whalesong.core.config.compose import compose
from whalesong.core.errors import ConfigError
from whalesong.data.datamodule import build_loader
from whalesong.experiment import run
from whalesong.modules.llm import llm_from_config
from whalesong.modules.lora import canonical_name, merged_state_dict

CONFIGS = ("s2s_duplex", "s2s_duplex_speech_decoder")
FAMILIES = ("duplex_s2s", "duplex_s2s_speech_decoder")
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
CODEC = "model.audio_codec."
FROZEN = [r"^llm\..+$", r"^perception\..+$"]


@pytest.fixture
def train(small_duplex_job: Callable[..., list[str]], tmp_path: Path) -> Callable[..., Path]:
    """Run a small training; arguments are overrides; returns the log folder."""

    def make(config_name: str, *overrides: str, logs: str = "logs", steps: int = 4) -> Path:
        small = [
            f"exp_manager.explicit_log_dir={tmp_path / logs}",
            f"trainer.max_steps={steps}",
            "trainer.val_check_interval=2",
        ]
        name, *job = small_duplex_job(config_name)
        run(compose(name.partition("=")[2], overrides=[*job, *small, *overrides]))
        return tmp_path / logs

    return make


@pytest.fixture(scope="module")
def batch_of(duplex_shar: Path) -> Callable[..., dict[str, Any]]:
    """The first batch of the corpus as a model gets it."""

    def make(model: Any, size: int = 4) -> dict[str, Any]:
        config = {"shar_path": str(duplex_shar), "batch_size": size, "num_workers": 0}
        return next(
            iter(build_loader(config, model.parts.validation_collator, path="validation_ds"))
        )

    return make


def loss_of(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    return model.parts.loss.loss_fn(batch)["loss"]


def weights(logs: Path) -> dict[str, torch.Tensor]:
    with open_archive(next((logs / "checkpoints").glob("*.nemo"))) as opened:
        return {name: tensor.clone() for name, tensor in opened.tensors().items()}


def fit(model: Any, batch: dict[str, Any], steps: int, lr: float = 3e-3) -> list[float]:
    """Train on one batch; returns the losses."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr)
    losses = []
    for _ in range(steps):
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# -- jobs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("config_name", CONFIGS)
def test_validation_logs_both_channels_speech_and_turns(
    train: Callable[..., Path], causal_asr: Path, config_name: str
) -> None:
    from whalesong.demos.report import EventAccumulator

    logs = train(
        config_name, f"model.scoring_asr={causal_asr}", "trainer.log_every_n_steps=1", steps=2
    )
    accumulator = EventAccumulator(str(logs))
    accumulator.Reload()
    tags = set(accumulator.Tags()["scalars"])
    assert {"loss", "text_loss", "audio_loss", "learning_rate"} <= tags
    assert {"val_loss", "val_acc", "val_text_acc", "val_spoken_acc", "val_audio_acc"} <= tags
    assert {"val_bleu", "val_asr_bleu", "val_asr_wer"} <= tags
    assert {"val_false_starts", "val_missed_responses"} <= tags
    with open_archive(next((logs / "checkpoints").glob("*.nemo"))) as opened:
        assert not any("asr." in name or "scoring" in name for name in opened.tensors())


@pytest.mark.parametrize(
    "config_name", [pytest.param(CONFIGS[0], marks=pytest.mark.slow), CONFIGS[1]]
)
def test_resumed_training_equals_the_uninterrupted_one(
    train: Callable[..., Path], config_name: str
) -> None:
    chance = [
        "model.validation_generation=false",
        "model.lr_scheduler=null",
        "model.lora={r: 2, lora_alpha: 4, lora_dropout: 0.2, target_modules: [q_proj]}",
    ]
    if config_name == "s2s_duplex_speech_decoder":
        chance += [
            "model.speech_decoder.dropout=0.2",
            "model.speech_decoder.unconditional_prob=0.3",
        ]
    whole = weights(train(config_name, *chance, logs="whole", steps=5))
    for steps in (3, 5):
        parts = weights(train(config_name, *chance, logs="parts", steps=steps))
    assert parts.keys() == whole.keys()
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


def test_a_trained_archive_is_evaluated_and_asked(
    train: Callable[..., Path],
    duplex_shar: Path,
    dialogues: list[Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    import soundfile

    logs = train("s2s_duplex", "model.validation_generation=false", steps=2)
    archive = next((logs / "checkpoints").glob("*.nemo"))
    soundfile.write(tmp_path / "user.wav", dialogues[0][0], 16000)
    run(
        compose(
            "config",
            overrides=[
                "job_type=eval",
                f"eval.ckpt_path={archive}",
                f"eval.output_file={tmp_path}/rows.jsonl",
                f"+data.test_ds={{shar_path: {duplex_shar}, batch_size: 6}}",
                "trainer.accelerator=cpu",
            ],
        )
    )
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 12
    request = [
        "job_type=predict",
        f"predict.ckpt_path={archive}",
        f"predict.audio=[{tmp_path}/user.wav]",
        f"predict.output_dir={tmp_path}/answers",
        "trainer.accelerator=cpu",
    ]
    run(compose("config", overrides=request))
    assert {path.name for path in (tmp_path / "answers").iterdir()} == {
        "001_agent.wav", "001_stereo.wav", "001.png",
    }  # fmt: skip
    assert "over 12 conversations; written to" in capsys.readouterr().out


# -- archives -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_an_archive_gives_the_same_logits_without_the_original_parts(
    build_duplex: Callable[..., Any],
    duplex_config: Callable[..., dict[str, Any]],
    batch_of: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
) -> None:
    parts = tmp_path / "parts"
    section = duplex_config(family)
    shutil.copytree(section["pretrained_llm"], parts / "llm")
    for key in ("pretrained_asr", "pretrained_audio_codec"):
        shutil.copy(section[key], parts)
        section[key] = str(parts / Path(section[key]).name)
    section |= {"pretrained_llm": str(parts / "llm"), "lora": LORA, "freeze_params": FROZEN}
    model = build_duplex(family, **section)
    batch = batch_of(model)
    fit(model, batch, steps=1)
    expected = model.model(batch)
    model.save_to(tmp_path / "model.nemo")
    shutil.rmtree(parts)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "model.nemo", tmp_path / "elsewhere" / "moved.nemo")
    monkeypatch.chdir(tmp_path / "elsewhere")
    restored = whalesong.load("moved.nemo")
    assert type(restored) is type(model)
    given = restored.model(batch)
    assert torch.equal(given.text_logits, expected.text_logits)
    assert torch.equal(given.audio_logits, expected.audio_logits)
    answered = [made.parts.predictor.predict(batch) for made in (model, restored)]
    for name in ("tokens_text", "tokens_audio", "audio"):
        assert torch.equal(answered[0][name], answered[1][name])


# -- what is trained ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("patterns", "chosen", "share"),
    [
        ([".*"], ("lora_",), 0.97),
        (FROZEN, ("lora_", "embed_audio_tokens", "audio_head", "speech_generation"), 0.9),
    ],
    ids=["lora alone", "lora and more"],
)
def test_lora_learns_and_only_what_is_chosen_is_trained(
    build_duplex: Callable[..., Any],
    batch_of: Callable[..., dict[str, Any]],
    family: str,
    patterns: list[str],
    chosen: tuple[str, ...],
    share: float,
) -> None:
    model = build_duplex(family, lora=LORA, freeze_params=patterns).train()
    batch = batch_of(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = fit(model, batch, steps=25, lr=1e-2)
    assert losses[-1] < share * losses[0]
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("lora_B" in name for name in moved)
    assert any("lora_" not in name for name in moved) == (patterns == FROZEN)
    assert all(any(part in name for part in chosen) for name in moved)


def test_lora_changes_nothing_at_first_and_nothing_when_it_is_merged(
    build_duplex: Callable[..., Any], batch_of: Callable[..., dict[str, Any]]
) -> None:
    plain, model = build_duplex(), build_duplex(lora=LORA)
    state = {canonical_name(name): tensor for name, tensor in model.state_dict().items()}
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    batch = batch_of(model)
    torch.testing.assert_close(loss_of(model, batch), loss_of(plain, batch))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    assert (loss_of(model, batch) - loss_of(plain, batch)).abs() > 1e-3
    merged = llm_from_config(model.model.llm.config.to_dict())
    merged.load_state_dict(merged_state_dict(model.model.llm))
    plain.model.llm = merged.eval()
    torch.testing.assert_close(loss_of(plain, batch), loss_of(model, batch))


PATTERNS = {
    r"^llm\..+$": "model.llm.",
    r"^llm\.layers\.0\..+$": "model.llm.model.layers.0.",
    r"^embed_tokens": "model.llm.model.embed_tokens.",
    r"^lm_head": "model.llm.lm_head.",
    r"^perception\..+$": "model.perception.",
    r"^audio_codec\..+$": "model.audio_codec.",
    r"^speech_generation\..+$": "model.speech_generation.",
}
"""Of NeMo's configs, and what they freeze here."""


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_freeze_by_the_names_of_nemo(
    build_duplex: Callable[..., Any], pattern: str
) -> None:
    model = build_duplex("duplex_s2s_speech_decoder", freeze_params=[pattern])
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith((PATTERNS[pattern], CODEC)), name


def test_patterns_are_the_same_with_lora(build_duplex: Callable[..., Any]) -> None:
    model = build_duplex("duplex_s2s_speech_decoder", lora=LORA, freeze_params=list(PATTERNS))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)


def test_a_pattern_that_names_nothing_is_refused(build_duplex: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"freeze_params.*speech_generation"):
        build_duplex("duplex_s2s", freeze_params=[r"^speech_generation\..+$"])


def test_the_codec_is_never_trained(build_duplex: Callable[..., Any]) -> None:
    model = build_duplex(freeze_params=[r"^llm\..+$"], prevent_freeze_params=[r"^audio_codec\..+$"])
    assert not any(p.requires_grad for p in model.model.audio_codec.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_that_is_trained_is_without_a_gradient(
    build_duplex: Callable[..., Any], batch_of: Callable[..., dict[str, Any]], family: str
) -> None:
    model = build_duplex(family).train()
    loss_of(model, batch_of(model)).backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
