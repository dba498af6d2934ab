"""The AudioLM demo: looped melodies -> codec -> codes -> AudioLM -> continuations, report."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from whalesong.demos.codes import SAMPLE_RATE, CodesDemo
from whalesong.demos.processes import run_module
from whalesong.demos.stages import Stage, peak_memory_gib, run_stages


@dataclass(frozen=True)
class AudioLMDemo(CodesDemo):
    """Sizes of the demo.

    Attributes:
        num_train: training melodies.
        num_validation: validation melodies, of motifs that training never hears.
        num_test: test melodies, of still other motifs.
        overrides: of `conf/experiment/audiolm_demo.yaml`.
    """

    name = "audiolm"
    codebook_size = 128
    codec_seconds = 1000.0

    num_train: int = 1200
    num_validation: int = 32
    num_test: int = 64
    overrides: Sequence[str] = ()

    @classmethod
    def short(cls, folder: Path) -> "AudioLMDemo":
        """A few steps of everything: the loss falls, but nothing of a melody is learned."""
        steps = (
            "trainer.max_steps=16",
            "trainer.val_check_interval=8",
            "trainer.log_every_n_steps=2",
            "model.lr_scheduler.warmup_steps=4",
            "model.window_seconds=2",
        )
        return cls(folder, num_train=24, num_validation=4, num_test=8, overrides=steps)

    def run(self) -> None:
        """Run what is not there yet and print the outcome."""
        self.folder.mkdir(parents=True, exist_ok=True)
        run_stages(
            [
                Stage("Play a corpus of looped melodies", self.corpus, self.write_corpus),
                Stage("Fit a codec", self.codec, self.fit_codec),
                Stage("Turn the melodies into codes", self.tokenized, self.tokenize),
                Stage("Train AudioLM on the codes", self.archive, self.train),
                Stage("Continue unseen melodies offline", self.summary, self.continue_melodies),
                Stage("Write the report", self.report, self.write_report),
            ]
        )
        from whalesong.demos.audiolm_report import training_loss

        first, last = training_loss(self.logs)
        print(self.summary.read_text(), end="")
        print(f"Training loss: from {first:.2f} to {last:.2f} nats a code.")
        print(f"Peak memory of the largest process: {peak_memory_gib():.1f} GiB")
        print(f"Report: {self.report}\nModel:  {self.archive}")
        print(
            "Next:   python examples/audiolm/generate.py "
            f"predict.ckpt_path={self.archive} "
            f"'predict.begin=[{self.folder}/examples/01_prompt.wav]' "
            "predict.generation.max_seconds=6"
        )

    def write_corpus(self) -> None:
        """lhotse shar of train, validation and test, each with motifs of its own."""
        from whalesong.corpora.melodies import write_melodies

        write_melodies(
            self.corpus,
            num_train=self.num_train,
            num_validation=self.num_validation,
            num_test=self.num_test,
            sample_rate=SAMPLE_RATE,
        )

    def train(self) -> None:
        """Training from YAML, as any user would start it."""
        run_module(
            "whalesong.cli",
            "job_type=train",
            "job_name=audiolm_demo",
            "experiment=audiolm_demo",
            f"model.pretransform.config.model_path={self.codec}",
            f"exp_manager.explicit_log_dir={self.logs}",
            f"data.train_ds.shar_path={self.corpus}/train",
            f"data.validation_ds.datasets.val.shar_path={self.corpus}/validation",
            *self.overrides,
        )

    def continue_melodies(self) -> None:
        """A new process elsewhere, with the network off, gets only archive and corpus."""
        with tempfile.TemporaryDirectory() as elsewhere:
            run_module(
                "whalesong.demos.audiolm_continue",
                self.archive.absolute(),
                self.folder.absolute(),
                cwd=Path(elsewhere),
            )

    def write_report(self) -> None:
        """Curves, values, and what was played beside what follows."""
        from whalesong.demos.audiolm_report import write_report

        write_report(self.folder, logs=self.logs)
