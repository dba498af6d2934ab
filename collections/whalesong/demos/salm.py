"""The SALM demo: spoken commands -> tiny ASR and LLM -> SALM -> `.nemo` -> transcripts, report."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from whalesong.demos.processes import run_module, run_together
from whalesong.demos.stages import DemoFolder, Stage, peak_memory_gib, run_stages

NUM_VALIDATION = 60


@dataclass(frozen=True)
class SalmDemo(DemoFolder):
    """Sizes of the demo.

    Attributes:
        num_train: training utterances.
        num_test: test utterances, all of unseen voices.
        asr_steps: training steps of the recognizer.
        llm_steps: training steps of the LLM.
        overrides: of `conf/experiment/salm_demo.yaml`.
    """

    name = "salm"

    num_train: int = 5000
    num_test: int = 300
    asr_steps: int = 900
    llm_steps: int = 700
    overrides: Sequence[str] = ()

    @classmethod
    def short(cls, folder: Path) -> "SalmDemo":
        """A few steps of everything: the same path, without a good word error rate."""
        steps = ("trainer.max_steps=20", "trainer.val_check_interval=10")
        return cls(folder, num_train=100, num_test=30, asr_steps=20, llm_steps=20, overrides=steps)

    def run(self) -> None:
        """Run what is not there yet and print the outcome."""
        self.folder.mkdir(parents=True, exist_ok=True)
        run_stages(
            [
                Stage("Write a corpus of spoken commands", self.corpus, self.write_corpus),
                Stage("Train a small recognizer and a small LLM", self.parts, self.train_parts),
                Stage("Train SALM on them", self.archive, self.train_salm),
                Stage("Transcribe unseen voices offline", self.summary, self.transcribe),
                Stage("Write the report", self.report, self.write_report),
            ]
        )
        print(self.summary.read_text(), end="")
        print(f"Peak memory of the largest process: {peak_memory_gib():.1f} GiB")
        print(f"Report: {self.report}\nModel:  {self.archive}")
        print(
            f"Next:   xlm job_type=predict predict.ckpt_path={self.archive} "
            f"predict.audio=[{self.folder}/examples/01.wav] "
            "predict.prompts=['Repeat after me:']"
        )

    @property
    def asr(self) -> Path:
        """The recognizer."""
        return self.folder / "asr.nemo"

    @property
    def llm(self) -> Path:
        """The LLM's folder."""
        return self.folder / "llm"

    @property
    def parts(self) -> Path:
        """Exists when both parts are trained."""
        return self.folder / "parts-trained"

    def write_corpus(self) -> None:
        """lhotse shar of train, validation and test, the last with unseen voices and speeds."""
        from whalesong.corpora.spoken_commands import write_spoken_commands

        write_spoken_commands(
            self.corpus,
            num_train=self.num_train,
            num_validation=NUM_VALIDATION,
            num_test=self.num_test,
        )

    def train_parts(self) -> None:
        """A Conformer CTC model through NeMo and a Llama through transformers, one core each."""
        jobs = {self.asr: self.asr_steps, self.llm: self.llm_steps}
        run_together(
            {
                self.folder / f"{output.stem}.log": [
                    "whalesong.demos.train_part",
                    output.stem,
                    self.corpus,
                    output,
                    steps,
                ]
                for output, steps in jobs.items()
                if not output.exists()
            }
        )
        self.parts.touch()

    def train_salm(self) -> None:
        """Training from YAML, as any user would start it."""
        run_module(
            "whalesong.cli",
            "job_type=train",
            "job_name=salm_demo",
            "experiment=salm_demo",
            f"model.pretrained_asr={self.asr}",
            f"model.pretrained_llm={self.llm}",
            f"exp_manager.explicit_log_dir={self.logs}",
            f"data.train_ds.shar_path={self.corpus}/train",
            f"data.validation_ds.datasets.val.shar_path={self.corpus}/validation",
            *self.overrides,
        )

    def transcribe(self) -> None:
        """A new process elsewhere, with the network off, gets only archive and audio."""
        with tempfile.TemporaryDirectory() as elsewhere:
            run_module(
                "whalesong.demos.transcribe",
                self.archive.absolute(),
                self.folder.absolute(),
                cwd=Path(elsewhere),
            )

    def write_report(self) -> None:
        """Curves, word error rates, and transcripts beside their audio."""
        from whalesong.demos.report import write_report

        write_report(self.folder, logs=self.logs)
