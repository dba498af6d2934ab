"""B3: whatever is changed in any YAML of the house, the job runs, or one line says what and where.

Keys are dropped, misspelled, given other values, nested deeper and moved, at every depth. Hundreds
of changes go through all checks that come before heavy work; some of those that pass are started.
"""

import copy
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fixtures.forked import Ended, run_forked, xlm
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from whalesong.checks import checked
from whalesong.core.commands import run_command
from whalesong.core.config.compose import compose_files, packaged_conf
from whalesong.core.errors import UserError
from whalesong.core.external import compose_job

SECONDS = 5
LONGEST_LINE = 2000

VALUES = (
    *("", "fast", "0", "true", "a: b", "\u2603 \u6f22", "x" * 5000, "???", "${nowhere}"),
    *(-1, 0, 1, 2, 10**30, -0.5, 1.5, 1e308, float("nan"), float("inf"), None, True, False),
    *([], {}, [[]], [None], ["x"], {"a": 1}, {"a": {"b": [1]}}, "${model}"),
)
KINDS = ("drop", "rename", "retype", "retype", "retype", "nest", "move")
FREE = ("datasets", "metrics", "tags", "stop_at", "encoder", "preprocessor", "modes")
"""Sections whose keys a user makes up, or that are compared with a class that a file names."""

SEVERAL = (("trainer", "devices"), ("trainer", "num_nodes"))
"""Keys that start other processes, which are not those of a test."""

ROOT = packaged_conf()
TRAIN = {"job_type": "train"}
SPEECH = [
    "data.train_ds.input_cfg=null",
    "data.train_ds.shar_path=x",
    "data.validation_ds.datasets.val.input_cfg=null",
    "data.validation_ds.datasets.val.shar_path=y",
]
TEXT = [f"datamodule.{name}_ds.input_cfg.0.paths=x" for name in ("train", "validation")]
USE = ["predict.ckpt_path=a.nemo", "predict.audio=[a.wav]"]

Path_ = tuple[str | int, ...]
JOBS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    **{
        file.stem: ("config", [f"experiment={file.stem}", *TEXT * ("text" in file.stem)], TRAIN)
        for file in sorted((ROOT / "experiment").glob("*.yaml"))
    },
    **{
        f"debug {file.stem}": ("config", ["experiment=star_mini_ilm", f"debug={file.stem}"], TRAIN)
        for file in sorted((ROOT / "debug").glob("*.yaml"))
    },
    **{
        f"adapter {file.stem}": ("salm", [f"adapter={file.stem}", *SPEECH], TRAIN)
        for file in sorted((ROOT / "adapter").glob("*.yaml"))
    },
    **{
        f"optim {file.stem}": ("audiolm", [f"optim={file.stem}", *SPEECH], TRAIN)
        for file in sorted((ROOT / "optim").glob("*.yaml"))
    },
    "audio_lm": ("audio_lm", ["model.pretransform.config.model_path=x", *SPEECH], TRAIN),
    "music_fusion": ("music_fusion", SPEECH, TRAIN),
    "music_prefix": ("music_prefix", SPEECH, TRAIN),
    **{
        name: (name, ["model.pretrained_audio_codec=x", *SPEECH], TRAIN)
        for name in ("s2s_duplex", "s2s_duplex_speech_decoder")
    },
    **{
        name: (name, USE, {"job_type": "predict", "model": {"target": target}})
        for name, target in (
            ("audio_lm_generate", "CodecLMModel"),
            ("audiolm_generate", "AudioLMModel"),
            ("salm_generate", "SALM"),
            ("s2s_duplex_infer", "DuplexS2SModel"),
        )
    },
    "salm_eval": (
        "salm_eval",
        ["eval.ckpt_path=a.nemo", "data.test_ds.shar_path=x"],
        {"job_type": "eval", "model": {"target": "SALM"}},
    ),
}
"""Name -> primary config, overrides, and what a script adds; each passes all checks as it is."""

STARTED = {
    "salm": 6, "codec LM": 5, "AudioLM": 5, "duplex": 5, "speech decoder": 5,
    "arlm": 4, "mlm": 4, "ilm": 4, "mdlm": 4,
}  # fmt: skip
"""Families and how many changed jobs of each are started."""


@dataclass(frozen=True)
class Change:
    """What is done to one place of a document.

    Attributes:
        kind: one of `KINDS`.
        path: the place.
        value: the new value, the new name, or the section to move to.
    """

    kind: str
    path: Path_
    value: Any = None

    def applied(self, document: dict[str, Any]) -> dict[str, Any] | None:
        """A changed copy; None if the change is impossible there, or none."""
        document = copy.deepcopy(dict(document))
        *above, key = self.path
        section = at(document, tuple(above))
        value = section[key]
        if self.kind == "drop":
            del section[key]
        elif self.kind == "nest":
            section[key] = {str(key): value} if self.value else [value]
        elif self.kind == "retype":
            section[key] = copy.deepcopy(self.value)
        else:
            renamed = self.kind == "rename"
            target, name = (section, self.value) if renamed else (at(document, self.value), key)
            if name in target or isinstance(section, list) is renamed:
                return None
            del section[key]
            target[name] = value
        return document

    def words(self, document: dict[str, Any]) -> set[str]:
        """What a message may name: the key (in a list, that of the list), its name now, the end
        of an interpolation, or what is missing with a key that is gone, or lacks it."""
        named = {[key for key in self.path if isinstance(key, str)][-1]}
        if isinstance(self.value, str) and self.value.strip("${}"):
            named.add(self.value.strip("${}"))
        if self.kind == "move" and self.value:
            named.add(str(self.value[-1]))
        if self.kind in ("drop", "rename"):
            named |= {str(path[-1]) for path in places(at(document, self.path))}
            named |= {str(key) for key in self.path[-2:-1]}
        return named


class Document(dict):
    """A job's content; examples that fail are printed without it."""

    def __repr__(self) -> str:
        return "document"


def at(document: Any, path: Path_) -> Any:
    for key in path:
        document = document[key]
    return document


def places(node: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Every place below a node."""
    children = enumerate(node) if isinstance(node, list) else ()
    for key, value in node.items() if isinstance(node, dict) else children:
        yield (*path, key)
        yield from places(value, (*path, key))


def misspelled(key: str, position: int, kind: int) -> str:
    position %= len(key)
    if kind == 0 and len(key) > 3:
        return key[:position] + key[position + 1 :]
    return key[:position] + key[position] + key[position:] if kind == 1 else f"{key}s"


@st.composite
def changes(draw: st.DrawFn, document: dict[str, Any], kinds: tuple[str, ...] = KINDS) -> Change:
    """A change of one place of the document, all places and kinds alike."""
    everywhere = list(places(document))
    kind = draw(st.sampled_from(kinds))
    path = draw(st.sampled_from(everywhere))
    if kind == "rename":
        place = draw(st.integers(0, 30)), draw(st.integers(0, 2))
        return Change(kind, path, misspelled(str(path[-1]), *place))
    if kind == "retype":
        return Change(kind, path, draw(st.sampled_from(VALUES)))
    if kind == "move":
        sections = [p for p in everywhere if isinstance(at(document, p), dict)]
        sections = [p for p in [(), *sections] if p != path[:-1] and p[: len(path)] != path]
        return Change(kind, path, draw(st.sampled_from(sections)))
    return Change(kind, path, draw(st.booleans()) if kind == "nest" else None)


def fuzzed(num_examples: int, *, shrink: bool = True) -> Callable:
    """The same examples in every run; a failure prints the smallest one, or the first."""
    return settings(
        max_examples=num_examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, *[Phase.shrink] * shrink],
        suppress_health_check=list(HealthCheck),
    )


def composed(name: str) -> Document:
    """The document of a job as a command composes it, its interpolations as they are."""
    config_name, overrides, added = JOBS[name]
    job = compose_job(config_name, overrides=overrides)
    return Document({**OmegaConf.to_container(job.cfg, resolve=False), **added})


def refusal(document: dict[str, Any]) -> str | None:
    """What the checks before heavy work say, with all notes, or None if they pass."""
    try:
        checked(OmegaConf.create(dict(document)))
    except UserError as error:
        assert "\n" not in str(error)
        return " ".join([str(error), *getattr(error, "__notes__", ())])
    return None


def names_it(message: str, change: Change, document: dict[str, Any]) -> bool:
    """Whether a message says what is wrong (the key) and where (its section)."""
    where = any(f"`{section}" in message for section in [*document, "config", change.value])
    where = where or "cut " in message  # whose content a value of the section is compared with
    return where and any(word in message for word in change.words(document))


@pytest.fixture(scope="module")
def documents() -> dict[str, dict[str, Any]]:
    """Every job's document by its name."""
    return {name: composed(name) for name in JOBS}


def test_every_yaml_is_part_of_a_job() -> None:
    used = {
        file
        for config_name, overrides, _ in JOBS.values()
        for file in compose_files(config_name, overrides=overrides).files
    }
    assert used == set(ROOT.rglob("*.yaml"))


def test_every_job_passes_unchanged(documents: dict[str, dict[str, Any]]) -> None:
    assert {name: said for name in JOBS if (said := refusal(documents[name]))} == {}


@pytest.mark.parametrize("name", JOBS)
def test_changed_job_passes_or_is_refused_in_one_line(
    name: str, documents: dict[str, dict[str, Any]], survival: Callable
) -> None:
    document, counts = documents[name], Counter[str]()

    @fuzzed(14)
    @given(change=changes(document))
    def fuzz(change: Change) -> None:
        changed = change.applied(document)
        assume(changed not in (None, document))
        counts["tried"] += 1
        start = time.process_time()
        message = refusal(changed)
        assert time.process_time() - start < SECONDS
        if message is None:
            free = any(key in FREE for key in change.path[:-1])
            assert change.kind != "rename" or free, "an unknown key passed"
        else:
            assert len(message) < LONGEST_LINE
            assert names_it(message, change, document), message

    fuzz()
    survival("B3", tried=counts["tried"])


def test_every_misspelled_key_is_refused_with_the_right_one(
    documents: dict[str, dict[str, Any]], survival: Callable
) -> None:
    seen: set[tuple[str, ...]] = set()
    for document in documents.values():
        for path in places(document):
            schema_path = tuple(str(key) for key in path if isinstance(key, str))
            free = any(key in FREE for key in path[:-1]) or path[-1] == "_target_"
            if free or isinstance(path[-1], int) or schema_path in seen:
                continue
            seen.add(schema_path)
            wrong = f"{path[-1]}q"
            message = refusal(Change("rename", path, wrong).applied(document))
            assert message is not None, path
            dangling = f"Interpolation key '{'.'.join(schema_path)}' not found" in message
            assert dangling or (f"{wrong}`" in message and "did you mean" in message), message
    survival("B3", tried=len(seen), detail=f"{len(seen)} keys misspelled")


@pytest.fixture(scope="module")
def small_jobs(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """A training of one step of each family, as a document."""
    duplex = request.getfixturevalue("small_duplex_job")
    text = request.getfixturevalue("small_text_job")
    jobs = {
        "salm": request.getfixturevalue("small_job"),
        "codec LM": request.getfixturevalue("small_codec_lm_job"),
        "AudioLM": request.getfixturevalue("small_audiolm_job"),
        "duplex": duplex("s2s_duplex"),
        "speech decoder": duplex("s2s_duplex_speech_decoder"),
        **{name: text(name) for name in ("arlm", "mlm", "ilm", "mdlm")},
    }
    quick = [
        "exp_manager.explicit_log_dir=logs",
        "exp_manager.seconds_to_sleep=0",
        "exp_manager.create_tensorboard_logger=false",
        "trainer.max_steps=1",
        "trainer.val_check_interval=1",
        "trainer.limit_val_batches=1",
        "data.train_ds.batch_size=2",
    ]
    return {name: _document([*job, *quick]) for name, job in jobs.items()}


def _document(arguments: list[str]) -> dict[str, Any]:
    named = [line for line in arguments if line.startswith("--config-name=")]
    overrides = [line for line in arguments if line not in named]
    config_name = named[0].partition("=")[2] if named else "config"
    cfg = compose_job(config_name, overrides=overrides).cfg
    document = OmegaConf.to_container(cfg, resolve=False)
    return Document({key: document[key] for key in document if key not in ("eval", "predict")})


@pytest.mark.parametrize("family", STARTED)
def test_changed_job_that_passes_runs_or_ends_in_one_line(
    family: str, small_jobs: dict[str, dict[str, Any]], survival: Callable, tmp_path: Path
) -> None:
    document, counts = small_jobs[family], Counter[str]()
    xlm([])  # imports what the forked processes need

    @fuzzed(STARTED[family], shrink=False)
    @given(data=st.data())
    def fuzz(data: st.DataObject) -> None:
        change = data.draw(changes(document, kinds=("retype", "retype", "retype", "nest", "move")))
        changed = change.applied(document)
        assume(change.path[:2] not in SEVERAL and changed not in (None, document))
        assume(refusal(changed) is None)
        counts["tried"] += 1
        folder = tmp_path / str(counts["tried"])
        folder.mkdir()
        spent = os.times()
        ended = run_forked(
            lambda: run_command(lambda: _start(changed)),
            log=folder / "log",
            timeout=120,
            cwd=folder,
        )
        now = os.times()
        seconds = now.children_user - spent.children_user
        _judge(ended, seconds, change, document)
        counts["ran"] += ended.code == 0

    fuzz()
    survival("B3", tried=counts["tried"], detail=f"{family}: {counts['ran']} ran when started")


def _start(document: dict[str, Any]) -> None:
    from whalesong import experiment

    experiment.run(OmegaConf.create(document))


def _judge(ended: Ended, seconds: float, change: Change, document: dict[str, Any]) -> None:
    """It ran, or it ended with one line that names the key, in little time."""
    if ended.code == 0:
        return
    assert ended.code == 2 and "Traceback" not in ended.output, ended.output[-3000:]
    line = next(line for line in ended.output.splitlines() if line.startswith("Error: "))
    assert names_it(line, change, document), line
    assert seconds < SECONDS
