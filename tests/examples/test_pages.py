"""README.rst and docs/ tell the truth: they render, their YAML is valid, their commands run."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from docutils.core import publish_doctree
from omegaconf import DictConfig, OmegaConf

from whalesong import checks, experiment
from whalesong.core import commands
from whalesong.core.config.compose import compose
from whalesong.core.config.job import check_job
from whalesong.core.families import assembled
from whalesong.core.scaffold.command import main as scaffold
from whalesong.core.schema import validate
from whalesong.data.config import DataConfig
from whalesong.demos.audiolm import AudioLMDemo
from whalesong.demos.music import MusicDemo
from whalesong.demos.salm import SalmDemo

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (
        *("README.rst", "SECURITY.rst", "docs/salm.rst", "docs/codec_lm.rst", "docs/audiolm.rst"),
        *("docs/duplex.rst", "docs/textlm.rst"),
    )
}
BASE = {
    "README.rst": "salm",
    "SECURITY.rst": "salm",
    "docs/salm.rst": "salm",
    "docs/codec_lm.rst": "audio_lm",
    "docs/audiolm.rst": "audiolm",
    "docs/duplex.rst": "s2s_duplex",
    "docs/textlm.rst": "experiment/star_mini_ilm",
}
"""The config that a page's YAML goes over."""
BLOCK = re.compile(r"^( *)\.\. code-block:: (\w+)\n\n((?:\1 .*\n|\n)+)", flags=re.MULTILINE)
JOB_SCRIPTS = (
    *("salm_train.py", "salm_eval.py", "salm_generate.py"),
    *("codec_lm/train.py", "codec_lm/generate.py"),
    *("audiolm/train.py", "audiolm/generate.py"),
    *("s2s_duplex_train.py", "s2s_duplex_speech_decoder_train.py", "s2s_duplex_infer.py"),
)
FEW_STEPS = (
    "trainer.max_steps=2 trainer.val_check_interval=1 trainer.num_sanity_val_steps=0"
    " model.generation.max_new_tokens=4"
)


def blocks(language: str, *pages: str) -> list[str]:
    """The code blocks of a language in reading order, of all pages if none is named."""
    return [
        textwrap.dedent(text).strip() + "\n"
        for page in pages or PAGES
        for _, name, text in BLOCK.findall(PAGES[page])
        if name == language
    ]


def command_lines(*pages: str) -> list[str]:
    """Every shell command, each on one line."""
    joined = "".join(blocks("bash", *pages)).replace("\\\n", " ")
    return [" ".join(line.split()) for line in joined.splitlines()]


COMMANDS = command_lines()
MAKE = [command for command in COMMANDS if command.startswith("make ")]
ABOUT_MODELS = [
    command
    for command in COMMANDS
    if re.match(r"xlm-scaffold|python -m pytest|xlm job_type=(list|prepare|inspect|count)", command)
]
"""What is done with models beside jobs; test_textlm_page.py and test_inspection.py run it."""
JOBS = [
    command
    for command in COMMANDS
    if command not in ABOUT_MODELS
    and (command.startswith("xlm ") or any(script in command for script in JOB_SCRIPTS))
]
OTHER_SCRIPTS = [
    command
    for command in COMMANDS
    if command.startswith("python ") and command not in [*JOBS, *ABOUT_MODELS]
]


def write_own_yaml(folder: Path) -> None:
    """Write each YAML block that names its file, as the reader of the pages does."""
    for block in blocks("yaml"):
        if named := re.search(r"^# (\S+\.yaml)$", block, flags=re.MULTILINE):
            path = folder / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block)


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch, checkout: Path) -> list[DictConfig]:
    """The configs that jobs get instead of being run; the working directory is the checkout."""
    configs: list[DictConfig] = []
    monkeypatch.setattr(experiment, "run", configs.append)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which a job adds its external model
    monkeypatch.chdir(checkout)
    write_own_yaml(checkout)
    return configs


def run_here(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of the README in this process."""
    program, *arguments = shlex.split(command)
    if program == "python":
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        from whalesong.cli import main

        main(arguments)


def check(cfg: DictConfig) -> None:
    """Check a composed config as far as that needs no model."""
    if "model_type" in cfg:
        cfg = assembled(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)))
    if check_job(cfg).job_type == "train":
        checks.check_training(cfg)
    elif "data" in cfg:
        validate(DataConfig, cfg.data, path="data")


def test_every_command_is_covered() -> None:
    known = {*MAKE, *JOBS, *ABOUT_MODELS, *OTHER_SCRIPTS}
    assert set(COMMANDS) - known == {"source .venv/bin/activate"}
    assert MAKE and JOBS and ABOUT_MODELS and OTHER_SCRIPTS


@pytest.mark.parametrize("command", JOBS)
def test_job_composes_and_passes_the_schemas(
    command: str,
    received: list[DictConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "my_awesome_model" in command:
        scaffold(["my_awesome_model"])
        capsys.readouterr()
    run_here(command, monkeypatch)
    if "--cfg" in command:
        assert len(capsys.readouterr().out.splitlines()) > 20
    else:
        check(received[0])


@pytest.mark.parametrize("command", OTHER_SCRIPTS)
def test_script_takes_its_arguments(
    command: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Callable[[], None]] = []
    monkeypatch.setattr(commands, "run_command", started.append)
    monkeypatch.chdir(checkout)
    run_here(command, monkeypatch)
    assert len(started) == 1


def test_help_tells_what_a_script_does(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkout)
    with pytest.raises(SystemExit):
        run_here("python examples/speechlm2/s2s_duplex_infer.py --help", monkeypatch)
    assert "predict.generation.stream=true" in capsys.readouterr().out


@pytest.mark.parametrize(
    "target, expected",
    [
        ("demo", "examples/speechlm2/salm_demo.py"),
        ("demo-music", "examples/codec_lm/demo.py"),
        ("demo-audiolm", "examples/audiolm/demo.py"),
        ("demo-duplex", "examples/speechlm2/s2s_duplex_demo.py"),
        ("demo-text", "examples/textlm/demo.py"),
        ("demo-text-full", "examples/textlm/demo_full.py"),
        ("test", "-m pytest"),
        ("test-faults", "tests/faults"),
    ],
)
def test_make_target_runs_what_it_says(target: str, expected: str) -> None:
    assert f"make {target}" in MAKE
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-n", target], cwd=ROOT, env=clean, capture_output=True, text=True, check=True
    )
    assert expected in done.stdout


@pytest.mark.parametrize(
    ("page", "block"), [(page, block) for page in PAGES for block in blocks("yaml", page)]
)
def test_yaml_goes_over_the_config_of_its_page(page: str, block: str, tmp_path: Path) -> None:
    if "defaults:" not in block:
        block = f"defaults:\n  - /{BASE[page]}@_global_\n  - _self_\n{block}"
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "block.yaml").write_text(f"# @package _global_\n{block}")
    cfg = compose("config", config_path=tmp_path, overrides=["job_type=train", "experiment=block"])
    fill_in_paths(cfg)
    check(cfg)


def fill_in_paths(cfg: DictConfig) -> None:
    """Set what the configs leave to the user."""
    if "model_type" in cfg:
        return  # the pages of text models leave nothing out
    for dataset in (cfg.data.train_ds, *cfg.data.validation_ds.datasets.values()):
        for item in dataset.get("input_cfg") or [dataset]:
            if OmegaConf.is_missing(item, "shar_path"):
                item.shar_path = "shar"
    codec = OmegaConf.select(cfg, "model.pretransform.config")
    if codec is not None and OmegaConf.is_missing(codec, "model_path"):
        codec.model_path = "codec.safetensors"
    if OmegaConf.is_missing(cfg.model, "pretrained_audio_codec"):
        cfg.model.pretrained_audio_codec = "codec.safetensors"


@pytest.mark.parametrize("block", blocks("json"))
def test_json_lines_are_json(block: str) -> None:
    assert [json.loads(line) for line in block.splitlines()]


@pytest.mark.parametrize("name", [*PAGES, "CONTRIBUTING.rst", "CHANGELOG.rst"])
def test_page_renders_without_a_warning(name: str) -> None:
    settings = {"report_level": 2, "halt_level": 2, "syntax_highlight": "none"}
    publish_doctree((ROOT / name).read_text(encoding="utf-8"), settings_overrides=settings)


def test_files_that_are_named_are_there() -> None:
    readme = PAGES["README.rst"]
    table = readme.partition("Where things are")[2]
    named = re.findall(r"^``(\S+)``", table, flags=re.MULTILINE)
    named += re.findall(r"<((?:docs/)?\w+(?:\.rst)?)>`_", readme)
    pictures = [path for page in PAGES.values() for path in re.findall(r"image:: (\S+)", page)]
    named += [f"docs/{path}" for path in pictures]
    assert len(named) > 15 and pictures
    assert [path for path in named if not (ROOT / path).exists()] == []
    scripts = {
        script: len(script.read_text().splitlines()) for script in ROOT.glob("examples/*/*.py")
    }
    assert [script for script, lines in scripts.items() if lines > 50] == []


@pytest.mark.parametrize("name", [path.name for path in ROOT.glob("docs/*.svg")])
def test_picture_is_well_formed(name: str) -> None:
    picture = ElementTree.parse(ROOT / "docs" / name).getroot()
    assert picture.tag.endswith("svg") and picture.get("viewBox")


@pytest.mark.slow
@pytest.mark.usefixtures("demo_parts", "recordings")
def test_commands_run_in_order(checkout: Path, shell: Callable[..., str]) -> None:
    write_own_yaml(checkout)
    for command in command_lines("docs/salm.rst"):
        trains = "salm_train.py" in command or "job_type=train" in command
        shell(f"{command} {FEW_STEPS}" if trains and "--cfg" not in command else command)
    rows = [json.loads(line) for line in (checkout / "test.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert all({"id", "reference", "hypothesis", "wer"} == set(row) for row in rows)
    assert (checkout / "hf" / "config.json").is_file()
    assert (checkout / "logs" / "first" / "checkpoints" / "first.nemo").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("recordings")
def test_commands_of_the_codec_lm_run_in_order(checkout: Path, shell: Callable[..., str]) -> None:
    from whalesong.tiny.musicgen import build_tiny_musicgen

    build_tiny_musicgen(checkout / "musicgen", texts=["turn on the light"])
    few = "trainer.max_steps=2 trainer.val_check_interval=1 trainer.num_sanity_val_steps=0"
    small = "model.lm.config.embed_dim=64 model.lm.config.depth=1"
    for command in command_lines("docs/codec_lm.rst"):
        shell(f"{command} {few} {small}" if "codec_lm/train.py" in command else command)
    assert (checkout / "generated" / "001.wav").is_file()
    assert json.loads((checkout / "results.json").read_text())
    assert (checkout / "musicgen.nemo").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("recordings")
def test_commands_of_audiolm_run_in_order(checkout: Path, shell: Callable[..., str]) -> None:
    write_own_yaml(checkout)
    few = "trainer.max_steps=2 trainer.val_check_interval=1 trainer.num_sanity_val_steps=0"
    small = "model.d_model=32 model.num_layers=1"
    printed = {}
    for command in command_lines("docs/audiolm.rst"):
        if "data/tokenized" in command:  # that of the specification: see test_audiolm_scripts
            continue
        trains = "audiolm/train.py" in command or "job_type=train" in command
        printed[command] = shell(f"{command} {few} {small}" if trains else command)
    assert any("gradients" in text and "WRONG" not in text for text in printed.values())
    (values,) = map(json.loads, (checkout / "test.jsonl").read_text().splitlines())
    assert {"ar_top1", "nar_top10", "ArTop10Accuracy"} <= values.keys()
    for made in ("generated/002.wav", "between/001.wav", "restyled/001.wav", "stream.wav"):
        assert (checkout / made).is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("duplex_parts", "talks")
def test_commands_of_duplex_run_in_order(checkout: Path, shell: Callable[..., str]) -> None:
    writes_shar = blocks("python", "docs/duplex.rst")[-1]
    (checkout / "write_shar.py").write_text(writes_shar)
    shell("python write_shar.py")
    few = "trainer.max_steps=2 trainer.val_check_interval=1 trainer.num_sanity_val_steps=0"
    printed = {}
    for command in command_lines("docs/duplex.rst"):
        printed[command] = shell(f"{command} {few}" if "_train.py" in command else command)
    assert any("BLEU" in text for text in printed.values())
    assert len((checkout / "test.jsonl").read_text().splitlines()) == 4
    for made in ("001_agent.wav", "002_stereo.wav", "002.png"):
        assert (checkout / "generated" / made).is_file()
    assert list(checkout.glob("logs/s2s_duplex_speech_decoder/checkpoints/*.nemo"))


@pytest.mark.slow
@pytest.mark.usefixtures("demo")
def test_python_runs_in_order(checkout: Path, shell: Callable[..., str]) -> None:
    (checkout / "readme.py").write_text("\n".join(blocks("python", "README.rst", "docs/salm.rst")))
    shell("python readme.py")
    assert (checkout / "slim.nemo").is_file()


@pytest.mark.slow
def test_python_of_the_codec_lm_runs_in_order(checkout: Path, shell: Callable[..., str]) -> None:
    MusicDemo.short(checkout / "demo" / "music").run()
    (checkout / "page.py").write_text("\n".join(blocks("python", "docs/codec_lm.rst")))
    assert "torch.Size([2, 1, " in shell("python page.py")
    assert (checkout / "1.wav").is_file()


@pytest.mark.slow
def test_python_of_audiolm_runs_in_order(checkout: Path, shell: Callable[..., str]) -> None:
    AudioLMDemo.short(checkout / "demo" / "audiolm").run()
    (checkout / "page.py").write_text("\n".join(blocks("python", "docs/audiolm.rst")))
    assert "[torch.Size([1, " in shell("python page.py")
    assert (checkout / "1.wav").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("duplex_parts")
def test_python_of_duplex_runs_in_order(
    checkout: Path,
    talks: Path,
    small_duplex_job: Callable[..., list[str]],
    shell: Callable[..., str],
) -> None:
    few = ("trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.num_sanity_val_steps=0")
    place = ("job_name=duplex_demo", "exp_manager.explicit_log_dir=demo/duplex/duplex")
    shell(shlex.join(["xlm", *small_duplex_job(), *few, *place]))
    examples = checkout / "demo" / "duplex" / "examples"
    examples.mkdir()
    shutil.copy(talks / "1_user.wav", examples / "01_user.wav")
    (checkout / "page.py").write_text("\n".join(blocks("python", "docs/duplex.rst")))
    assert "real-time factor" in shell("python page.py")
    assert (checkout / "agent.wav").is_file() and list(checkout.glob("shar/train/target_audio.*"))


@pytest.mark.slow
@pytest.mark.usefixtures("recordings")
def test_settings_train_together(
    checkout: Path, demo_parts: SalmDemo, shell: Callable[..., str]
) -> None:
    """All YAML of SALM's page in one run: speech, dialogs and text in buckets."""
    settings = [b for b in blocks("yaml", "docs/salm.rst") if "own/experiment" not in b]
    merged = OmegaConf.to_yaml(OmegaConf.merge(*map(OmegaConf.create, settings)))
    experiments = checkout / "own" / "experiment"
    experiments.mkdir(parents=True)
    (experiments / "all.yaml").write_text(f"# @package _global_\n{merged}")
    (checkout / "questions.txt").write_text("what is on\nwhat is off\n")
    (checkout / "answers.txt").write_text("the light\nthe heating\n")
    turns = [
        {"from": "User", "type": "text", "value": "Repeat after me:"},
        {"from": "User", "type": "audio", "value": "recordings/train/000.wav"},
        {"from": "Assistant", "type": "text", "value": "turn on the light"},
    ]
    (checkout / "dialogs.jsonl").write_text(json.dumps({"id": "a", "conversations": turns}))
    manifests = " ".join(f"recordings/{name}.jsonl" for name in ("train", "validation", "test"))
    shell(
        f"python examples/speechlm2/manifest_to_shar.py {manifests} shar; mv shar/test shar/street"
    )
    printed = shell(
        f"xlm --config-path=own job_type=train experiment=all {FEW_STEPS}"
        f" model.pretrained_llm={demo_parts.llm} model.pretrained_asr={demo_parts.asr}"
    )
    assert "val_wer_val" in printed and "val_wer_street" in printed
