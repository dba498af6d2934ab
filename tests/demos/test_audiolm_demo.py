"""The AudioLM demo's pieces; `.ci/run` and `make demo-audiolm` run all of it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from whalesong.demos.audiolm import AudioLMDemo
from whalesong.demos.audiolm_continue import (
    ROWS,
    by_quantizer,
    clips_of,
    half_mean,
    match_continuations,
    measure_baselines,
    summary,
    verdict,
    with_wrong_prompts,
)
from whalesong.demos.audiolm_report import VERSIONS, training_loss, write_report
from whalesong.demos.music_compose import write_example

RATE = 16000
VALUES = {
    "num_clips": 3,
    "halves": {"ar_top1": 0.75, "nar_top1": 0.25},
    "table": {key: [0.75, 0.5, 0.0, None] for key in ROWS},
}


def batch(codes: torch.Tensor, begin: int) -> dict[str, Any]:
    """Rows of codes (B, K, F) that are all target from `begin` on."""
    rows, _, frames = codes.shape
    return {
        "codes": codes,
        "codes_lens": torch.full((rows,), frames),
        "target_span": torch.tensor([[begin, frames]] * rows),
    }


def events(folder: Path, losses: list[float]) -> Path:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for step, loss in enumerate(losses):
            writer.add_scalar("loss", loss, step)
    return folder


def test_a_wrong_prompt_is_that_of_the_clip_before_over_all_batches() -> None:
    codes = torch.arange(3)[:, None, None].expand(3, 2, 5)
    found = list(with_wrong_prompts([batch(codes[:2], 2), batch(codes[2:], 2)]))
    rows = torch.cat([part["codes"] for part in found])
    assert rows[:, 0].tolist() == [[2, 2, 0, 0, 0], [0, 0, 1, 1, 1], [1, 1, 2, 2, 2]]
    assert torch.equal(rows[:, 0], rows[:, 1])
    assert codes[0].eq(0).all()


def test_baselines_are_counted_in_training_codes_and_measured_behind_the_prompt() -> None:
    loops = torch.tensor([[[0, 1, 2] * 4, [2, 0, 1] * 4]])
    clips = clips_of([batch(loops, 6)])
    found = measure_baselines(clips, [batch(loops, 6)], codebook_size=3)
    assert set(found) == {"repeat", "bigram", "level below", "loop copy"} <= set(ROWS)
    assert found["repeat"] == [0, 0]
    assert found["bigram"] == found["loop copy"] == [1, 1]
    assert found["level below"] == [None, 1]


def test_continuations_are_compared_with_their_own_clip_and_with_the_next() -> None:
    codes = torch.arange(2)[:, None, None].expand(2, 2, 150).clone()
    clips = clips_of([batch(codes, 50)])
    made = codes.clone()
    made[:, 1, 100:] = 9  # wrong from the second second on
    found = match_continuations(clips, list(made))
    assert found["first"] == [1, 1]
    assert found["all"] == [1, 0.5]
    assert found["free_wrong"] == [0, 0]


def test_accuracies_come_in_the_order_of_quantizers() -> None:
    values = {"nar_top1_q2": 0.2, "ar_top1_q0": 0.6, "nar_top1_q1": 0.4, "nar_top1": 0.3}
    values |= {"ar_top10_q0": 0.9}
    top1 = by_quantizer(values, "top1")
    assert top1 == [0.6, 0.4, 0.2]
    assert by_quantizer(values, "top10") == [0.9]
    assert half_mean(top1, "ar_top1") == 0.6
    assert half_mean(top1, "nar_top1") == pytest.approx(0.3)


def test_the_summary_says_for_every_number_what_it_shows_and_whether_bars_are_passed() -> None:
    text = summary(VALUES)
    for label, meaning in ROWS.values():
        assert re.search(rf"^{re.escape(label)} +75\.0 +50\.0 +0\.0 +-$", text, re.MULTILINE)
        assert f"- {label}: {meaning}" in " ".join(text.split())
    assert verdict("ar_top1", 0.75) in text and "bar of the specification 50%: passed." in text
    assert "NAR top-1 25.0 %; bar of the specification 40%: not passed." in text


def test_the_report_shows_every_file_and_every_number(tmp_path: Path) -> None:
    logs = events(tmp_path / "logs", [5.0, 4.0, 3.0])
    (tmp_path / "values.json").write_text(json.dumps(VALUES))
    (tmp_path / "summary.txt").write_text(summary(VALUES))
    for name in VERSIONS:
        write_example(tmp_path / "examples" / f"01_{name}", torch.randn(1, RATE) / 10, RATE)
    write_report(tmp_path, logs=logs)
    page = (tmp_path / "report.html").read_text()
    shown = set(re.findall(r'src="([^"]+)"', page))
    assert shown == {"curves.png", *(f"examples/{f.name}" for f in tmp_path.glob("examples/*"))}
    assert all((tmp_path / name).stat().st_size > 1000 for name in shown)
    numbers = "<td>75.0</td><td>50.0</td><td>0.0</td><td>-</td>"
    assert page.count(numbers) == len(ROWS)
    assert "bar of the specification 40%: not passed." in page
    assert "from 5.00 to 3.00 nats" in page


def test_a_training_whose_loss_has_not_fallen_is_an_error(tmp_path: Path) -> None:
    assert training_loss(events(tmp_path / "falls", [5.0, 5.5, 4.0])) == (5.0, 4.0)
    with pytest.raises(RuntimeError, match="loss has not fallen"):
        training_loss(events(tmp_path / "rises", [4.0, 5.0]))
    with pytest.raises(RuntimeError, match="loss has not fallen"):
        training_loss(events(tmp_path / "none", []))


def test_the_first_stages_leave_a_corpus_with_codec_and_codes(tmp_path: Path) -> None:
    from whalesong.data.codes import read_codec_info
    from whalesong.modules.codec.files import load_codec

    demo = AudioLMDemo(tmp_path, num_train=6, num_validation=2, num_test=2)
    demo.write_corpus()
    demo.fit_codec()
    demo.tokenize()
    assert load_codec(demo.codec).codebook_size == 128
    assert demo.tokenized.exists()
    for split in ("train", "validation", "test"):
        info = read_codec_info(demo.corpus / split / "codes.000000.tar")
        assert (info.num_codebooks, info.frame_rate) == (4, 50)


def test_the_experiment_is_one_that_a_model_is_built_from(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from whalesong.core.config.compose import compose
    from whalesong.core.schema import validate
    from whalesong.models.audiolm.config import AudioLMConfig

    overrides = ["experiment=audiolm_demo", *AudioLMDemo.short(tmp_path).overrides]
    section = OmegaConf.to_container(compose("config", overrides=overrides).model, resolve=True)
    config = validate(AudioLMConfig, section, path="model")
    assert config.prompt.split == (0.3, 0.5)
    assert config.codebook_size == 128


def test_the_short_demo_has_all_stages_of_the_long_one(tmp_path: Path) -> None:
    short, whole = AudioLMDemo.short(tmp_path), AudioLMDemo(tmp_path)
    assert short.num_train < whole.num_train
    assert short.archive == whole.archive
