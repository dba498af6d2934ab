"""The text demo's pieces; `.ci/run` and `make demo-text` run all of it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from whalesong.core.config.compose import compose
from whalesong.core.config.job import check_job
from whalesong.corpora.star_graphs import StarGraphs
from whalesong.demos.processes import run_together
from whalesong.demos.textlm import MODELS, FullTextLMDemo, TextLMDemo
from whalesong.demos.textlm_answer import state_of, values_of
from whalesong.demos.textlm_graphs import StarTask, outcome, outcomes
from whalesong.demos.textlm_picture import new_tokens, node_places
from whalesong.demos.textlm_report import steps_of, summary_of, verdict, write_report
from whalesong.demos.textlm_train import train
from whalesong.textlm.config import TokenizerConfig
from whalesong.textlm.tokenizers import build_tokenizer

PROMPT = "5 7 0 2 2 4 0 5 6 1 0 6 0 7"
"""Arms 0-2-4, 0-5-7 and 0-6-1; the question is from 0 to 7."""
TRUTH = "0 5 5 7"
OTHER_ARMS = ("0 2 2 4", "0 6 6 1", "0 2 2 7", "0 6 6 7")
"""To the end of another arm, or along it until the goal is due."""
NO_ARMS = (
    *("", "0", "0 5", "0 5 5", "5 7", "0 7", "0 2 5 7", "0 5 5 4", "0 1 1 7"),
    *("0 2 2 1", "0 5 5 7 7", "0 5 5 7 0 5 5 7"),
)


def row(text: str) -> dict[str, Any]:
    return {"id": "a", "prompt": PROMPT, "truth": TRUTH, "text": text}


def values(share: float = 0.5) -> dict[str, Any]:
    """What `textlm_answer` leaves of a model."""
    states = [["_", "_", "_", "_"], ["0", "_", "_", "7"], ["0", "5", "5", "7"]]
    return {
        "num_graphs": 8,
        "loss": 0.25,
        "exact_match": share,
        "token_accuracy": 0.75,
        "num_parameters": 123_456,
        "steps": 40,
        "cpu_seconds": 12.5,
        "outcomes": outcomes([row(TRUTH), row("0 2 2 4")]),
        "sample": {"prompt": PROMPT, "truth": TRUTH, "states": states},
    }


@pytest.mark.parametrize("text", OTHER_ARMS)
def test_other_arms_are_told_apart_from_the_right_one(text: str) -> None:
    assert outcome(row(TRUTH)) == "right"
    assert outcome(row(text)) == "other arm"


@pytest.mark.parametrize("text", NO_ARMS)
def test_what_is_no_path_to_an_end_is_no_arm(text: str) -> None:
    assert outcome(row(text)) == "no arm"


def test_shares_of_outcomes_and_of_first_hops() -> None:
    rows = [row(TRUTH), row("0 5 5 4"), row("0 2 2 4"), row("7")]
    expected = {"right": 0.25, "other arm": 0.25, "no arm": 0.5, "first hop": 0.5}
    assert outcomes(rows) == expected


@pytest.mark.parametrize("size", ["mini", "easy", "medium", "hard"])
def test_the_truth_of_every_graph_is_right_and_an_arm(size: str) -> None:
    for index in range(20):
        example = StarGraphs(size, "test")[index]
        task = StarTask.parse(example["prompt"])
        pairs = example["text"].split()
        assert task.is_arm(list(zip(pairs[::2], pairs[1::2], strict=True)))
        assert outcome({**example, "truth": example["text"]}) == "right"


def test_a_star_is_drawn_with_its_centre_in_the_middle() -> None:
    places = node_places(StarTask.parse(PROMPT))
    assert places["0"] == (0, 0) and len(places) == 7
    assert len({(round(x, 3), round(y, 3)) for x, y in places.values()}) == 7
    assert StarTask.parse(PROMPT).arms() == [["2", "4"], ["5", "7"], ["6", "1"]]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("0 _ _ 7", "0 5 _ 7", {1}),
        ("0 5", "0 5 5", {2}),
        ("5 7", "0 5 7", {0}),
        ("0 5 7", "0 5 5 7", {2}),
        ("", "0", {0}),
    ],
)
def test_what_a_step_has_added_is_found(before: str, after: str, expected: set[int]) -> None:
    assert new_tokens(before.split(), after.split()) == expected


def test_the_table_has_every_model_with_the_published_figures_beside_it() -> None:
    found = {name: values() for name in MODELS}
    text = summary_of(found, task="star_mini", bars=TextLMDemo(Path()).bars)
    for name in MODELS:
        assert re.search(rf"^{name} +50\.0 +75\.0 +50\.0 +0\.250 +40 +12 +123 ", text, re.MULTILINE)
    assert "32.3    75.0    23.0" in text and "100.0   100.0    99.1" in text
    assert "arlm: 50.0 % right; 50.0 % begin another arm" in text and "goal; 0.0 % else." in text
    assert text.count("not passed.") == 4
    assert max(map(len, text.splitlines())) <= 120


def test_a_bar_has_two_ends() -> None:
    assert verdict("arlm", 0.33, (0.25, 0.42)).endswith("bar 0.25 to 0.42: passed.")
    assert verdict("arlm", 0.99, (0.25, 0.42)).endswith("not passed.")
    assert verdict("ilm", 0.95, (0.95, 1.0)).endswith("bar at least 0.95: passed.")
    assert verdict("ilm", 0.9499, (0.95, 1.0)).endswith("not passed.")


def test_the_report_shows_table_picture_and_steps(tmp_path: Path) -> None:
    for name in MODELS:
        trained = ("cpu_seconds", "steps")
        measured = {key: value for key, value in values().items() if key not in trained}
        (tmp_path / f"{name}.json").write_text(json.dumps(measured))
        write_logs(tmp_path / name, [0.1, 0.5])
    write_report(tmp_path, task="star_mini", models=MODELS, bars={})
    page = (tmp_path / "report.html").read_text()
    assert "Four text models on star_mini" in page and 'src="picture.png"' in page
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    steps = (tmp_path / "steps.txt").read_text()
    assert steps.count(f"truth  {TRUTH}") == len(MODELS) and "1  0 _ _ 7" in steps
    summary = (tmp_path / "summary.txt").read_text()
    assert "bar" not in summary and re.search("^ilm.* 40 +12 ", summary, re.MULTILINE)


def write_logs(folder: Path, shares: list[float]) -> None:
    """What a training leaves: TensorBoard's events, processor time, the last checkpoint."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for step, share in enumerate(shares):
            writer.add_scalar("val_exact_match", torch.tensor(share), step)
    (folder / "cpu_seconds.txt").write_text("12.5\n")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-40-last.ckpt").touch()


def test_steps_are_numbered_from_the_empty_answer_on() -> None:
    lines = steps_of("ilm", values()["sample"]).splitlines()
    assert lines[0] == f"ilm: {PROMPT}"
    assert [line.split()[0] for line in lines[1:]] == ["truth", "0", "1", "2"]


def test_the_short_demo_has_all_stages_of_the_long_ones(tmp_path: Path) -> None:
    short, whole, full = TextLMDemo.short(tmp_path), TextLMDemo(tmp_path), FullTextLMDemo(tmp_path)
    assert short.num_test < whole.num_test and not short.bars
    assert short.task == whole.task == "star_mini" and full.task == "star_easy"
    assert set(whole.bars) == set(MODELS) and set(full.bars) == {"arlm", "ilm"}
    assert short.archive_of("ilm") == whole.archive_of("ilm")
    assert isinstance(FullTextLMDemo.short(tmp_path), FullTextLMDemo)


def test_tokens_of_a_step_are_read_from_its_text() -> None:
    tokenizer = build_tokenizer(TokenizerConfig(type="numbers", count=12))
    assert state_of({"step": 1, "text": "0 [MASK] 11"}, tokenizer) == ["0", "_", "11"]


def test_values_of_an_evaluation_are_read_from_its_summary() -> None:
    assert values_of("loss 0.5000, exact_match 0.9000") == {"loss": 0.5, "exact_match": 0.9}


@pytest.mark.parametrize("demo", [TextLMDemo, FullTextLMDemo])
def test_only_missing_models_are_trained_and_by_experiments_that_exist(
    demo: type[TextLMDemo], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: dict[Path, list[Any]] = {}
    monkeypatch.setattr("whalesong.demos.textlm.run_together", commands.update)
    chosen = demo(tmp_path)
    chosen.archive_of("arlm").parent.mkdir(parents=True)
    chosen.archive_of("arlm").touch()
    chosen.train(["arlm", "ilm"])
    assert [log.name for log in commands] == ["ilm.log"]
    (_, seconds, *arguments) = commands[tmp_path / "ilm.log"]
    assert Path(seconds).parent == chosen.logs_of("ilm")
    cfg = compose("config", overrides=arguments)
    assert check_job(cfg).resume and "Ilm" in cfg.model_type.loss._target_
    assert sorted(path.name for path in tmp_path.glob("trained-*")) == ["trained-arlm-ilm"]


def test_processor_time_of_continued_runs_adds_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seconds = tmp_path / "ilm" / "cpu_seconds.txt"
    seen: list[list[str]] = []
    monkeypatch.setattr("whalesong.demos.textlm_train.main", seen.append)
    train(seconds, ["job_type=train"])
    first = float(seconds.read_text())
    train(seconds, ["job_type=train"])
    assert seen == [["job_type=train"]] * 2
    assert 0 < first < float(seconds.read_text())


def test_the_second_of_two_processes_prints_into_its_log(tmp_path: Path) -> None:
    prints = ["timeit", "-n", "1", "-r", "1", "print('here')"]
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    run_together(dict.fromkeys(logs, prints))
    assert not logs[0].exists() and "here" in logs[1].read_text()
