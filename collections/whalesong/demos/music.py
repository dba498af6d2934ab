"""The music demo: loops with captions -> codec -> codes -> text to music -> wavs, report."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from whalesong.demos.codes import SAMPLE_RATE, CodesDemo
from whalesong.demos.processes import run_module
from whalesong.demos.stages import Stage, peak_memory_gib, run_stages

MAX_WORDS = 1000
"""Bound for the tokens of captions; there are about half as many."""


@dataclass(frozen=True)
class MusicDemo(CodesDemo):
    """Sizes of the demo.

    Attributes:
        num_train: training loops.
        num_validation: validation loops.
        num_test: test loops; training has no captions like theirs.
        overrides: of `conf/experiment/music_demo.yaml`.
    """

    name = "music"
    codebook_size = 256
    codec_seconds = 600.0

    num_train: int = 2000
    num_validation: int = 48
    num_test: int = 96
    overrides: Sequence[str] = ()

    @classmethod
    def short(cls, folder: Path) -> "MusicDemo":
        """A few steps of everything: the same path, without music."""
        steps = (
            "trainer.max_steps=6",
            "trainer.val_check_interval=3",
            "data.train_ds.batch_size=4",
        )
        return cls(folder, num_train=24, num_validation=4, num_test=8, overrides=steps)

    def run(self) -> None:
        """Run what is not there yet and print the outcome."""
        self.folder.mkdir(parents=True, exist_ok=True)
        run_stages(
            [
                Stage("Play a corpus of captioned loops", self.corpus, self.write_corpus),
                Stage("Collect the words of the captions", self.words, self.learn_words),
                Stage("Fit a codec", self.codec, self.fit_codec),
                Stage("Turn the loops into codes", self.tokenized, self.tokenize),
                Stage("Train text to music on the codes", self.archive, self.train),
                Stage("Play unseen captions offline", self.summary, self.compose),
                Stage("Write the report", self.report, self.write_report),
            ]
        )
        print(self.summary.read_text(), end="")
        print(f"Peak memory of the largest process: {peak_memory_gib():.1f} GiB")
        print(f"Report: {self.report}\nModel:  {self.archive}")
        print(
            "Next:   python examples/codec_lm/generate.py "
            f"predict.ckpt_path={self.archive} "
            "\"predict.prompts=['a slow low piano melody', 'fast high-pitched flute']\"\n"
            "        and an audio prompt with them: "
            f"predict.audio=[{self.folder}/examples/01_real.wav]"
        )

    @property
    def words(self) -> Path:
        """The tokenizer of the captions."""
        return self.folder / "words"

    def write_corpus(self) -> None:
        """lhotse shar of train, validation and test, the last with combinations of its own."""
        from whalesong.corpora.music_loops import write_music_loops

        write_music_loops(
            self.corpus,
            num_train=self.num_train,
            num_validation=self.num_validation,
            num_test=self.num_test,
            sample_rate=SAMPLE_RATE,
        )

    def learn_words(self) -> None:
        """A tokenizer with a token for each word of the training captions."""
        from lhotse import CutSet

        from whalesong.core.atomic import atomic_folder
        from whalesong.tiny.tokenizer import train_tokenizer

        cuts = CutSet.from_shar(in_dir=self.corpus / "train")
        # No token may join a word to the comma behind it.
        captions = [cut.supervisions[0].text.replace(",", " ,").replace(":", " :") for cut in cuts]
        with atomic_folder(self.words) as partial:
            train_tokenizer(captions, max_vocab_size=MAX_WORDS).save_pretrained(partial)

    def train(self) -> None:
        """Training from YAML, as any user would start it."""
        run_module(
            "whalesong.cli",
            "job_type=train",
            "job_name=music_demo",
            "experiment=music_demo",
            f"model.pretransform.config.model_path={self.codec}",
            f"model.conditioning.configs.0.config.tokenizer_name={self.words}",
            f"exp_manager.explicit_log_dir={self.logs}",
            f"data.train_ds.shar_path={self.corpus}/train",
            f"data.validation_ds.datasets.val.shar_path={self.corpus}/validation",
            *self.overrides,
        )

    def compose(self) -> None:
        """A new process elsewhere, with the network off, gets only archive and test set."""
        with tempfile.TemporaryDirectory() as elsewhere:
            run_module(
                "whalesong.demos.music_compose",
                self.archive.absolute(),
                self.folder.absolute(),
                cwd=Path(elsewhere),
            )

    def write_report(self) -> None:
        """Curves, values, and what was played beside its caption."""
        from whalesong.demos.music_report import write_report

        write_report(self.folder, logs=self.logs)
