"""Self-contained `.nemo` archives: written atomically, read without executing anything."""

from whalesong.core.archive.reader import Archive, inspect_archive, open_archive
from whalesong.core.archive.state import check_state_keys, require_class
from whalesong.core.archive.writer import write_archive

__all__ = [
    "Archive",
    "check_state_keys",
    "inspect_archive",
    "open_archive",
    "require_class",
    "write_archive",
]
