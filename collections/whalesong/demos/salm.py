"""The SALM demo: spoken commands -> tiny ASR and LLM -> SALM -> one `.nemo` -> transcripts and a report."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from whalesong.demos.stages import Stage, peak_memory_gib, run_stages


@dataclass(frozen=True)
class SalmDemo:
    """Sizes of the demo.

    Attributes:
        folder: everything is written here.
        num_train: training utterances.
        num_test: test utterances, all of unseen voices.
        asr_steps: training steps of the recognizer.
        llm_steps: training steps of the LLM.
        overrides: of `conf/experiment/salm_demo.yaml`.
    """

    folder: Path
    num_train: int = 3000
    num_test: int = 300
    asr_steps: int = 400
    llm_steps: int = 600
    overrides: Sequence[str] = ()

    def run(self) -> None:
        """Run what is not there yet and print the outcome."""
        self.folder.mkdir(parents=True, exist_ok=True)
        run_stages(
            [
                Stage("Write a corpus of spoken commands", self.corpus, self.write_corpus),
                Stage("Train a small speech recognizer", self.asr, self.train_asr),
                Stage("Train a small LLM", self.llm, self.train_llm),
                Stage("Train SALM on them", self.archive, self.train_salm),
                Stage("Transcribe unseen voices, offline", self.results, self.transcribe),
                Stage("Write the report", self.report, self.write_report),
            ]
        )
        print((self.folder / "summary.txt").read_text(), end="")
        print(f"Report: {self.report}\nModel:  {self.archive}")
        print(
            f"Next:   xlm job_type=predict predict.ckpt_path={self.archive} "
            f"predict.audio=[{self.folder}/examples/01.wav]"
        )

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def asr(self) -> Path:
        return self.folder / "asr.nemo"

    @property
    def llm(self) -> Path:
        return self.folder / "llm"

    @property
    def logs(self) -> Path:
        return self.folder / "salm"

    @property
    def archive(self) -> Path:
        return self.logs / "checkpoints" / "salm_demo.nemo"

    @property
    def results(self) -> Path:
        return self.folder / "test.jsonl"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def write_corpus(self) -> None:
        """lhotse shar of train, validation and test; voices, speeds and pitches of the test are unseen."""
        from whalesong.corpora.spoken_commands import write_spoken_commands

        write_spoken_commands(
            self.corpus, num_train=self.num_train, num_validation=60, num_test=self.num_test
        )

    def train_asr(self) -> None:
        """A Conformer CTC model through NeMo."""
        _run_module("whalesong.demos.train_asr", self.corpus, self.asr, self.asr_steps)

    def train_llm(self) -> None:
        """A Llama through transformers."""
        _run_module("whalesong.demos.train_llm", self.corpus, self.llm, self.llm_steps)

    def train_salm(self) -> None:
        """Training from YAML, as any user would start it."""
        overrides = [
            f"model.pretrained_asr={self.asr}",
            f"model.pretrained_llm={self.llm}",
            f"corpus={self.corpus}",
            f"exp_manager.explicit_log_dir={self.logs}",
            *self.overrides,
        ]
        command = ["job_type=train", "job_name=salm_demo", "experiment=salm_demo", *overrides]
        _run_module("whalesong.cli", *command)

    def transcribe(self) -> None:
        """A new process in another folder, with no network, has nothing but the archive and the audio."""
        with tempfile.TemporaryDirectory() as elsewhere:
            _run_module("whalesong.demos.transcribe", self.archive, self.folder, cwd=Path(elsewhere))

    def write_report(self) -> None:
        """Curves, word error rates, and transcripts beside their audio."""
        from whalesong.demos.report import write_report

        write_report(self.folder, logs=self.logs, peak_memory=peak_memory_gib())


def _run_module(module: str, *arguments: object, cwd: Path | None = None) -> None:
    """Run a module in a process of its own, so that memory and state end with it."""
    subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        check=True,
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
