"""The music demo's pieces; `.ci/run` and `make demo-music` run all of it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from whalesong.demos.music import MusicDemo
from whalesong.demos.music_compose import (
    Adherence,
    TextOnly,
    adherence,
    describe,
    measure,
    summary,
    verdict,
    write_example,
)
from whalesong.demos.music_report import VERSIONS, write_report

RATE = 16000


def row(asked: str | None, measured: str | None, real: str | None = None) -> dict[str, Any]:
    pair = {"tempo": asked, "register": None}
    return {
        "caption": f"a {asked} <loop>",
        "asked": pair,
        "measured": {"tempo": measured, "register": "low"},
        "real": {"tempo": real or asked, "register": "low"},
    }


def test_adherence_counts_agreement_with_the_own_caption_and_with_those_of_others() -> None:
    rows = [row("slow", "slow"), row("fast", "fast"), row("fast", "slow", real="slow")]
    found = adherence([*rows, row(None, "slow")], "tempo")
    assert found.followed == pytest.approx(2 / 3)
    # slow beside fast, fast: 0 of 2; fast beside slow, fast: 1 of 2; slow beside slow, fast: 1 of 2
    assert found.chance == pytest.approx(2 / 6)
    assert found.round_trip == pytest.approx(2 / 3)


def test_output_that_ignores_its_caption_is_at_chance() -> None:
    rows = [row(asked, "fast") for asked in ("slow", "medium", "fast")]
    found = adherence(rows, "tempo")
    assert found.followed == found.chance == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("followed", "said"),
    [(0.85, "is steered by the text"), (0.6, "is steered in part"), (0.36, "is not steered")],
)
def test_the_summary_claims_no_control_that_is_not_there(followed: float, said: str) -> None:
    assert said in verdict(Adherence(followed, chance=0.33, round_trip=0.9))


def test_silence_follows_no_caption() -> None:
    assert measure(torch.zeros(1, 3 * RATE), RATE) == {"tempo": None, "register": None}


def test_the_loops_of_the_corpus_are_measured_as_their_captions_say() -> None:
    from whalesong.corpora.music_loops import synthesize_loops

    cuts = list(synthesize_loops(split="test", count=9, seed=0))
    rows = []
    for cut in cuts:
        audio = torch.from_numpy(cut.load_audio())
        rows.append(describe(cut, audio, audio, RATE))
    assert adherence(rows, "register").followed == 1
    assert adherence(rows, "tempo").followed >= 0.8
    text = summary(rows, {"trained": 1.0, "untrained": 5.5, "unigram": 4.25})
    assert re.search(
        r"register +follows the caption in 100\.0 %, shuffled captions \d+\.\d %", text
    )
    assert "register is steered by the text" in text
    assert "trained 1.000, untrained 5.500, unigram 4.250" in text


def test_likelihood_is_measured_under_the_caption_alone() -> None:
    class Collator:
        def load(self, example: str) -> str:
            return example

        def __call__(self, clips: list[str]) -> dict[str, Any]:
            return {"metadata": [{"text": clip, "prompt": torch.ones(4, 2)} for clip in clips]}

    collator = TextOnly(Collator(), ["prompt"])
    batch = collator([collator.load("fast"), collator.load("slow")])
    assert batch["metadata"] == [
        {"text": "fast", "prompt": None},
        {"text": "slow", "prompt": None},
    ]


def test_the_report_shows_every_file_of_every_example(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "logs")) as writer:
        for step in range(3):
            writer.add_scalar("loss", 5.0 - step, step)
    rows = [row("slow", "slow"), row("fast", "slow"), row("slow", "slow")]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (tmp_path / "summary.txt").write_text("tempo & register\n")
    for number in (1, 2):
        for name in VERSIONS:
            stem = tmp_path / "examples" / f"{number:02d}_{name}"
            write_example(stem, torch.randn(1, RATE) / 10, RATE)
    write_report(tmp_path, logs=tmp_path / "logs")
    page = (tmp_path / "report.html").read_text()
    shown = set(re.findall(r'src="([^"]+)"', page))
    assert shown == {"curves.png", *(f"examples/{f.name}" for f in tmp_path.glob("examples/*"))}
    assert all((tmp_path / name).stat().st_size > 1000 for name in shown)
    assert "a slow &lt;loop&gt;" in page and "tempo &amp; register" in page
    assert page.count("class=wrong") == 1


def test_the_first_stages_leave_a_corpus_with_words_codec_and_codes(tmp_path: Path) -> None:
    from whalesong.data.codes import read_codec_info
    from whalesong.modules.codec.files import load_codec

    demo = MusicDemo(tmp_path, num_train=12, num_validation=2, num_test=2)
    demo.write_corpus()
    demo.learn_words()
    demo.fit_codec()
    demo.tokenize()
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(demo.words).tokenize("slow, low")
    assert "," in tokens
    assert load_codec(demo.codec).codebook_size == 256
    assert demo.tokenized.exists()
    for split in ("train", "validation", "test"):
        info = read_codec_info(demo.corpus / split / "codes.000000.tar")
        assert (info.num_codebooks, info.frame_rate) == (4, 50)


def test_the_short_demo_has_all_stages_of_the_long_one(tmp_path: Path) -> None:
    short, whole = MusicDemo.short(tmp_path), MusicDemo(tmp_path)
    assert short.num_train < whole.num_train
    assert short.archive == whole.archive
