"""Train one model of the text demo as `xlm` does, and note what processor time it took.

python -m whalesong.demos.textlm_train seconds.txt job_type=train key=value...
"""

import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from whalesong.cli import main


def train(seconds_file: Path, arguments: Sequence[str]) -> None:
    """Run `xlm`; add its processor time to that of the runs which this one continues."""
    before = float(seconds_file.read_text()) if seconds_file.exists() else 0.0
    try:
        main(arguments)
    finally:
        seconds_file.parent.mkdir(parents=True, exist_ok=True)
        seconds_file.write_text(f"{before + _processor_seconds():.1f}\n")


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2:])
