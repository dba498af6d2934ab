"""Only named classes are built, and every keyword is checked before anything is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from whalesong.core.errors import ConfigError
from whalesong.core.instantiate import (
    DEFAULT_TARGETS,
    allow_whalesong_targets,
    allowed_targets,
    check_targets,
    class_name,
    import_target,
    instantiate,
    register_target,
)

HERE = __name__


class Inner:
    """Counts how many were built."""

    built = 0

    def __init__(self, *, size: int) -> None:
        Inner.built += 1
        self.size = size


class Outer:
    """Has parts in a list and in a mapping."""

    def __init__(self, parts: list, *, named: Mapping | None = None, width: int = 3) -> None:
        self.parts, self.named, self.width = parts, named, width


class Open:
    """Takes any keyword."""

    def __init__(self, **options: Any) -> None:
        self.options = options


ALLOWED = {class_name(cls) for cls in (Inner, Outer, Open)} | {"torch.optim.AdamW", "os.system"}
INNER = {"_target_": f"{HERE}.Inner", "size": 2}


def build(config: Mapping, **extra: Any) -> Any:
    return instantiate(config, allowed=ALLOWED, **extra)


def test_nested_objects_are_built_first() -> None:
    config = {
        "_target_": f"{HERE}.Outer",
        "parts": [INNER, {"deep": INNER | {"size": 5}}],
        "named": {"a": INNER, "b": 1},
    }
    for given in (config, OmegaConf.create(config)):
        outer = build(given)
        assert outer.parts[0].size == 2 and outer.parts[1]["deep"].size == 5
        assert outer.named["a"].size == 2 and outer.named["b"] == 1 and outer.width == 3


def test_interpolations_of_a_config_at_hand_are_resolved() -> None:
    whole = OmegaConf.create({"size": 7, "part": {"_target_": f"{HERE}.Inner", "size": "${size}"}})
    assert build(whole.part).size == 7


def test_the_config_is_not_changed() -> None:
    config = {"_target_": f"{HERE}.Outer", "parts": [dict(INNER)]}
    build(config)
    assert config == {"_target_": f"{HERE}.Outer", "parts": [INNER]}


def test_extra_arguments_are_handed_over_and_win() -> None:
    parameters = [torch.nn.Parameter(torch.ones(1))]
    optimizer = instantiate({"_target_": "torch.optim.AdamW", "lr": 0.5}, params=parameters)
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["lr"] == 0.5
    assert build(INNER, size=9).size == 9


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "`_target_`: is missing; it names the class to build."),
        (
            {"_target_": "torch.optim.AdamW", "leraning_rate": 1, "lr": 1},
            "`torch.optim.AdamW`: has no parameter `leraning_rate`.",
        ),
        (
            {"_target_": "torch.optim.AdamW", "weight_decy": 1},
            "`torch.optim.AdamW`: has no parameter `weight_decy` (did you mean `weight_decay`?).",
        ),
        ({"_target_": "torch.optim.AdamW"}, "`torch.optim.AdamW`: needs the parameter `params`."),
        (
            {"_target_": "torch.optim.Adamw"},
            "`_target_`: 'torch.optim.Adamw' is not an allowed class "
            "(did you mean `torch.optim.AdamW`?).",
        ),
        ({"_target_": "os.system", "command": "true"}, "`os.system`: is not a class."),
        ({"_target_": ["a"]}, "`_target_`: must be the name of a class, but is ['a']."),
        (INNER | {"_partial_": True}, "`_partial_`: the control key `_partial_` is not allowed."),
        (
            {"_target_": f"{HERE}.Open", "a": [{"_target_": "os.remove"}]},
            "`a[0]._target_`: 'os.remove' is not an allowed class.",
        ),
        ({"_target_": f"{HERE}.Open", "a": "${b}"}, "`a`: interpolations (`${`) are not allowed"),
        (
            {"_target_": f"{HERE}.Open", "trust_remote_code": True},
            "`trust_remote_code`: a file must not ask for remote code; only the caller may.",
        ),
    ],
)
def test_what_is_refused_and_how(config: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(config)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_nothing_is_built_when_a_deep_keyword_is_wrong() -> None:
    Inner.built = 0
    wrong = {"_target_": f"{HERE}.Inner", "sise": 1}
    with pytest.raises(ConfigError, match=r"`sise` \(did you mean `size`\?\)"):
        build({"_target_": f"{HERE}.Outer", "parts": [INNER, {"a": [wrong]}]})
    assert Inner.built == 0


def test_any_keyword_goes_where_the_class_takes_any() -> None:
    assert build({"_target_": f"{HERE}.Open", "a": 1}).options == {"a": 1}


def test_registered_classes_join_the_allow_list() -> None:
    class Local:
        """Only its name counts."""

    name = class_name(Local)
    with pytest.raises(ConfigError):
        check_targets({"_target_": name})
    assert register_target(Local) is Local
    check_targets({"_target_": name})
    register_target("some.package.Class")
    assert {"some.package.Class", name} <= allowed_targets()


def test_deep_nesting_ends_in_one_line() -> None:
    deep: dict = {}
    for _ in range(10_000):
        deep = {"a": deep}
    with pytest.raises(ConfigError, match="nested deeper than 64 levels"):
        check_targets(deep)


def test_what_cannot_be_imported_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"^Unable to find or instantiate no\.such\.Thing: ModuleNotFound"
    ):
        import_target("no.such.Thing")
    with pytest.raises(
        ConfigError, match=r"^Unable to find or instantiate torch\.optim\.Nothing: Attr"
    ):
        import_target("torch.optim.Nothing")


@pytest.mark.slow
def test_nemo_has_every_default_class_and_builds_ours(tmp_path: Path) -> None:
    for target in DEFAULT_TARGETS:
        assert isinstance(import_target(target), type)
    from nemo.core.classes.common import ALLOWED_TARGET_PREFIXES

    for _ in range(2):
        allow_whalesong_targets()
    assert ALLOWED_TARGET_PREFIXES.count("whalesong.") == 1
    with pytest.raises(ConfigError, match=r"`featurs` \(did you mean `features`\?\)"):
        instantiate(
            {
                "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
                "featurs": 80,
            }
        )
