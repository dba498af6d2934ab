"""The duplex demo: dialogues -> recognizer, codec, LLM -> duplex model -> conversations, report."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from whalesong.demos.processes import run_module, run_together
from whalesong.demos.stages import DemoFolder, Stage, peak_memory_gib, run_stages

PART = "whalesong.demos.duplex_part"


@dataclass(frozen=True)
class DuplexDemo(DemoFolder):
    """Sizes of the demo.

    Attributes:
        num_train: training dialogues.
        num_validation: validation dialogues.
        num_test: test dialogues, of voices and commands that training never hears.
        num_words: utterances that the recognizer learns from.
        asr_steps: training steps of the recognizer.
        overrides: of `conf/experiment/duplex_demo.yaml`.
    """

    name = "duplex"

    num_train: int = 3600
    num_validation: int = 30
    num_test: int = 120
    num_words: int = 4000
    asr_steps: int = 800
    overrides: Sequence[str] = ()

    @classmethod
    def short(cls, folder: Path) -> "DuplexDemo":
        """A few steps of everything: the same path, without a right answer."""
        steps = (
            "trainer.max_steps=16",
            "trainer.val_check_interval=16",
            "trainer.log_every_n_steps=2",
            "model.lr_scheduler.warmup_steps=4",
        )
        sizes = {"num_train": 100, "num_validation": 4, "num_test": 12, "num_words": 100}
        return cls(folder, **sizes, asr_steps=20, overrides=steps)

    def run(self) -> None:
        """Run what is not there yet and print the outcome."""
        self.folder.mkdir(parents=True, exist_ok=True)
        run_stages(
            [
                Stage("Speak dialogues and words", self.spoken, self.speak),
                Stage("Make recognizer, codec and LLM", self.parts, self.make_parts),
                Stage("Train the duplex model on them", self.archive, self.train),
                Stage("Converse with unseen voices offline", self.summary, self.converse),
                Stage("Write the report", self.report, self.write_report),
            ]
        )
        print(self.summary.read_text(), end="")
        print(f"Peak memory of the largest process: {peak_memory_gib():.1f} GiB")
        print(f"Report: {self.report}\nModel:  {self.archive}")
        print(
            "Next:   python examples/speechlm2/s2s_duplex_infer.py "
            f"predict.ckpt_path={self.archive} "
            f"'predict.audio=[{self.folder}/examples/01_user.wav]' predict.generation.stream=true"
        )

    @property
    def spoken(self) -> Path:
        """Exists when all speech is synthesized."""
        return self.folder / "spoken"

    @property
    def parts(self) -> Path:
        """Exists when recognizer, codec and LLM are there."""
        return self.folder / "parts-made"

    @property
    def asr(self) -> Path:
        """The recognizer: what the model hears with, and what listens to it in the end."""
        return self.folder / "asr.nemo"

    def speak(self) -> None:
        """Two-channel dialogues, and utterances for the recognizer."""
        counts = (self.num_train, self.num_validation, self.num_test)
        corpora = {
            self.corpus: ["dialogues", self.folder, *counts],
            self.folder / "words": ["words", self.folder, self.num_words],
        }
        self._make(corpora)
        self.spoken.touch()

    def make_parts(self) -> None:
        """A Conformer CTC model through NeMo; meanwhile codec and LLM."""
        parts = {
            self.asr: ["asr", self.folder, self.asr_steps],
            self.folder / "codec.safetensors": ["codec", self.folder],
            self.folder / "llm": ["llm", self.folder],
        }
        self._make(parts)
        self.parts.touch()

    def train(self) -> None:
        """Training from YAML, as any user would start it."""
        run_module(
            "whalesong.cli",
            "job_type=train",
            "job_name=duplex_demo",
            "experiment=duplex_demo",
            f"model.pretrained_asr={self.asr}",
            # Whoever opens the archive may be in another folder.
            f"model.scoring_asr={self.asr.absolute()}",
            f"model.pretrained_llm={self.folder}/llm",
            f"model.pretrained_audio_codec={self.folder}/codec.safetensors",
            f"exp_manager.explicit_log_dir={self.logs}",
            f"data.train_ds.shar_path={self.corpus}/train",
            f"data.validation_ds.datasets.val.shar_path={self.corpus}/validation",
            *self.overrides,
        )

    def converse(self) -> None:
        """A new process elsewhere, with the network off: only archive, recognizer and audio."""
        with tempfile.TemporaryDirectory() as elsewhere:
            run_module(
                "whalesong.demos.duplex_converse",
                self.archive.absolute(),
                self.folder.absolute(),
                cwd=Path(elsewhere),
            )

    def write_report(self) -> None:
        """Curves, values, and conversations to listen to."""
        from whalesong.demos.duplex_report import write_report

        write_report(self.folder, logs=self.logs)

    def _make(self, outputs: dict[Path, list[object]]) -> None:
        """Run the parts whose output is missing, at the same time."""
        run_together(
            {
                self.folder / f"{output.stem}.log": [PART, *command]
                for output, command in outputs.items()
                if not output.exists()
            }
        )
