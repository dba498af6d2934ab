"""Killed at any step, any number of times: the run is, bit by bit, the one that was never killed.

The families that hear speech.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.resuming import SETTINGS, Setting, assert_never_killed


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("family", ["salm", "duplex_s2s", "duplex_s2s_speech_decoder"])
def test_killed_and_resumed_is_never_killed(
    family: str,
    setting: Setting,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    assert_never_killed(
        family, setting, request, folder=tmp_path, kills=setting.kills, survival=survival
    )
