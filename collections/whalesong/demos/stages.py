"""Stages that are kept: a demo that is run again goes on where it stopped."""

import argparse
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self


@dataclass(frozen=True)
class DemoFolder:
    """Where the stages of a demo leave what they make.

    Attributes:
        folder: everything is written here.
    """

    name: ClassVar[str]

    folder: Path

    @classmethod
    def short(cls, folder: Path) -> Self:
        """A few steps of everything."""
        raise NotImplementedError

    def run(self) -> None:
        """Run what is not there yet and print the outcome."""
        raise NotImplementedError

    @property
    def corpus(self) -> Path:
        """Shar folders `train`, `validation`, `test`."""
        return self.folder / "corpus"

    @property
    def logs(self) -> Path:
        """Log folder of exp_manager."""
        return self.folder / self.name

    @property
    def archive(self) -> Path:
        """The trained model."""
        return self.logs / "checkpoints" / f"{self.name}_demo.nemo"

    @property
    def summary(self) -> Path:
        """What was measured, as text."""
        return self.folder / "summary.txt"

    @property
    def report(self) -> Path:
        """The page with curves and examples."""
        return self.folder / "report.html"


def run_demo(demo: type[DemoFolder], *, description: str) -> None:
    """Parse the command line of a demo's script and run its stages.

    Args:
        demo: of the script.
        description: the first line is shown by `--help`.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    folder = Path("demo") / demo.name
    parser.add_argument("--folder", type=Path, default=folder, help="where all is written")
    parser.add_argument("--short", action="store_true", help="a few steps of everything, for CI")
    options = parser.parse_args()
    chosen = demo.short(options.folder) if options.short else demo(options.folder)
    chosen.run()


@dataclass(frozen=True)
class Stage:
    """One step of a demo.

    Attributes:
        name: what it does, shown to the user.
        output: exists when the stage is complete; every stage writes it whole or not at all.
        run: does the work.
    """

    name: str
    output: Path
    run: Callable[[], None]


def run_stages(stages: list[Stage]) -> None:
    """Run the stages whose output is missing, and say how long each took.

    SIGTERM ends a stage as Ctrl-C does, and the processes that it has started with it.
    """
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        for number, stage in enumerate(stages, start=1):
            _run_stage(stage, f"[{number}/{len(stages)}] {stage.name}")
    finally:
        signal.signal(signal.SIGTERM, previous)


def _run_stage(stage: Stage, heading: str) -> None:
    if stage.output.exists():
        print(f"{heading}: kept from before, {stage.output}", flush=True)
        return
    print(heading, flush=True)
    begin = time.perf_counter()
    stage.run()
    if not stage.output.exists():
        raise RuntimeError(f"stage '{stage.name}' ended without its output {stage.output}")
    print(f"    done in {time.perf_counter() - begin:.0f} s -> {stage.output}", flush=True)


def peak_memory_gib() -> float:
    """Peak resident memory of this process and of the largest of its children, in GiB."""
    kib = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return kib / 1024**2
