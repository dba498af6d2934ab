"""The text demo: arlm, mlm, ilm and mdlm learn star graphs -> answers, table, picture."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from whalesong.demos.processes import run_together
from whalesong.demos.stages import DemoFolder, Stage, peak_memory_gib, run_stages

MODELS = ("arlm", "ilm", "mlm", "mdlm")

Bars = dict[str, tuple[float, float]]
"""For each model, between which shares its exact matches have to be."""

ONE_OF_THREE = (0.25, 0.42)
"""Around the best that a model without look-ahead can do with three arms."""


def mini_bars() -> Bars:
    """What the models reach on `star_mini`."""
    return {"arlm": ONE_OF_THREE, "ilm": (0.95, 1.0), "mlm": (0.9, 1.0), "mdlm": (0.9, 1.0)}


@dataclass(frozen=True)
class TextLMDemo(DemoFolder):
    """Sizes of the demo.

    Attributes:
        task: data set and experiments: `star_mini`, ...
        num_test: test graphs.
        bars: what the models have to reach; nothing is said of others.
        overrides: of `conf/experiment/<task>_<model>.yaml`; they win over `last_overrides`.
        last_overrides: of the experiments of the two models that are trained last.
    """

    name = "textlm"

    task: str = "star_mini"
    num_test: int = 1000
    bars: Bars = field(default_factory=mini_bars)
    overrides: Sequence[str] = ()
    last_overrides: Sequence[str] = ()

    @classmethod
    def short(cls, folder: Path) -> Self:
        """A few steps of everything: the same path, without a right answer."""
        steps = (
            "trainer.max_steps=8",
            "trainer.val_check_interval=4",
            "trainer.log_every_n_steps=2",
            "datamodule.train_ds.batch_size=8",
        )
        return cls(folder, num_test=8, bars={}, overrides=steps)

    def run(self) -> None:
        """Run what is not there yet and print the outcome."""
        self.folder.mkdir(parents=True, exist_ok=True)
        pairs = (MODELS[:2], MODELS[2:])
        run_stages(
            [
                *(
                    Stage(
                        f"Train {' and '.join(pair)} side by side",
                        self._marker("trained", pair),
                        lambda pair=pair: self.train(pair),
                    )
                    for pair in pairs
                ),
                Stage("Answer unseen graphs offline", self.answered, self.answer),
                Stage("Write table, picture and report", self.report, self.write_report),
            ]
        )
        print(self.summary.read_text(), end="")
        print(f"Peak memory of the largest process: {peak_memory_gib():.1f} GiB")
        print(f"Step by step: {self.folder}/steps.txt\nReport: {self.report}")
        print(f"Models: {', '.join(str(self.archive_of(name)) for name in MODELS)}")
        print(
            f"Next:   xlm job_type=generate predict.ckpt_path={self.archive_of('ilm')} "
            "'predict.prompts=[0 1 2 3 0 2 4 5 5 6 0 4 0 6]'"
        )

    @property
    def answered(self) -> Path:
        """Exists when every model has answered the test graphs."""
        return self.folder / "answered"

    def logs_of(self, name: str) -> Path:
        """Log folder of a model's training."""
        return self.folder / name

    def archive_of(self, name: str) -> Path:
        """A trained model."""
        return self.logs_of(name) / "checkpoints" / f"{name}.nemo"

    def train(self, names: Sequence[str]) -> None:
        """Training from YAML, as any user would start it; two models at the same time."""
        missing = [name for name in names if not self.archive_of(name).exists()]
        commands = {self.folder / f"{name}.log": self._training(name) for name in missing}
        run_together(commands)
        self._marker("trained", names).touch()

    def answer(self) -> None:
        """New processes with the network off; all that they get are the archives."""
        jobs = [(MODELS[0], MODELS[3]), (MODELS[1], MODELS[2])]  # the slowest apart
        module = "whalesong.demos.textlm_answer"
        run_together(
            {
                self.folder / f"{'-'.join(names)}-answers.log": [
                    *(module, self.folder, self.task, self.num_test),
                    *(self.archive_of(name) for name in names),
                ]
                for names in jobs
            }
        )
        self.answered.touch()

    def write_report(self) -> None:
        """Table, verdicts, curves, and how each model fills its answer."""
        from whalesong.demos.textlm_report import write_report

        write_report(self.folder, task=self.task, models=MODELS, bars=self.bars)

    def _training(self, name: str) -> list[object]:
        last = self.last_overrides if name in MODELS[2:] else ()
        return [
            "whalesong.demos.textlm_train",
            self.logs_of(name) / "cpu_seconds.txt",
            "job_type=train",
            f"job_name={name}",
            f"experiment={self.task}_{name}",
            f"exp_manager.explicit_log_dir={self.logs_of(name)}",
            "resume=true",
            *last,
            *self.overrides,
        ]

    def _marker(self, what: str, names: Sequence[str]) -> Path:
        return self.folder / f"{what}-{'-'.join(names)}"


@dataclass(frozen=True)
class FullTextLMDemo(TextLMDemo):
    """The demo on `star_easy`, the published size; mlm and mdlm learn as long as the hour lasts."""

    name = "textlm_full"

    task: str = "star_easy"
    bars: Bars = field(default_factory=lambda: {"arlm": ONE_OF_THREE, "ilm": (0.95, 1.0)})
    last_overrides: Sequence[str] = ("trainer.max_steps=20000", "trainer.max_time=00:00:38:00")
