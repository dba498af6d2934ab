"""Self-contained `.nemo` archives: written atomically, read without executing anything."""

from whalesong.core.archive.reader import Archive, inspect_archive, open_archive
from whalesong.core.archive.state import check_state_keys, require_class
from whalesong.core.archive.writer import write_archive
from whalesong.core.instantiate import check_targets

__all__ = [
    "Archive",
    "check_state_keys",
    "check_targets",
    "inspect_archive",
    "open_archive",
    "require_class",
    "write_archive",
]
