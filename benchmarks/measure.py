"""Time and peak memory of one process. Linux only."""

import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

MIB = 2**20


@dataclass
class Timings:
    """Seconds of each repetition: of the CPU, and on the wall."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Begin one repetition."""
        self._began = (time.process_time(), time.perf_counter())

    def stop(self) -> None:
        """End it."""
        cpu, wall = self._began
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)

    def medians(self, *, skip: int = 0) -> dict[str, float]:
        """Median seconds of the CPU and on the wall, without the first `skip` repetitions."""
        return {"cpu": median(self.cpu[skip:]), "wall": median(self.wall[skip:])}


def resident_bytes(kind: str = "VmRSS") -> int:
    """Memory of this process now (`VmRSS`), or its peak since `reset_peak` (`VmHWM`)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status must have {kind}, but has none.")


def reset_peak() -> None:
    """Give free memory back to the system and start the peak anew from what is left."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak_above(base: int, work: Callable[[], None]) -> int:
    """Run `work` and return how far the memory of this process rose above `base` bytes."""
    reset_peak()
    work()
    return resident_bytes("VmHWM") - base
