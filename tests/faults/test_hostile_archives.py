"""A1: no archive, however made of an honest one of each family, gets anything."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fixtures import attacks
from fixtures.forging import Honest
from fixtures.watched import watched

SPARE = 64 * 1024**2
FAMILIES = (
    *("SALM", "codec LM", "codec LM with T5", "AudioLM", "duplex", "speech decoder", "ilm"),
)
EVERY = ("codec LM", "AudioLM", "ilm")
"""Families that are built so fast that everything is tried at every node."""


FEWER = {"codec LM with T5": ("texts", "targets"), "speech decoder": ("weights", "targets")}
"""What else these have is what the codec LM and the other duplex family have."""


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def honest_path(
    family: str,
    build_salm: Callable[..., Any],
    build_codec_lm: Callable[..., Any],
    build_audiolm: Callable[..., Any],
    build_duplex: Callable[..., Any],
    text_config: Callable[..., dict],
    tiny_t5: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """An archive of the family; it has been restored once, as the control."""
    import whalesong

    logging.getLogger("nemo_logger").setLevel(logging.ERROR)
    t5 = {"id": "text", "type": "t5", "config": {"t5_model_name": str(tiny_t5), "max_length": 16}}
    build = {
        "SALM": build_salm,
        "codec LM": build_codec_lm,
        "codec LM with T5": lambda: build_codec_lm(conditioning={"cond_dim": 64, "configs": [t5]}),
        "AudioLM": build_audiolm,
        "duplex": build_duplex,
        "speech decoder": lambda: build_duplex("duplex_s2s_speech_decoder"),
        "ilm": lambda: whalesong.TextLMModel(text_config("ilm")),
    }
    path = tmp_path_factory.mktemp("honest") / "model.nemo"
    build[family]().save_to(path)
    whalesong.load(path)
    return path


@pytest.fixture
def restore_all(
    honest_path: Path, tmp_path: Path
) -> Iterator[Callable[[Sequence[tuple[str, Path]]], list[dict[str, Any]]]]:
    """Restores by `whalesong.load` and by the class, in forked processes that are watched."""
    import whalesong

    restore_from = type(whalesong.load(honest_path)).restore_from

    def run(cases: Sequence[tuple[str, Path]]) -> list[dict[str, Any]]:
        calls = [
            (name, lambda path=path, call=(whalesong.load, restore_from)[number % 2]: call(path))
            for number, (name, path) in enumerate(cases)
        ]
        rows = watched(calls, sandbox=tmp_path, mine=[honest_path.parent, tmp_path / "forged"])
        return [{**row, "path": str(path)} for row, (_, path) in zip(rows, cases, strict=True)]

    (tmp_path / "forged").mkdir()
    yield run


def faults(row: dict[str, Any], *, may_load: bool) -> str:
    """What is wrong with the answer to one attack; empty when nothing is."""
    if row["harm"] or row["peak"] > SPARE:
        return f"{row['harm'][:3]}, {row['peak'] >> 20} MB"
    if row["error"] is None:
        return "" if may_load else "was loaded"
    kinds, message = row["error"]
    is_one_line = message.startswith(f"{row['path']}: ") and message.isprintable()
    return "" if "UserError" in kinds and is_one_line else f"unclear: {kinds[0]}: {message[:200]}"


GROUPS: dict[str, Callable[[Honest, Path, bool], attacks.Attacks]] = {
    "weights": lambda honest, folder, every: attacks.weights(
        honest, folder / "forged", folder / "canary" / "evil"
    ),
    "members": lambda honest, folder, every: attacks.members(
        honest, folder / "forged", folder / "canary"
    ),
    "texts": lambda honest, folder, every: attacks.texts(honest, folder / "forged"),
    "targets": lambda honest, folder, every: attacks.targets(honest, folder / "forged"),
    "leaves": lambda honest, folder, every: attacks.leaves(
        honest, folder / "forged", folder / "canary" / "secret", every=every
    ),
}
HARMLESS = ("chat_template.jinja: is missing", "llm_generation_config.json: nothing")
"""What says nothing that is needed; numbers and paths that a restored model never uses, too."""


CASES = [(family, group) for family in FAMILIES for group in FEWER.get(family, GROUPS)]


@pytest.mark.parametrize(("family", "group"), CASES, indirect=["family"], scope="module")
def test_hostile_archives(
    family: str,
    honest_path: Path,
    restore_all: Callable[[Sequence[tuple[str, Path]]], list[dict[str, Any]]],
    tmp_path: Path,
    survival: Callable[..., None],
    group: str,
) -> None:
    cases = list(GROUPS[group](Honest.read(honest_path), tmp_path, family in EVERY))
    rows = restore_all(cases)
    found = {
        row["name"]: fault
        for row in rows
        if (fault := faults(row, may_load=group == "leaves" or row["name"] in HARMLESS))
    }
    survival("A1", tried=len(rows), survived=len(rows) - len(found), detail=family)
    assert not found, f"{len(found)} of {len(rows)}: {dict(list(found.items())[:8])}"
    answers = Counter("loaded" if row["error"] is None else "refused" for row in rows)
    assert answers["refused"] > len(rows) // 3


@pytest.mark.parametrize("family", FAMILIES, indirect=True, scope="module")
def test_the_honest_archive_is_restored(
    honest_path: Path,
    restore_all: Callable[[Sequence[tuple[str, Path]]], list[dict[str, Any]]],
) -> None:
    rows = restore_all([("load", honest_path), ("restore_from", honest_path)])
    assert [row["error"] for row in rows] == [None, None]
    assert all(not row["harm"] for row in rows)
