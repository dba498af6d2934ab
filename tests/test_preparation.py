"""`job_type=prepare_data`: what is told of the data, and what is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from whalesong.core.config.compose import compose
from whalesong.core.config.job import check_job
from whalesong.core.errors import ConfigError, DataError
from whalesong.core.instantiate import register_target
from whalesong.core.schema import validate
from whalesong.corpora.star_graphs import StarGraphs
from whalesong.data.config import DatasetConfig
from whalesong.data.plan import make_plan
from whalesong.preparation import prepare

STARS = [f"datamodule.{name}_ds.input_cfg.0.num_examples=20" for name in ("train", "test")]


@register_target
class Counted:
    """Counts upwards, as token ids."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": list(range(7, 8 + index)), "prompt_ids": [7]}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Prepare the data of a job in a fresh working directory."""
    monkeypatch.chdir(tmp_path)

    def call(*overrides: str, name: str | None = None) -> Path:
        cfg = compose("config", overrides=["job_type=prepare_data", *overrides])
        return prepare(cfg, check_job(cfg), name=name)

    return call


@pytest.fixture
def text_files(tmp_path: Path) -> list[str]:
    """Arguments of a job on two text files."""
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n" + "x" * 200 + "\n")
    (tmp_path / "b.txt").write_bytes(b"four\n\xff\xff\nfive\n")
    files = {"train": "a.txt", "validation": "b.txt"}
    paths = [f"datamodule.{k}_ds.input_cfg.0.paths={tmp_path / v}" for k, v in files.items()]
    return ["model=arlm", "model_type=arlm", "datamodule=text_arlm", *paths]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def printed_sets(text: str) -> dict[str, Any]:
    """The YAML at the end of a report."""
    return yaml.safe_load(text.split("To train on these files:\n")[1])["datamodule"]


def test_stars_are_counted_shown_and_written(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("experiment=star_mini_arlm", *STARS, name="star_mini_arlm")
    assert folder == Path("data/star_mini_arlm")
    graphs = StarGraphs("mini", num_examples=20)
    assert lines(folder / "train.jsonl") == [graphs[index] for index in range(20)]
    assert len(lines(folder / "validation.jsonl")) == 100
    figures = json.loads((folder / "figures.json").read_text())
    target, prompt = {"min": 4, "median": 4, "p99": 4, "max": 4}, dict.fromkeys(
        ("min", "median", "p99", "max"), 14
    )  # fmt: skip
    tokens = {"target": target, "prompt": prompt}
    assert figures["train"] == {"examples": 20, "refused": 0, "tokens": tokens}
    for picture in ("lengths.png", "example.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "`block_size` 5 and `input_block_size` 16 hold both" in out
    assert all(f"star_mini-train-{index}\n" in out for index in range(3))


def test_the_printed_items_read_what_was_written(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run("experiment=star_mini_arlm", *STARS)
    sets = printed_sets(capsys.readouterr().out)
    assert list(sets) == ["train_ds", "validation_ds", "test_ds"]
    config = validate(DatasetConfig, {**sets["train_ds"], "batch_size": 4}, path="data.train_ds")
    read = list(make_plan(config, path="data.train_ds", shuffle=False).examples(0))
    graphs = StarGraphs("mini", num_examples=20)
    assert [{"id": e.id, "prompt": e.prompt, "text": e.text} for e in read] == [
        graphs[index] for index in range(20)
    ]


def test_what_training_would_refuse_is_counted_and_left_out(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("experiment=star_medium_arlm", *STARS, "datamodule.block_size=9")
    figures = json.loads((folder / "figures.json").read_text())["train"]
    assert figures["tokens"]["target"]["max"] == 10
    assert figures["refused"] > 0 and figures["examples"] + figures["refused"] == 20
    written = lines(folder / "train.jsonl")
    assert len(written) == figures["examples"]
    assert all(len(row["text"].split()) <= 8 for row in written)
    assert "refused: example star_medium-train-" in capsys.readouterr().out
    with pytest.raises(DataError, match="`data.train_ds`: nothing can be trained on: example star"):
        run("experiment=star_mini_arlm", *STARS, "datamodule.block_size=3", name="other")
    assert not Path("data/other").exists()


def test_lines_of_text_have_no_prompt(
    run: Callable[..., Path], text_files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(*text_files)
    assert [row["text"] for row in lines(folder / "train.jsonl")] == ["one", "two", "three"]
    assert [row["text"] for row in lines(folder / "validation.jsonl")] == ["four", "five"]
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["train"]["refused"] == figures["validation"]["refused"] == 1
    out = capsys.readouterr().out
    assert "refused: the filters leave out 1 more tokens than max_tokens (127)" in out
    assert "refused: 1 cannot be read" in out
    assert printed_sets(out)["train_ds"]["input_cfg"] == [
        {"type": "text_pairs", "paths": "data/prepared/train.jsonl", "prompt_field": None}
    ]
    assert not (folder / "example.png").exists()


def test_token_ids_stay_token_ids(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    item = f"[{{type: generated, _target_: {__name__}.Counted}}]"
    sets = [f"datamodule.train_ds.input_cfg={item}", "datamodule.validation_ds=null"]
    folder = run("experiment=star_mini_arlm", *sets, "datamodule.test_ds=null")
    rows = lines(folder / "train.jsonl")
    assert rows[1] == {"id": "Counted:1", "prompt_ids": [7], "input_ids": [7, 8]}
    assert len(rows) == 4  # the last one is too long
    assert printed_sets(capsys.readouterr().out)["train_ds"]["input_cfg"] == [
        {
            "type": "text_pairs",
            "paths": "data/prepared/train.jsonl",
            "prompt_ids_field": "prompt_ids",
            "input_ids_field": "input_ids",
            "prompt_field": None,
        }
    ]


def test_named_sets_keep_their_names(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    star = "{type: generated, _target_: whalesong.corpora.star_graphs.StarGraphs, size: mini"
    star += ", split: validation}"
    named = f"datamodule.validation_ds={{datasets: {{a: {{input_cfg: [{star}], batch_size: 4}}}}}}"
    folder = run("experiment=star_mini_arlm", *STARS, named)
    assert (folder / "validation-a.jsonl").is_file()
    sets = printed_sets(capsys.readouterr().out)["validation_ds"]
    assert sets["datasets"]["a"]["input_cfg"][0]["paths"] == "data/prepared/validation-a.jsonl"


def test_nothing_is_overwritten(run: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(DataError, match="must be new or empty, but .*mine is not"):
        run("experiment=star_mini_arlm", *STARS, "prepare_data.output_dir=mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_other_families_have_nothing_to_prepare(run: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="`job_type=prepare_data` is for text models; choose one"):
        run("experiment=salm_demo")
