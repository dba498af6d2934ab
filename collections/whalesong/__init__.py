"""Whalesong: speech and audio language models, built the NeMo way.

Importing this package costs nothing heavy: every public name is loaded when it is first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> the module that defines it.
_PUBLIC = {
    "load": "whalesong.core.archived_model",
    "SALM": "whalesong.models.salm.salm",
}

__all__ = ["SALM", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'whalesong' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
