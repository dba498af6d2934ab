"""The commands of docs/textlm.rst, run one after the other as a reader does."""

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from whalesong.corpora.grammar import sample_sentences
from whalesong.demos.textlm import TextLMDemo

HERE = Path(__file__).parent
FEW_STEPS = "trainer.max_steps=2 trainer.val_check_interval=1 trainer.log_every_n_steps=1"


@pytest.fixture(scope="module")
def pages() -> dict[str, Any]:
    """The functions that read the pages."""
    return runpy.run_path(str(HERE / "test_pages.py"))


@pytest.mark.slow
def test_commands_of_text_models_run_in_order(
    checkout: Path, shell: Callable[..., str], pages: dict[str, Any]
) -> None:
    pages["write_own_yaml"](checkout)
    for name in ("train", "validation"):
        sentences = sample_sentences(0, 40, split=name)
        (checkout / f"{name}.txt").write_text("\n".join(sentences) + "\n")
    printed = {}
    for command in pages["command_lines"]("docs/textlm.rst"):
        trains = "job_type=train" in command and not re.search("debug=|--cfg", command)
        if not command.startswith("make "):
            printed[command] = shell(f"{command} {FEW_STEPS}" if trains else command)
    (path,) = map(json.loads, (checkout / "paths.jsonl").read_text().splitlines())
    assert path["prompt"].startswith("0 1 2 3") and set(path["text"].split()) <= set("0123456789")
    assert len((checkout / "stars.jsonl").read_text().splitlines()) == 1000
    overfit = [text for command, text in printed.items() if "debug=overfit" in command]
    assert len(overfit) == 2 and all("val_exact_match 1.0000" in text for text in overfit)
    assert "my_awesome_model" in printed["xlm job_type=list"]
    assert "1 passed" in printed["python -m pytest my_awesome_model/tests"]


@pytest.mark.slow
def test_python_of_text_models_runs_in_order(
    checkout: Path, shell: Callable[..., str], pages: dict[str, Any]
) -> None:
    TextLMDemo.short(checkout / "demo" / "textlm").run()
    (checkout / "page.py").write_text("\n".join(pages["blocks"]("python", "docs/textlm.rst")))
    printed = shell("python page.py")
    assert "arlm keeps " in printed and " -> " in printed


def test_what_is_said_of_scaffold_and_list_is_done(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from whalesong.cli import main
    from whalesong.core.scaffold.command import main as scaffold

    monkeypatch.chdir(checkout)
    scaffold(["my_awesome_model"])
    main(["job_type=list"])
    printed = capsys.readouterr().out
    page = (HERE.parents[1] / "docs" / "textlm.rst").read_text()
    files = re.findall(r"^ {8}(\w+\.py)  ", page, flags=re.MULTILINE)
    assert len(files) == 6 and all(f"my_awesome_model/{file}" in printed for file in files)
    assert "count_parameters_my_awesome_model" in printed
