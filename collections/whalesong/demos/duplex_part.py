"""Make one of the duplex demo's parts in a process of its own.

python -m whalesong.demos.duplex_part dialogues|words|asr|codec|llm folder sizes
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NUM_CODEC_DIALOGUES = 600
"""Among them the codec finds what it is fitted to."""

SILENT_FRAMES = 3

SAMPLE_RATE = 22050
FRAME_SAMPLES = 1764
CODEC = {
    "num_codebooks": 2,
    "codebook_size": 512,
    "windows_per_frame": 14,
    "n_fft": 504,
    "n_mels": 40,
    "block_frames": 28,
    "context_frames": 14,
    "floor": 2e-5,
}
"""Sizes of the codec: one voice whose words begin on frames needs no more."""

LLM = {"hidden_size": 192, "num_layers": 4, "vocab_size": 512}


def write_dialogues(folder: Path, num_train: int, num_validation: int, num_test: int) -> None:
    """lhotse shar of two channels: train, validation, and test with unseen voices and commands."""
    from whalesong.corpora import dialogues

    dialogues.write_dialogues(
        folder / "corpus", num_train=num_train, num_validation=num_validation, num_test=num_test
    )


def write_words(folder: Path, count: int) -> None:
    """lhotse shar of utterances for the recognizer."""
    from whalesong.corpora.spoken_words import write_spoken_words

    write_spoken_words(folder / "words", count=count)


def train_asr(folder: Path, steps: int) -> None:
    """A Conformer CTC model that does not look ahead, for both voices."""
    from whalesong.experiment import quiet_libraries
    from whalesong.tiny.asr import train_tiny_asr

    quiet_libraries()
    train_tiny_asr(
        folder / "words", folder / "asr.nemo", max_steps=steps, num_layers=3, streaming=True
    )


def fit_codec(folder: Path) -> None:
    """Residual k-means on spectra of the agent's answers, 12.5 frames a second."""
    from whalesong.modules.codec.files import save_codec
    from whalesong.modules.codec.training import CodecRecipe
    from whalesong.sound.make_codec import make_codec

    codec = make_codec(
        "mel_rvq",
        read_answers(folder / "corpus" / "train"),
        sample_rate=SAMPLE_RATE,
        hop_length=FRAME_SAMPLES,
        recipe=CodecRecipe(seed=0),
        **CODEC,
    )
    save_codec(codec, folder / "codec.safetensors")


def read_answers(shar: Path) -> "list[Tensor]":
    """Each different answer once, uninterrupted where it is ever, with silence around it."""
    import torch
    from lhotse import CutSet

    answers: dict[str, Tensor] = {}
    around = SILENT_FRAMES * FRAME_SAMPLES
    for cut in CutSet.from_shar(in_dir=shar).subset(first=NUM_CODEC_DIALOGUES):
        audio = torch.from_numpy(cut.load_target_audio()[0])
        for turn in cut.supervisions:
            begin, end = (round(time * SAMPLE_RATE) for time in (turn.start, turn.end))
            known = answers.get(turn.text, ())
            if turn.speaker == "agent" and end - begin + 2 * around > len(known):
                words = audio[begin:end]
                answers[turn.text] = torch.nn.functional.pad(words, (around, around))
    return list(answers.values())


def build_llm(folder: Path) -> None:
    """A small Llama without training, whose tokens are the words of questions and answers."""
    from whalesong.corpora.questions import all_questions
    from whalesong.tiny.llm import build_tiny_llm

    texts = [text for question in all_questions() for text in (question.text, question.answer)]
    build_tiny_llm(folder / "llm", texts=texts, **LLM)


PARTS = {
    "dialogues": write_dialogues,
    "words": write_words,
    "asr": train_asr,
    "codec": fit_codec,
    "llm": build_llm,
}

if __name__ == "__main__":
    PARTS[sys.argv[1]](Path(sys.argv[2]), *map(int, sys.argv[3:]))
