"""Every test of external models leaves the process as it was."""

import sys
from pathlib import Path

import pytest

from whalesong.core import instantiate


@pytest.fixture(autouse=True)
def clean_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory; import path and allow-list are put back behind the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(instantiate, "_REGISTERED", set(instantiate._REGISTERED))
    for name in ("XLM_MODELS_PATH", "XLM_MODELS_PACKAGES"):
        monkeypatch.delenv(name, raising=False)
