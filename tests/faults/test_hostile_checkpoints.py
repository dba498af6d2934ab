"""A2: no checkpoint executes anything, whoever reads it: resume, restore, evaluation."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.attacks import CLASS_KEYS, CONTROL_KEYS, FUNCTIONS
from fixtures.forging import Calls, Honest, Payload, changed, nodes, torch_bytes, zip_with
from fixtures.forked import run_forked, xlm
from fixtures.watched import watched

FORCE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
PLACES = ("state_dict", "optimizer_states", "callbacks", "loops", "hyper_parameters", "own")


@pytest.fixture(scope="module", params=["codec LM", "ilm"])
def honest(
    request: pytest.FixtureRequest,
    build_codec_lm: Callable[..., Any],
    text_config: Callable[..., dict],
) -> dict[str, Any]:
    """What Lightning stores of a model."""
    import whalesong
    from whalesong.core.checkpoint import plain_hyper_parameters

    is_text = request.param == "ilm"
    model = whalesong.TextLMModel(text_config("ilm")) if is_text else build_codec_lm()
    return plain_hyper_parameters(
        {
            "epoch": 0,
            "global_step": 3,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": dict(model.state_dict()),
            "optimizer_states": [{"state": {}, "param_groups": []}],
            "lr_schedulers": [],
            "callbacks": {},
            "loops": {},
            "hyper_parameters": {"cfg": model.cfg},
        }
    )


def pickles(honest: dict[str, Any], marker: Path) -> dict[str, bytes]:
    """The checkpoint with code in it."""
    payload = Payload(marker)
    calls = {
        "os.system": Calls(os.system, f"mkdir {marker}"),
        "eval": Calls(eval, f"__import__('os').mkdir('{marker}')"),
        "bytes": Calls(torch.storage._load_from_bytes, pickle.dumps(payload)),
        "torch.load": Calls(torch.load, str(marker)),
        "getattr": Calls(getattr, payload, "marker"),
    }
    made = {f"{name} in {p}": torch_bytes({**honest, p: {"x": call}})
            for name, call in calls.items() for p in PLACES[:3]}  # fmt: skip
    made |= {f"mkdir in {place}": torch_bytes({**honest, place: [payload]}) for place in PLACES}
    with zipfile.ZipFile(_file(marker, torch_bytes(honest))) as stored:
        entries = [(entry.filename, stored.read(entry)) for entry in stored.infolist()]
    evil = [(n, pickle.dumps(payload, 2) if n.endswith("data.pkl") else d) for n, d in entries]
    made |= {
        "raw pickle": pickle.dumps({**honest, "x": payload}),
        "exchanged pickle": zip_with(evil),
        "deflated": zip_with(entries, zipfile.ZIP_DEFLATED),
        "bomb": zip_with([("archive/data/0", bytes(10**8))], zipfile.ZIP_DEFLATED),
        "stretched": torch_bytes({"state_dict": {"x": torch.ones(1).expand(2**40)}}),
        "a list": torch_bytes([torch.ones(1)]),
        "nothing": torch_bytes({}),
        "no weights": torch_bytes({**honest, "state_dict": None}),
        "no section": torch_bytes({**honest, "hyper_parameters": {}}),
        "other weights": torch_bytes({**honest, "state_dict": {"x": torch.ones(1)}}),
        "cut": torch_bytes(honest)[:-1000],
        "empty": b"",
    }
    return made


def _file(marker: Path, content: bytes) -> Path:
    path = marker.parent / "honest.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def sections(honest: dict[str, Any]) -> dict[str, bytes]:
    """The checkpoint with classes and requests in its `model` section."""
    made, keys = {}, (*CLASS_KEYS[1:], *CONTROL_KEYS, "trust_remote_code", "auto_map")
    config = honest["hyper_parameters"]["cfg"]
    places = [place for place, value in nodes(config) if isinstance(value, dict)]
    for number, function in enumerate(FUNCTIONS):
        place = places[number % len(places)]
        for key in ("_target_", keys[number % len(keys)]):
            section = changed(config, (*place, key), function)
            name = f"{'.'.join(map(str, place))}.{key} = {function}"
            made[name] = torch_bytes({**honest, "hyper_parameters": {"cfg": section}})
    section = {**config, "target": "os.system"}
    made["target"] = torch_bytes({**honest, "hyper_parameters": {"cfg": section}})
    section = {**config, "freeze_params": ["${oc.env:HOME}"]}
    made["environment"] = torch_bytes({**honest, "hyper_parameters": {"cfg": section}})
    section = {**config, "freeze_params": ["(.+)+(.+)+!"]}
    made["expression"] = torch_bytes({**honest, "hyper_parameters": {"cfg": section}})
    return made


def test_hostile_checkpoints(
    honest: dict[str, Any],
    tmp_path: Path,
    survival: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from whalesong.core.config.job import JobConfig
    from whalesong.core.families import family_of
    from whalesong.inference import load_model

    monkeypatch.setenv(FORCE, "1")
    folder, marker = tmp_path / "forged", tmp_path / "canary" / "evil"
    folder.mkdir()
    model = family_of(honest["hyper_parameters"]["cfg"]["target"]).load_class()
    job = JobConfig.model_validate({"job_type": "eval", "trainer": {"accelerator": "cpu"}})
    attempts = []
    for number, (name, content) in enumerate(
        {**pickles(honest, marker), **sections(honest)}.items()
    ):
        path = folder / f"{number}.ckpt"
        path.write_bytes(content)
        calls = (model.load_from_checkpoint, lambda path: load_model(path, job))
        attempts.append((f"{name} {path}", lambda path=path, call=calls[number % 2]: call(path)))
    (marker.parent / "honest.zip").unlink()
    good = folder / "good.ckpt"
    good.write_bytes(torch_bytes(honest))
    load_model(good, job)
    rows = watched(attempts, sandbox=tmp_path, mine=[folder, tmp_path.parent])
    bad = [row for row in rows if row["harm"] or not clear(row) or row["peak"] > 64 * 1024**2]
    survival("A2", tried=len(rows), survived=len(rows) - len(bad))
    assert not bad, f"{len(bad)} of {len(rows)}: {bad[:5]}"


def clear(row: dict[str, Any]) -> bool:
    """Whether an attempt was refused in one line that begins with the file."""
    if row["error"] is None:
        return False
    kinds, message = row["error"]
    path = row["name"].rpartition(" ")[2]
    return "CheckpointError" in kinds and message.startswith(f"{path}: ") and message.isprintable()


@pytest.mark.parametrize("place", ["callbacks", "own", "raw"])
def test_resume_executes_nothing(
    small_text_job: Callable[[str], list[str]],
    tmp_path: Path,
    survival: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    monkeypatch.setenv(FORCE, "1")
    marker, logs = tmp_path / "evil", tmp_path / "logs"
    job = [*small_text_job("ilm"), f"exp_manager.explicit_log_dir={logs}", "trainer.max_steps=4",
           "exp_manager.resume_if_exists=true", "exp_manager.seconds_to_sleep=0",
           "trainer.val_check_interval=2"]  # fmt: skip
    first = run_forked(xlm(job), log=tmp_path / "first", timeout=120)
    assert first.code == 0, first.output[-2000:]
    for path in (logs / "checkpoints").glob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        evil = {**content, place: {"x": Payload(marker)}}
        path.write_bytes(pickle.dumps(evil) if place == "raw" else torch_bytes(evil))
    second = run_forked(xlm([*job, "trainer.max_steps=6"]), log=tmp_path / "second", timeout=120)
    answer = (2, "only numbers, strings, containers and tensors are read")
    if place == "raw":  # no checkpoint at all: set aside before the run begins anew
        answer = (0, ".broken: it is no whole zip archive")
    survived = second.code == answer[0] and answer[1] in second.output
    survived = survived and not marker.exists() and "Traceback" not in second.output
    survival("A2", survived=int(survived), detail="resume, restore, eval")
    assert survived, second.output[-2000:]


@pytest.mark.parametrize("ending", ["nemo", "ckpt"])
def test_the_command_ends_with_one_line(
    small_text_job: Callable[[str], list[str]],
    text_config: Callable[..., dict],
    tmp_path: Path,
    survival: Callable[..., None],
    ending: str,
) -> None:
    import whalesong

    marker, path = tmp_path / "evil", tmp_path / f"x.{ending}"
    model = whalesong.TextLMModel(text_config("ilm"))
    if ending == "nemo":
        model.save_to(path)
        honest = Honest.read(path)
        config = honest.with_value(("optimizer", "_target_"), "os.system")
        honest.forge(path, config=config)
    else:
        path.write_bytes(torch_bytes({"x": Payload(marker)}))
    job = [*small_text_job("ilm"), "job_type=eval", f"eval.ckpt_path={path}"]
    ended = run_forked(xlm(job), log=tmp_path / "log", timeout=120)
    lines = [line for line in ended.output.splitlines() if str(path) in line]
    survived = ended.code == 2 and len(lines) == 1 and "Traceback" not in ended.output
    survival("A2", survived=int(survived and not marker.exists()))
    assert survived and not marker.exists(), (ended.code, ended.output[-1500:])
