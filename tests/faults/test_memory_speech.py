"""Long runs of the families with a recognizer and an LLM hold no more memory than short ones."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.long_runs import check_memory


@pytest.mark.parametrize("family", ("salm", "duplex_s2s", "duplex_s2s_speech_decoder"))
def test_memory_of_long_runs(
    family: str,
    family_job: Callable[..., list[str]],
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    check_memory(family, family_job, tmp_path, survival)
