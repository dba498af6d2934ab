"""Converse with the demo's test set with nothing but the archive, and with the network off.

python -m whalesong.demos.duplex_converse duplex_demo.nemo demo_folder
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import whalesong
from whalesong.core.atomic import atomic_path
from whalesong.demos.processes import block_network
from whalesong.experiment import quiet_libraries

NUM_EXAMPLES = 8
NUM_LONG = 6
"""Dialogues that are one conversation for the figures of streaming."""

Row = dict[str, Any]


def main(archive: Path, folder: Path) -> None:
    """Write `values.json`, `summary.txt`, `test.jsonl` and examples into the demo's folder."""
    block_network()
    quiet_libraries()  # before anything imports NeMo
    from whalesong.inference import write_json_lines

    torch.set_num_threads(os.cpu_count() or 1)
    model = whalesong.load(archive)
    loader = _loader(model, folder / "corpus" / "test")
    evaluation = model.evaluate(loader, description="Conversing")
    write_json_lines(folder / "test.jsonl", evaluation.rows)
    torch.set_num_threads(1)  # what a session costs is told for one core
    streamed = converse_live(model, folder, evaluation.rows)
    values = measure(evaluation.rows) | streamed
    (folder / "values.json").write_text(json.dumps(values, indent=1))
    with atomic_path(folder / "summary.txt") as path:
        path.write_text(summary(values, evaluation.summary))


def measure(rows: Sequence[Row]) -> dict[str, float]:
    """Shares of right answers, and how the agent's audio is recognized.

    Answers that the user interrupts are left out of the latter: not all of their words are spoken.
    """
    from whalesong.metrics.text import word_error_rate

    answers = [pair for row in rows for pair in answer_pairs(row)]
    sums = [pair for pair in answers if "plus" in pair[0]]
    commands = [pair for pair in answers if "plus" not in pair[0]]
    whole = [row for row in rows if not is_interrupted(row)]
    return {
        "answers": len(answers),
        "right": _share(answers),
        "right_commands": _share(commands),
        "right_sums": _share(sums),
        "wer": word_error_rate(
            [row["reference"] for row in whole], [row["asr_hypothesis"] for row in whole]
        ),
        "conversations_heard": len(whole),
    }


def answer_pairs(row: Row) -> list[tuple[str, str]]:
    """What the agent should have said in each of its turns, and what it said."""
    wanted = [turn["text"] for turn in row["reference_turns"]]
    said = [turn["text"] for turn in row["agent_turns"]]
    said += [""] * (len(wanted) - len(said))
    return list(zip(wanted, said, strict=False))


def is_interrupted(row: Row) -> bool:
    """Whether the user begins while the agent should be speaking."""
    return any(
        agent["begin"] < user["begin"] < agent["end"]
        for user in row["user_turns"]
        for agent in row["reference_turns"]
    )


def converse_live(model: Any, folder: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """Hear dialogues in pieces of one frame, and write what both say.

    Returns:
        What the sessions cost, and whether they said what `evaluate` had found.
    """
    chosen = choose_examples(rows)
    examples = folder / "examples"
    examples.mkdir(exist_ok=True)
    same = 0
    for number, (row, user) in enumerate(_with_audio(folder, chosen), start=1):
        session = model.start_session()
        pieces = [session.step(piece).audio for piece in user.split(_frame_samples(model))]
        agent = torch.cat([*pieces, session.finish().audio])
        same += [turn.text for turn in session.turns] == [t["text"] for t in row["agent_turns"]]
        _write_example(model, examples / f"{number:02d}", row, user, agent)
    return {
        "examples": [row["id"] for row in chosen],
        "same_live": same,
        **_speed(model, folder, rows),
    }


def choose_examples(rows: Sequence[Row]) -> list[Row]:
    """The first dialogues of one question, of two, and two in which the second interrupts."""
    interrupted = [row for row in rows if is_interrupted(row)][:2]
    others = [row for row in rows if not is_interrupted(row)]
    one = [row for row in others if len(row["user_turns"]) == 1]
    few = [row for row in others if len(row["user_turns"]) > 1][: NUM_EXAMPLES // 2 - 2]
    return [*one[: NUM_EXAMPLES // 2], *few, *interrupted]


def summary(values: dict[str, Any], evaluated: str) -> str:
    """The outcome in a few lines."""
    return (
        f"Right answers, unseen voices and speeds:  {100 * values['right']:.1f} % of "
        f"{values['answers']} (bar: at least 90 %)\n"
        f"    commands that training never had:     {100 * values['right_commands']:.1f} %\n"
        f"    sums of numbers up to five:           {100 * values['right_sums']:.1f} %\n"
        f"WER of the agent's audio by recognizer:   {100 * values['wer']:.1f} % in "
        f"{values['conversations_heard']} conversations without interruption (bar: at most 30 %)\n"
        f"All conversations: {evaluated}\n"
        f"Streamed on one core ({values['session_s']:.0f} s): {values['session']} "
        "(bar: real-time factor below 0.5)\n"
        f"Streamed and offline answers are equal in {values['same_live']} of "
        f"{len(values['examples'])} conversations.\n"
    )


def _speed(model: Any, folder: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """What one long conversation costs, after a short one."""
    users = [user for _, user in _with_audio(folder, rows[:NUM_LONG])]
    for audio in (users[0], torch.cat(users)):
        session = model.start_session()
        began = time.perf_counter()
        for piece in audio.split(_frame_samples(model)):
            session.step(piece)
        session.finish()
        seconds = time.perf_counter() - began
    length = len(audio) / model.sample_rate
    return {"rtf": seconds / length, "session_s": length, "session": session.report()}


def _write_example(model: Any, stem: Path, row: Row, user: Tensor, agent: Tensor) -> None:
    """The user's channel, both in stereo, and a picture of them with their words."""
    from lhotse.augmentation import get_or_create_resampler

    from whalesong.data.turns import Turn
    from whalesong.duplex.picture import draw_conversation
    from whalesong.duplex.use import stereo
    from whalesong.sound.wav import write_wav

    rate = model.target_sample_rate
    write_wav(Path(f"{stem}_user.wav"), user[None], model.sample_rate)
    resampled = get_or_create_resampler(model.sample_rate, rate)(user[None])[0]
    write_wav(Path(f"{stem}_stereo.wav"), stereo(resampled, agent), rate)
    draw_conversation(
        user,
        agent,
        turns=[Turn(**turn) for turn in row["agent_turns"]],
        user_turns=[Turn(**turn) for turn in row["user_turns"]],
        sample_rates=(model.sample_rate, rate),
        path=f"{stem}.png",
        title=row["id"],
    )


def _with_audio(folder: Path, rows: Sequence[Row]) -> Iterator[tuple[Row, Tensor]]:
    """Rows with the user's audio (N,), in their order."""
    from lhotse import CutSet

    wanted = {row["id"] for row in rows}
    cuts = CutSet.from_shar(in_dir=folder / "corpus" / "test")
    audio = {cut.id: torch.from_numpy(cut.load_audio()[0]) for cut in cuts if cut.id in wanted}
    for row in rows:
        yield row, audio[row["id"]]


def _frame_samples(model: Any) -> int:
    return model.model.counter.samples_per_frame


def _share(answers: Sequence[tuple[str, str]]) -> float:
    """Of the answers that are right."""
    return sum(wanted == said for wanted, said in answers) / max(len(answers), 1)


def _loader(model: Any, shar: Path) -> Any:
    from whalesong.data.config import DataConfig
    from whalesong.data.datamodule import LanguageDataModule

    config = DataConfig(test_ds={"shar_path": str(shar), "batch_size": 25, "num_workers": 0})
    data = LanguageDataModule(
        config,
        train_collator=model.parts.train_collator,
        validation_collator=model.parts.validation_collator,
    )
    return data.test_dataloader()[0]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
