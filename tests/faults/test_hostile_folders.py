"""A2: no folder of Hugging Face's form and no `.nemo` of NeMo's form executes anything.

These are what a YAML names as `pretrained_llm`, `pretrained_asr`, `pretrained_audio_codec`,
`scoring_asr`. Remote code is switched on by an argument of the caller only.
"""

import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures.attacks import FUNCTIONS
from fixtures.forging import Calls, Payload, tar_with, torch_bytes
from fixtures.watched import watched

CODE = "import os\nos.mkdir({marker!r})\nclass X:\n    pass\n"


def folders(honest: Path, made: Path, marker: Path) -> dict[str, Path]:
    """Copies of an LLM's folder, each with something in it that wants to run."""
    code = CODE.format(marker=str(marker))
    maps = {name: "evil.X" for name in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")}
    calls = {"mkdir": Payload(marker), "system": Calls(os.system, f"mkdir {marker}")}

    def copy(name: str) -> Path:
        shutil.copytree(honest, made / name)
        (made / name / "evil.py").write_text(code)
        return made / name

    def changed(name: str, file: str, **values: Any) -> Path:
        path = copy(name) / file
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, **values}))
        return made / name

    found = {
        "known type, own code": changed("a", "config.json", auto_map=maps),
        "unknown type, own code": changed("b", "config.json", auto_map=maps, model_type="evil"),
        "code of a repository": changed(
            "c", "config.json", auto_map={k: f"evil/code--{v}" for k, v in maps.items()},
            model_type="evil",
        ),
        "tokenizer code": changed(
            "d", "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.X", "evil.X"]},
            tokenizer_class="X",
        ),
        "flag": changed("e", "config.json", trust_remote_code=True, auto_map=maps, model_type="e"),
        "kernel": changed("f", "config.json", attn_implementation="evil/kernel"),
        "generation": changed("g", "generation_config.json", custom_generate="evil"),
        "adapter": changed("h", "adapter_config.json", base_model_name_or_path="evil/base",
                           peft_type="LORA", auto_mapping={"parent_library": "evil"}),
    }  # fmt: skip
    for name, payload in calls.items():
        for file in ("pytorch_model.bin", "model.safetensors"):
            folder = copy(f"{name}-{file}")
            (folder / "model.safetensors").unlink()
            (folder / file).write_bytes(torch_bytes({"x": payload}))
            found[f"{name} in {file}"] = folder
    folder = copy("raw")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Payload(marker)}))
    return {**found, "raw pickle": folder}


def nemo_files(honest: Path, made: Path, marker: Path, *, section: str) -> dict[str, Path]:
    """A NeMo archive with functions in its configuration and code in its weights."""
    import yaml

    made.mkdir()
    with tarfile.open(honest) as tar:
        own = {info.name.removeprefix("./"): tar.extractfile(info).read() for info in tar
               if info.isfile()}  # fmt: skip
    config = yaml.safe_load(own["model_config.yaml"])
    found: dict[str, Path] = {}

    def write(name: str, *more: tuple[dict, bytes], **members: bytes) -> None:
        files = {**own, **{key.replace("__", "."): value for key, value in members.items()}}
        path = made / f"{len(found)}.nemo"
        found[name] = tar_with(path, *[({"name": n}, c) for n, c in files.items()], *more)

    for function in FUNCTIONS:
        evil = {**config, section: {**config[section], "_target_": function}}
        write(function, model_config__yaml=yaml.safe_dump(evil).encode())
    for key in ("nested", "_args_"):
        evil = {**config, section: {**config[section], key: {"_target_": "os.system"}}}
        write(key, model_config__yaml=yaml.safe_dump(evil).encode())
    for name, payload in {
        "mkdir": Payload(marker),
        "system": Calls(os.system, f"mkdir {marker}"),
        "eval": Calls(eval, f"__import__('os').mkdir('{marker}')"),
    }.items():
        write(f"pickle {name}", model_weights__ckpt=torch_bytes({"x": payload}))
        write(f"raw {name}", model_weights__ckpt=pickle.dumps({"x": payload}))
    tag = b"a: !!python/object/apply:os.mkdir ['evil']\n"
    write("tag", model_config__yaml=own["model_config.yaml"] + tag)
    aliases = b"a: &a [x,x]\nb: [*a,*a]\n"
    write("aliases", model_config__yaml=own["model_config.yaml"] + aliases)
    write("twice", ({"name": "model_config.yaml"}, b"target: os.system\n"))
    return found


@pytest.fixture
def try_all(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[dict[str, Any]]]:
    """Build a model with each hostile part, in forked processes that are watched."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")

    def run(build: Callable[[Path], object], paths: dict[str, Path]) -> list[dict[str, Any]]:
        calls = [(name, lambda path=path: build(path)) for name, path in paths.items()]
        return watched(calls, sandbox=tmp_path, mine=[tmp_path_factory.getbasetemp()])

    return run


def wrong(rows: list[dict[str, Any]], *, may_load: tuple[str, ...] = ()) -> list[str]:
    """Attempts that did harm, loaded, or were not refused in one line."""
    found = []
    for row in rows:
        harm = [text for text in row["harm"] if not text.startswith("left")]
        kinds, message = row["error"] or ([], "")
        refused = "UserError" in kinds and message.isprintable()
        if harm or not (refused or (row["error"] is None and row["name"] in may_load)):
            found.append(f"{row['name']}: {harm[:2]} {kinds[:1]} {message[:200]}")
    return found


def test_hostile_llm_folders(
    tiny_llm: Callable[..., Path],
    salm_config: Callable[..., dict[str, Any]],
    try_all: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    import whalesong

    config = salm_config()
    whalesong.SALM(config)
    paths = folders(tiny_llm(), tmp_path / "made", tmp_path / "canary" / "evil")
    rows = try_all(lambda path: whalesong.SALM({**config, "pretrained_llm": str(path)}), paths)
    bad = wrong(rows, may_load=("known type, own code", "tokenizer code", "flag", "kernel",
                                "generation", "adapter"))  # fmt: skip
    survival("A2", tried=len(rows), survived=len(rows) - len(bad), detail="folders")
    assert not bad, bad


def test_hostile_asr_files(
    tiny_asr: Path,
    salm_config: Callable[..., dict[str, Any]],
    try_all: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
    survival: Callable[..., None],
) -> None:
    from whalesong.speech.pretrained import load_asr, read_asr

    read_asr(str(tiny_asr))
    paths = nemo_files(tiny_asr, tmp_path / "made", tmp_path / "canary" / "evil", section="encoder")
    rows = try_all(lambda path: read_asr(str(path)), paths)
    rows += try_all(lambda path: load_asr(str(path), key="model.scoring_asr"), paths)
    bad = wrong(rows)
    survival("A2", tried=len(rows), survived=len(rows) - len(bad), detail="ASR models")
    assert not bad, bad
