"""A folder as a user has it: the checkout, an environment, the demo's parts, own recordings."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from whalesong.demos.salm import SalmDemo

ROOT = Path(__file__).resolve().parents[2]
SHIMS = {
    "python": '"$@"',
    "xlm": '-m whalesong.cli "$@"',
    "xlm-scaffold": '-m whalesong.core.scaffold.command "$@"',
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What git brings."""
    for name in ("conf", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.fixture
def shell(checkout: Path) -> Callable[..., str]:
    """Run a command line in the checkout, offline, with this interpreter as its environment."""
    environment = checkout / ".venv" / "bin"
    environment.mkdir(parents=True)
    for name, arguments in SHIMS.items():
        (environment / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}\n')
        (environment / name).chmod(0o755)
    (environment / "activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n')

    def run(command: str, *, cwd: Path = checkout) -> str:
        variables = {"PATH": f"{environment}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=cwd,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    return run


@pytest.fixture
def demo_parts(checkout: Path, tiny_asr: Path, tiny_llm: Callable[..., Path]) -> SalmDemo:
    """The demo whose pretrained parts lie in `demo/salm`, untrained."""
    few = ("max_steps=2", "val_check_interval=2")
    demo = SalmDemo(checkout / "demo" / "salm", overrides=[f"trainer.{setting}" for setting in few])
    demo.folder.mkdir(parents=True)
    demo.llm.symlink_to(tiny_llm("llama"))
    demo.asr.symlink_to(tiny_asr)
    return demo


@pytest.fixture
def demo(demo_parts: SalmDemo, recordings: Path) -> SalmDemo:
    """The demo with a SALM of two steps and the first of its audible examples."""
    from whalesong.corpora.spoken_commands import write_spoken_commands

    write_spoken_commands(demo_parts.corpus, num_train=4, num_validation=2, num_test=2)
    demo_parts.train_salm()
    examples = demo_parts.folder / "examples"
    examples.mkdir()
    shutil.copy(recordings / "test" / "000.wav", examples / "01.wav")
    return demo_parts


@pytest.fixture
def duplex_parts(
    checkout: Path, causal_asr: Path, tiny_llm: Callable[..., Path], duplex_codec: Path
) -> Path:
    """The folder `demo/duplex` with pretrained parts that are not trained."""
    folder = checkout / "demo" / "duplex"
    folder.mkdir(parents=True)
    parts = {"llm": tiny_llm(), "asr.nemo": causal_asr, "codec.safetensors": duplex_codec}
    for name, path in parts.items():
        (folder / name).symlink_to(path)
    return folder


@pytest.fixture
def talks(checkout: Path, dialogues: list[Any]) -> Path:
    """Dialogues as wav files of each side, with a manifest for each of train and validation."""
    import soundfile

    folder = checkout / "talks"
    folder.mkdir()
    lines = []
    for number, (user, agent, turns) in enumerate(dialogues, start=1):
        soundfile.write(folder / f"{number}_user.wav", user, 16000)
        soundfile.write(folder / f"{number}_agent.wav", agent, 22050)
        keys = ("speaker", "begin", "end", "text")
        spoken = [(speaker, begin, begin + length, text) for speaker, begin, length, text in turns]
        talk = {side: f"talks/{number}_{side}.wav" for side in ("user", "agent")}
        talk["turns"] = [dict(zip(keys, turn, strict=True)) for turn in spoken]
        lines.append(json.dumps(talk))
    for name, part in (("train", lines[:8]), ("validation", lines[8:])):
        (folder / f"{name}.jsonl").write_text("\n".join(part) + "\n")
    return folder


@pytest.fixture
def recordings(checkout: Path) -> Path:
    """Spoken sentences as wav files, with a manifest for each of train, validation and test."""
    import soundfile

    from whalesong.corpora.espeak import Synthesizer
    from whalesong.corpora.grammar import sample_sentences

    synthesizer, folder = Synthesizer(), checkout / "recordings"
    for split in ("train", "validation", "test"):
        (folder / split).mkdir(parents=True)
        lines = []
        for index, text in enumerate(sample_sentences(0, 4, split=split)):
            audio = synthesizer.speak(text, voice="en-us", variant="f2", rate_wpm=180, pitch=50)
            name = f"{split}/{index:03d}.wav"
            soundfile.write(folder / name, audio, synthesizer.sample_rate)
            lines.append(json.dumps({"audio_filepath": name, "text": text}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder
