"""Long runs of the families of codes and of texts hold no more memory than short ones."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.long_runs import check_memory


@pytest.mark.parametrize("family", ("codec_lm", "audiolm", "arlm", "mlm", "ilm", "mdlm"))
def test_memory_of_long_runs(
    family: str,
    family_job: Callable[..., list[str]],
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    check_memory(family, family_job, tmp_path, survival)
