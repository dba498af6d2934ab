"""Faults of each family's own data, in the real command: stopped at, or left out with a line."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures.damage import DAMAGES, POSITION, Damage, copy_shar
from fixtures.damage_families import CODES, LINES, TALKS
from fixtures.trial import Trial, skip_problem, strict_problem, train

WORKERS = {"raise": 0, "skip": 2}
"""Data workers in each mode; a batch of one makes what is left out an empty batch."""

AUDIO = ("gz_truncated", "audio_truncated", "samples_inf")

CASES = [
    *(("codec_lm", name, CODES[name]) for name in list(CODES)[::2]),
    *(("codec_lm", name, DAMAGES[name]) for name in AUDIO),
    *(("audiolm", name, CODES[name]) for name in list(CODES)[1::3]),
    *(("audiolm", name, DAMAGES[name]) for name in AUDIO[1:]),
    *(("duplex_s2s", name, TALKS[name]) for name in list(TALKS)[2:]),
    *(("duplex_s2s_speech_decoder", name, TALKS[name]) for name in list(TALKS)[:2]),
]


@pytest.fixture(scope="session")
def coded_shar(music_shar: Path, mel_rvq: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tones with their codes."""
    from whalesong.sound.tokenize import tokenize_shar

    folder = tmp_path_factory.mktemp("coded") / "shar"
    copy_shar(music_shar, folder)
    tokenize_shar(folder, {"type": "mel_rvq", "config": {"model_path": str(mel_rvq)}})
    return folder


@pytest.fixture
def corpus_of(
    music_shar: Path, coded_shar: Path, duplex_shar: Path
) -> Callable[[str, Damage], tuple[Path, str]]:
    """The folder for a fault of a family, and the field it is in."""

    def find(family: str, fault: Damage) -> tuple[Path, str]:
        if family.startswith("duplex"):
            return duplex_shar, "target_audio"
        if any(fault is other for other in CODES.values()):
            return coded_shar, "codes"
        return music_shar, "recording"

    return find


@pytest.fixture(scope="module", autouse=True)
def _imports() -> Iterator[None]:
    from whalesong.core.families import FAMILIES

    for family in FAMILIES:  # every process would import them again
        family.load_class()
    yield


def keys(mode: str, section: str = "data") -> list[str]:
    return [
        f"{section}.on_bad_cut={mode}",
        f"{section}.train_ds.num_workers={WORKERS[mode]}",
        f"{section}.train_ds.batch_size=1",
        f"{section}.train_ds.force_finite=true",
        "trainer.check_val_every_n_epoch=1",
    ]


def judge(
    trial: Trial, mode: str, names: list[str], *, must: set[str], may: set[str]
) -> str | None:
    if mode == "raise":
        return strict_problem(trial, names)
    return skip_problem(trial, names, must=must, may=may, legal=False)


@pytest.mark.parametrize("mode", ["raise", "skip"])
@pytest.mark.parametrize(
    ("family", "name", "fault"), CASES, ids=[f"{family}-{name}" for family, name, _ in CASES]
)
def test_damaged_shar(
    family_job: Callable[..., list[str]],
    corpus_of: Callable[[str, Damage], tuple[Path, str]],
    survival: Callable[..., None],
    tmp_path: Path,
    family: str,
    name: str,
    fault: Damage,
    mode: str,
) -> None:
    source, field = corpus_of(family, fault)
    shar = copy_shar(source, tmp_path / "shar", field=field)
    names, (must, may) = fault.named(shar), fault.kept(shar)
    fault.apply(shar)
    where = "input_cfg.0.shar_path" if family.startswith("duplex") else "shar_path"
    job = family_job(family, tmp_path, *keys(mode), f"data.train_ds.{where}={shar.folder}")
    problem = judge(train(job, [], folder=tmp_path), mode, names, must=must, may=may)
    survival("B1" if mode == "raise" else "B2", survived=int(problem is None), detail=family)
    assert problem is None, problem


@pytest.mark.parametrize("mode", ["raise", "skip"])
@pytest.mark.parametrize("name", LINES)
def test_damaged_lines(
    family_job: Callable[..., list[str]],
    survival: Callable[..., None],
    tmp_path: Path,
    name: str,
    mode: str,
) -> None:
    change, words = LINES[name]
    rows = [{"prompt": f"{i} 1 2 3", "text": f"{i} 4"} for i in range(8)]
    lines = [json.dumps(row).encode() for row in rows]
    broken = change(rows[POSITION])
    lines[POSITION] = broken if isinstance(broken, bytes) else broken.encode()
    file = tmp_path / "graphs.jsonl"
    file.write_bytes(b"\n".join(lines) + b"\n")
    item = f"{{type: text_pairs, paths: {file}}}"
    section = "datamodule"
    job = family_job(
        "arlm", tmp_path, *keys(mode, section), f"{section}.train_ds.input_cfg=[{item}]"
    )
    must = {f"{file.name}:{number}" for number in range(1, 9)} - {f"{file.name}:{POSITION + 1}"}
    trial = train(job, [], folder=tmp_path)
    problem = judge(trial, mode, [file.name, words], must=must, may=must)
    survival("B1" if mode == "raise" else "B2", survived=int(problem is None), detail="arlm")
    assert problem is None, problem
