"""What happens to data that cannot be used: stop, or leave out, log and count."""

import logging
import re
from typing import Literal

from whalesong.core.errors import DataError

logger = logging.getLogger(__name__)

ADDRESS = re.compile(r"'?<[\w.]+ object at 0x[0-9a-f]+>'?")
"""How python prints an object without a name, as found in messages of decoders."""

OnBadCut = Literal["raise", "skip"]


class Faults:
    """Takes every fault in the data of one plan and its loader."""

    def __init__(self, on_bad_cut: OnBadCut = "raise", *, quiet: bool = False) -> None:
        """`raise` stops at the first fault; `skip` logs each one once and counts it.

        With `quiet` it is counted only, for a look at the data before they are used.
        """
        self.on_bad_cut = on_bad_cut
        self.quiet = quiet
        self._lost: dict[str, int] = {}
        self._logged = 0

    @property
    def total(self) -> int:
        """Examples left out so far, each counted once."""
        return sum(self._lost.values())

    def report(self, message: str, *, lost: int = 1) -> None:
        """Raise a `DataError`, or log and count a fault that cost `lost` examples."""
        if self.on_bad_cut == "raise":
            raise DataError(message)
        if message not in self._lost and not self.quiet:
            logger.warning("Left out: %s" if lost else "Used all the same: %s", message)
        self._lost[message] = lost

    def log_total(self, name: str) -> None:
        """Log what was left out, if it is more than when this was last called."""
        if len(self._lost) > self._logged:
            self._logged = len(self._lost)
            logger.warning(
                "`%s`: left out in all: %s, for %s.",
                name,
                _counted(self.total, "example"),
                _counted(len(self._lost), "fault"),
            )


def _counted(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def cause(error: BaseException, limit: int = 200) -> str:
    """The first line of an error, short enough for a message of one line."""
    lines = str(error).strip().splitlines()
    text = ADDRESS.sub("memory", lines[0]).rstrip(".") if lines else type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}..."
