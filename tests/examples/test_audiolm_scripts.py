"""The scripts of `examples/audiolm` as a user calls them, and the specification's command."""

import json
import re
import runpy
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, Features, Recording
from omegaconf import OmegaConf

from whalesong.core.config.compose import compose
from whalesong.modules.codec.files import load_codec

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "audiolm.rst").read_text(encoding="utf-8")
COUNTERPART = shlex.split(
    re.search(r"python (examples/audiolm/train\.py .*?data/tokenized.*?)\n\n", PAGE, re.DOTALL)[
        1
    ].replace("\\\n", " ")
)
SPECIFICATION = """
    --model-name audio-lm
    --decoder-dim 1024
    --nhead 16
    --num-decoder-layers 12
    --num-quantizers 4
    --base-lr 0.05
    --warmup-steps 200
    --num-epochs 20
    --exp-dir exp/audio-lm
    --max-duration 150
    --filter-min-duration 5
    --filter-max-duration 15
    --train-stage 0
    --manifest-dir data/tokenized
"""
KEYS = {
    "--model-name": "model.target",
    "--decoder-dim": "model.d_model",
    "--nhead": "model.num_heads",
    "--num-decoder-layers": "model.num_layers",
    "--num-quantizers": "model.num_quantizers",
    "--base-lr": "model.optimizer.lr",
    "--warmup-steps": "model.lr_scheduler.warmup_batches",
    "--num-epochs": "trainer.max_epochs",
    "--exp-dir": "exp_manager.exp_dir",
    "--max-duration": "data.train_ds.batch_duration",
    "--filter-min-duration": "data.train_ds.min_duration",
    "--filter-max-duration": "data.train_ds.max_duration",
    "--train-stage": "model.train_stage",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of all scripts."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("audiolm")
        patch.chdir(path)
        yield path


@pytest.fixture(scope="module")
def call(folder: Path) -> Callable[..., None]:
    """Run a script with these arguments in this process."""

    def run(script: str, *arguments: object) -> None:
        path = ROOT / "examples" / "audiolm" / script
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", [str(path), *map(str, arguments)])
            runpy.run_path(str(path), run_name="__main__")

    return run


@pytest.fixture(scope="module")
def tiny(mel_rvq: Path) -> list[str]:
    """Overrides to a small model of a codec of 3 x 32 ids, on the CPU."""
    return [
        f"model.pretransform={{type: mel_rvq, config: {{model_path: {mel_rvq}}}}}",
        *("model.sample_rate=16000", "model.num_quantizers=3", "model.codebook_size=32"),
        *("model.d_model=64", "model.num_heads=2", "model.num_layers=1", "model.dropout=0"),
        *("data.train_ds.min_duration=0.1", "data.train_ds.num_workers=0"),
        *("trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.enable_progress_bar=false"),
    ]


@pytest.fixture(scope="module")
def tokenized(folder: Path, tones: list[Any], mel_rvq: Path) -> Path:
    """Manifests as VALL-E writes them: the codes of a cut are its features (frames, K)."""
    codec, target = load_codec(mel_rvq), folder / "data" / "tokenized"
    (target / "codes").mkdir(parents=True)
    cuts = []
    for number, tone in enumerate(tones):
        name = f"tone{number}"
        samples = torch.from_numpy(tone)[None, None]
        codes, _ = codec.encode(samples, torch.tensor([len(tone)]))
        np.save(target / "codes" / f"{name}.npy", codes[0].T.float().numpy())
        soundfile.write(target / f"{name}.wav", tone, 16000)
        cut = Recording.from_file(target / f"{name}.wav", recording_id=name).to_cut()
        cut.features = Features(
            type="encodec",
            num_frames=codes.shape[2],
            num_features=codes.shape[1],
            frame_shift=0.02,
            sampling_rate=16000,
            start=0,
            duration=cut.duration,
            storage_type="numpy_files",
            storage_path=str(target / "codes"),
            storage_key=f"{name}.npy",
            recording_id=name,
            channels=0,
        )
        cuts.append(cut)
    CutSet.from_cuts(cuts[:8]).to_file(target / "cuts_train.jsonl.gz")
    CutSet.from_cuts(cuts[8:]).to_file(target / "cuts_dev.jsonl.gz")
    return target


@pytest.fixture(scope="module")
def archive(call: Callable[..., None], tiny: list[str], folder: Path, tokenized: Path) -> Path:
    """What the specification's command trains, of tiny sizes."""
    call("train.py", *COUNTERPART[1:], *tiny)
    return folder / "exp" / "audio-lm" / "audiolm" / "checkpoints" / "audiolm.nemo"


@pytest.fixture(scope="module")
def wavs(folder: Path, tones: list[Any]) -> list[Path]:
    """Two recordings of different lengths."""
    paths = [folder / "a.wav", folder / "b.wav"]
    for path, tone in zip(paths, (tones[0], tones[5]), strict=True):
        soundfile.write(path, tone, 16000)
    return paths


def test_every_flag_of_the_specification_stands_at_its_key() -> None:
    flags = dict(line.split() for line in SPECIFICATION.split("\n") if line.strip())
    on_the_page = PAGE[PAGE.index("python3 bin/trainer_audiolm.py") :].partition("\n\n")[0]
    assert shlex.split(on_the_page.replace("\\\n", " "))[2:] == shlex.split(SPECIFICATION)
    cfg = compose("audiolm", overrides=COUNTERPART[3:])
    for flag, value in flags.items():
        if flag == "--manifest-dir":
            continue
        assert str(OmegaConf.select(cfg, KEYS[flag])) == value, flag
        assert f"``{flag}" in PAGE and f"``{KEYS[flag]}``" in PAGE
    manifests = [cfg.data.train_ds, cfg.data.validation_ds.datasets.val]
    assert all(one.cuts_path.startswith(flags["--manifest-dir"]) for one in manifests)


def test_the_specifications_command_trains(archive: Path) -> None:
    import whalesong

    model = whalesong.load(archive)
    assert type(model) is whalesong.AudioLMModel
    assert model.model.lm.num_quantizers == 3


def test_generate_goes_on_from_recordings(
    call: Callable[..., None], archive: Path, wavs: list[Path], folder: Path
) -> None:
    call(
        "generate.py",
        f"predict.ckpt_path={archive}",
        f"predict.begin=[{wavs[0]},{wavs[1]}]",
        "predict.generation={max_seconds: 0.4, seed: 1, stop_on_eos: false}",
        "predict.output_file=rows.jsonl",
    )
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    lengths = [soundfile.info(row["wav"]).duration for row in rows]
    prompts = [soundfile.info(path).duration for path in wavs]
    assert lengths == pytest.approx([seconds + 0.4 for seconds in prompts], abs=0.04)


@pytest.mark.parametrize("key", ["end", "audio"])
def test_generate_fills_in_and_restyles(
    call: Callable[..., None], archive: Path, wavs: list[Path], folder: Path, key: str
) -> None:
    call(
        "generate.py",
        f"predict.ckpt_path={archive}",
        f"predict.begin=[{wavs[0]}]",
        f"predict.{key}=[{wavs[1]}]",
        "predict.generation={max_seconds: 0.2}",
        f"predict.output_dir={key}",
    )
    assert soundfile.info(folder / key / "001.wav").frames > 0


def test_stream_writes_a_file_and_tells_the_delay(
    call: Callable[..., None],
    archive: Path,
    wavs: list[Path],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--seconds", 0.6, "--chunk-seconds", 0.2]
    call("stream.py", archive, wavs[0], "stream.wav", *options)
    printed = capsys.readouterr().out
    assert re.search(r"First audio after \d+\.\d\d s. Written: stream.wav\n$", printed)
    assert soundfile.info(folder / "stream.wav").samplerate == 16000


@pytest.fixture
def check(
    call: Callable[..., None], tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, str]]]:
    """Exit code of `validate.py`, and what each check says."""

    def run(*overrides: str) -> tuple[int, dict[str, str]]:
        code = 0
        try:
            call("validate.py", *tiny, *overrides)
        except SystemExit as stopped:
            code = stopped.code
        lines = capsys.readouterr().out.splitlines()
        matches = [re.match(r"(ok|WRONG) +([a-z]+(?: loss)?) +(.*)", line) for line in lines]
        return code, {match[2]: f"{match[1]} {match[3]}" for match in matches if match}

    return run


def sets(train: object, validation: object, key: str = "shar_path") -> list[str]:
    """Overrides of the data."""
    return [f"data.train_ds.{key}={train}", f"data.validation_ds.datasets.val.{key}={validation}"]


ALL_CHECKS = ["model", "manifests", "durations", "codes", "forward", "first loss", "gradients"]


def test_validate_finds_sound_audio_sound(
    check: Callable[..., tuple[int, dict[str, str]]], music_shar: Path
) -> None:
    code, found = check(*sets(music_shar, music_shar))
    assert code == 0 and list(found) == ALL_CHECKS
    assert all(text.startswith("ok ") for text in found.values())
    assert found["manifests"] == "ok train: 12 clips, val: 12 clips"
    assert "100% kept, 0.5 to 0.9 s" in found["durations"]
    assert "3 quantizers at 50 frames/s" in found["codes"]


def test_validate_reads_the_manifests_of_the_specification(
    check: Callable[..., tuple[int, dict[str, str]]], tokenized: Path
) -> None:
    names = [tokenized / f"cuts_{name}.jsonl.gz" for name in ("train", "dev")]
    adamw = ["optim=adamw", "trainer.max_steps=5"]
    code, found = check(*sets(*names, key="cuts_path"), *adamw)
    assert code == 0 and list(found) == ALL_CHECKS


@pytest.mark.parametrize(
    ("overrides", "check_name", "words"),
    [
        (["data.train_ds.min_duration=0.8"], "durations", "shorter than min_duration (0.8 s)"),
        (["data.train_ds.min_duration=5"], "durations", "train: 0% kept"),
        (["data.train_ds.shar_path=nowhere"], "manifests", "nowhere: no such shar folder"),
        (["model.num_quantizers=4"], "model", "must be that of the codec (3), but is 4"),
        (["model.codebook_size=[32,32,3]"], "codes", "from 0 to 2 for quantizer 2"),
    ],
)
def test_validate_says_what_is_wrong(
    check: Callable[..., tuple[int, dict[str, str]]],
    music_shar: Path,
    overrides: list[str],
    check_name: str,
    words: str,
) -> None:
    code, found = check(*sets(music_shar, music_shar), *overrides)
    assert code == 1
    assert found[check_name].startswith("WRONG ") and words in found[check_name]


def test_validate_reads_every_manifest(
    check: Callable[..., tuple[int, dict[str, str]]], music_shar: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(music_shar, tmp_path / "shar"))
    audio = sorted(broken.glob("recording.*.tar"))[1]
    audio.write_bytes(audio.read_bytes()[:2000])
    code, found = check(*sets(music_shar, broken))
    assert code == 1
    assert audio.name in found["manifests"] and list(found) == ["model", "manifests"]
    code, found = check(*sets(music_shar, broken), "data.on_bad_cut=skip")
    assert code == 0 and "entries left out" in found["manifests"]


def test_losses_and_gradients_that_are_off_are_found(tiny: list[str], music_shar: Path) -> None:
    from whalesong.checks import check_training as check_sections
    from whalesong.models.audiolm.audiolm import AudioLMModel
    from whalesong.models.audiolm.validate import check_model

    cfg = compose("audiolm", overrides=[*tiny, *sets(music_shar, music_shar)])
    _, data = check_sections(cfg)
    torch.manual_seed(0)
    model = AudioLMModel(cfg.model).eval()
    table = model.model.lm.nar.embeddings[2].weight
    with torch.no_grad():
        table.mul_(30)
    found = {finding.check: finding for finding in check_model(model, data)}
    assert [name for name, finding in found.items() if finding.is_wrong] == ["first loss"]
    assert "a guess: 3.47" in found["first loss"].found
    with torch.no_grad():
        table.fill_(torch.nan)
    *_, last = check_model(model, data)
    assert last.is_wrong and last.check == "forward" and "nan" in last.found
