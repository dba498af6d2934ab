"""Stages that are kept: a demo that is run again goes on where it stopped."""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


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
    """Run the stages whose output is missing, and say how long each took."""
    for number, stage in enumerate(stages, start=1):
        heading = f"[{number}/{len(stages)}] {stage.name}"
        if stage.output.exists():
            print(f"{heading}: kept from before, {stage.output}", flush=True)
            continue
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
