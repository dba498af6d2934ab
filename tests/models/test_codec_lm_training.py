"""Training, evaluating and asking a codec language model through composed jobs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from whalesong.core.config.compose import compose
from whalesong.core.errors import ConfigError
from whalesong.experiment import run


@pytest.fixture
def train(mel_rvq: Path, music_shar: Path, tmp_path: Path) -> Callable[..., Path]:
    """Run a small training; arguments are overrides; returns the log folder."""

    def make(*overrides: str, logs: str = "logs") -> Path:
        small = [
            "job_type=train",
            f"model.pretransform.config.model_path={mel_rvq}",
            "model.lm.config={embed_dim: 64, depth: 2, dim_heads: 32, dropout: 0.1}",
            "model.lm.cross_attention_cond_ids=[text,prompt]",
            "model.conditioning.cond_dim=64",
            "model.conditioning.configs=[{id: text, type: text, config: {width: 32}},"
            "{id: prompt, type: audio_prompt, config: {max_seconds: 0.2}, dropout: 0.3}]",
            "model.window_seconds=0.4",
            f"data.train_ds.shar_path={music_shar}",
            f"data.validation_ds.datasets.val.shar_path={music_shar}",
            "data.train_ds.batch_size=4",
            "data.train_ds.num_workers=0",
            f"exp_manager.explicit_log_dir={tmp_path / logs}",
            "exp_manager.checkpoint_callback_params.save_top_k=1",
            "trainer.accelerator=cpu",
            "trainer.max_steps=6",
            "trainer.val_check_interval=3",
            "trainer.enable_progress_bar=false",
        ]
        run(compose("audio_lm", overrides=[*small, *overrides]))
        return tmp_path / logs

    return make


def weights(logs: Path) -> dict[str, torch.Tensor]:
    from whalesong.core.archive import open_archive

    with open_archive(next((logs / "checkpoints").glob("*.nemo"))) as opened:
        return {name: tensor.clone() for name, tensor in opened.tensors().items()}


def events(logs: Path) -> Any:
    from whalesong.demos.report import EventAccumulator

    accumulator = EventAccumulator(str(logs))
    accumulator.Reload()
    return accumulator


def test_resumed_training_with_ema_equals_the_uninterrupted_one(
    train: Callable[..., Path],
) -> None:
    ema = ["exp_manager.ema.enable=true", "exp_manager.ema.decay=0.5"]
    whole = weights(train(*ema, logs="whole"))
    for steps in (2, 5, 6):
        schedule = ["model.lr_scheduler.max_steps=6", f"trainer.max_steps={steps}"]
        parts = train(*ema, *schedule, logs="parts")
    assert whole.keys() == weights(parts).keys()
    assert all(torch.equal(tensor, weights(parts)[name]) for name, tensor in whole.items())


def test_training_logs_values_of_each_codebook_and_samples(train: Callable[..., Path]) -> None:
    logs = train("model.samples={prompts: [{text: fast}, {}], seconds: 0.2}")
    tags = events(logs).Tags()
    assert {"val_loss", "val_nll_0", "val_ppl_2"} <= set(tags["scalars"])
    assert {"sample_1/audio", "sample_2/audio"} <= set(tags["audio"])
    assert {"sample_1/spectrogram", "sample_2/spectrogram"} <= set(tags["images"])


def test_a_trained_model_is_evaluated_and_asked(
    train: Callable[..., Path], music_shar: Path, tmp_path: Path, capsys: Any
) -> None:
    archive = next((train() / "checkpoints").glob("*.nemo"))
    data = f"data.test_ds.shar_path={music_shar}"
    rows = f"eval.output_file={tmp_path}/values.jsonl"
    test = [f"eval.ckpt_path={archive}", data, "data.test_ds.batch_size=4", rows]
    run(compose("config", overrides=["job_type=eval", *test]))
    values = json.loads((tmp_path / "values.jsonl").read_text())
    assert values["nll"] > 0 and values["ppl_1"] > 1
    assert "perplexity" in capsys.readouterr().out
    wav = tmp_path / "begin.wav"
    soundfile.write(wav, torch.zeros(3200).numpy(), 16000)
    ask = [
        "job_type=predict",
        f"predict.ckpt_path={archive}",
        "predict.prompts=['a slow tone', 'a fast tone']",
        f"predict.begin=[{wav}]",
        f"predict.output_dir={tmp_path}/out",
        f"predict.output_file={tmp_path}/rows.jsonl",
        "predict.generation={seconds: 0.5, num_candidates: 2, seed: 1}",
    ]
    run(compose("audio_lm_generate", overrides=ask))
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    for row, text in zip(rows, ("a slow tone", "a fast tone"), strict=True):
        assert row["conditions"]["text"] == text
        assert len(row["seeds"]) == len(row["scores"]) == 2
        assert row["seed"] == row["seeds"][row["scores"].index(max(row["scores"]))]
        assert soundfile.info(row["wav"]).frames == 8000


def test_a_condition_may_be_the_path_of_a_recording(
    build_codec_lm: Callable[..., Any], tmp_path: Path
) -> None:
    archive, wav = tmp_path / "model.nemo", tmp_path / "prompt.wav"
    build_codec_lm({"cross_attention_cond_ids": ["text", "prompt"]}).save_to(archive)
    soundfile.write(wav, 0.1 * torch.randn(3200).numpy(), 16000)
    ask = [
        "job_type=predict",
        f"predict.ckpt_path={archive}",
        f"predict.output_file={tmp_path}/rows.jsonl",
        "predict.generation={seconds: 0.2, seed: 1}",
    ]
    made = []
    for name, request in {
        "path": f"predict.conditions=[{{text: a, prompt: {wav}}}]",
        "audio": f"predict.audio=[{wav}]",
    }.items():
        prompts = ["predict.prompts=[a]"] if name == "audio" else []
        folder = f"predict.output_dir={tmp_path / name}"
        run(compose("audio_lm_generate", overrides=[*ask, request, *prompts, folder]))
        made.append((tmp_path / name / "001.wav").read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["predict.prompts=[a]", "predict.generation={secnds: 1}"], "secnds"),
        (["predict.conditions=[{mood: 1}]"], "`predict.conditions` names 'mood'"),
        (["predict.prompts=[a,b,c]", "predict.conditions=[{},{}]"], "one for each of 3 rows"),
    ],
)
def test_wrong_requests_are_one_line(
    build_codec_lm: Callable[..., Any], tmp_path: Path, overrides: list[str], message: str
) -> None:
    archive = tmp_path / "model.nemo"
    build_codec_lm().save_to(archive)
    ask = ["job_type=predict", f"predict.ckpt_path={archive}", *overrides]
    with pytest.raises(ConfigError) as error:
        run(compose("audio_lm_generate", overrides=ask))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["audio_lm", "music_prefix", "music_fusion"])
def test_configurations_are_valid(name: str) -> None:
    from whalesong.core.schema import validate
    from whalesong.models.codec_lm.config import CodecLMConfig

    overrides = ["job_type=train", "model.pretransform.config.model_path=x"]
    cfg = compose(name, overrides=overrides)
    config = validate(CodecLMConfig, cfg.model, path="model")
    assert set(config.lm.cond_ids) == {item.id for item in config.conditioning.configs}
