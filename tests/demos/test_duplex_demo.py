"""The duplex demo's pieces; `.ci/run` and `make demo-duplex` run all of it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from whalesong.corpora.dialogues import write_dialogues
from whalesong.demos.duplex import DuplexDemo
from whalesong.demos.duplex_converse import (
    NUM_EXAMPLES,
    choose_examples,
    is_interrupted,
    measure,
    summary,
)
from whalesong.demos.duplex_part import FRAME_SAMPLES, PARTS, SILENT_FRAMES, read_answers
from whalesong.demos.duplex_report import write_report
from whalesong.demos.processes import run_together


def turn(begin: float, end: float, text: str) -> dict[str, Any]:
    return {"begin": begin, "end": end, "text": text}


def row(name: str, *answers: tuple[str, str], second_begins: float = 5.0) -> dict[str, Any]:
    """A dialogue with one or two questions, and its answers as wanted and as given."""
    times = [(0.5, 2.0, 3.0), (second_begins, 6.0, 7.0)][: len(answers)]
    wanted = [turn(mid, end, text) for (_, mid, end), (text, _) in zip(times, answers, strict=True)]
    said = [turn(mid, end, text) for (_, mid, end), (_, text) in zip(times, answers, strict=True)]
    return {
        "id": name,
        "user_turns": [turn(begin, mid - 0.4, "what") for begin, mid, _ in times],
        "agent_turns": [t for t in said if t["text"]],
        "reference_turns": wanted,
        "reference": " ".join(t["text"] for t in wanted),
        "asr_hypothesis": " ".join(t["text"] for t in said),
    }


RIGHT = "the hall fan is on"
SUM = "one plus two is three"


def test_an_answer_is_right_when_all_of_its_words_are() -> None:
    rows = [
        row("a", (RIGHT, RIGHT)),
        row("b", (RIGHT, "the hall fan is off"), (SUM, SUM)),
        row("c", (SUM, "")),
    ]
    found = measure(rows)
    assert (found["answers"], found["right"]) == (4, 0.5)
    assert (found["right_commands"], found["right_sums"]) == (0.5, 0.5)
    assert found["wer"] == pytest.approx(6 / 20)


def test_the_audio_of_interrupted_answers_is_not_scored() -> None:
    interrupted = row("a", (RIGHT, RIGHT), (SUM, SUM), second_begins=2.5)
    interrupted["asr_hypothesis"] = "the"
    whole = row("b", (RIGHT, RIGHT), (SUM, SUM))
    assert is_interrupted(interrupted) and not is_interrupted(whole)
    found = measure([interrupted, whole])
    assert (found["wer"], found["conversations_heard"], found["right"]) == (0, 1, 1)


def test_examples_are_of_all_kinds() -> None:
    one = [row(f"one {n}", (RIGHT, RIGHT)) for n in range(20)]
    two = [row(f"two {n}", (RIGHT, RIGHT), (SUM, SUM)) for n in range(20)]
    cut = [row(f"cut {n}", (SUM, SUM), (SUM, SUM), second_begins=2.5) for n in range(20)]
    chosen = choose_examples([*cut, *two, *one])
    names = [example["id"] for example in chosen]
    assert len(names) == len(set(names)) == NUM_EXAMPLES
    assert {name.split()[0] for name in names} == {"one", "two", "cut"}


def test_the_codec_is_fitted_to_each_answer_once(tmp_path: Path) -> None:
    write_dialogues(tmp_path / "corpus", num_train=30, num_validation=1, num_test=1)
    answers = read_answers(tmp_path / "corpus" / "train")
    assert 10 < len(answers) < 40
    for audio in answers:
        assert len(audio) % FRAME_SAMPLES == 0
        silent = FRAME_SAMPLES * (SILENT_FRAMES + 1)  # the first of the turn, too
        assert not audio[:silent].any() and audio[silent : silent + FRAME_SAMPLES].any()


def test_a_part_that_fails_ends_the_others(tmp_path: Path) -> None:
    waits = ["timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)"]
    with pytest.raises(subprocess.CalledProcessError):
        run_together({tmp_path / "a.log": ["no_such_module"], tmp_path / "b.log": waits})


def test_every_part_of_the_demo_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[object]] = []
    monkeypatch.setattr(
        "whalesong.demos.duplex.run_together", lambda found: commands.extend(found.values())
    )
    demo = DuplexDemo.short(tmp_path)
    demo.speak()
    demo.make_parts()
    assert {str(command[1]) for command in commands} == set(PARTS)


def test_the_report_shows_each_example(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "logs")) as writer:
        for step in range(3):
            writer.add_scalar("text_loss", 1 / (step + 1), step)
    rows = [row("x<y", (RIGHT, RIGHT)), row("z", (SUM, SUM))]
    values = measure(rows) | {
        "examples": ["z", "x<y"],
        "same_live": 2,
        "session": "real-time factor 0.1",
        "session_s": 20.0,
    }
    (tmp_path / "values.json").write_text(json.dumps(values))
    (tmp_path / "summary.txt").write_text(summary(values, "BLEU 99"))
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_report(tmp_path, logs=tmp_path / "logs")
    page = (tmp_path / "report.html").read_text()
    assert "100.0 % of 2" in page and "equal in 2 of 2" in page
    assert re.findall(r'src="(examples/\w+\.png)"', page) == ["examples/01.png", "examples/02.png"]
    assert page.index(SUM) < page.index(f"agent, 2.00 s: {RIGHT}")
    assert (tmp_path / "curves.png").exists()


@pytest.mark.slow
def test_the_short_demo_runs_whole(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "examples" / "speechlm2" / "s2s_duplex_demo.py"
    command = [sys.executable, str(script), "--short", "--folder", str(tmp_path)]
    subprocess.run(command, check=True)
    examples = tmp_path / "examples"
    stereo, rate = soundfile.read(examples / "01_stereo.wav")
    assert rate == 22050 and stereo.shape[1] == 2 and torch.tensor(stereo[:, 0]).any()
    assert len(list(examples.glob("*.png"))) == NUM_EXAMPLES
