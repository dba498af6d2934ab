"""Killed at any step, any number of times: the run is, bit by bit, the one that was never killed.

The families of text.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.resuming import SETTINGS, Setting, difference


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("family", ["arlm", "mlm", "ilm", "mdlm"])
def test_killed_and_resumed_is_never_killed(
    family: str,
    setting: Setting,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    kills = setting.kills[:3]
    found = difference(family, setting, request, folder=tmp_path, kills=kills)
    survival("R1", tried=len(kills), survived=len(kills) * (found is None), detail=family)
    assert found is None
