"""Evaluation of a codec language model: what its numbers must agree with, and what it refuses."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import whalesong
from whalesong.core.errors import ConfigError, DataError
from whalesong.core.schema import validate
from whalesong.metrics.clap import ClapScorer
from whalesong.models.codec_lm.evaluation.baselines import count_codes, untrained_copy
from whalesong.models.codec_lm.evaluation.evaluate import (
    EvaluationSettings,
    evaluate,
    measure_clap,
    measure_distance,
)
from whalesong.models.codec_lm.evaluation.report import EvaluationResult, format_table
from whalesong.models.codec_lm.evaluation.sets import ClipReader, open_shar, read_clips
from whalesong.sound.tokenize import read_pretransform, tokenize_shar
from whalesong.tiny.clap import build_tiny_clap

WORDS = ["slow", "fast", "tone", "number", *map(str, range(12))]


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained ClapModel that hears a tenth of a second."""
    folder = tmp_path_factory.mktemp("clap")
    return build_tiny_clap(folder, words=WORDS, max_seconds=0.1)


@pytest.fixture(scope="module")
def archive(build_codec_lm: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are not those of the beginning."""
    model = build_codec_lm({"global_cond_ids": ["tempo"], "prepend_cond_ids": ["prompt"]})
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("archive") / "model.nemo"
    model.save_to(path)
    return path


@pytest.fixture(scope="module")
def model(archive: Path) -> Any:
    return whalesong.load(archive)


@pytest.fixture(scope="module")
def settings(archive: Path, music_shar: Path) -> Callable[..., EvaluationSettings]:
    """Six clips of 0.3 s; keywords change the settings."""

    def build(folder: Path, **changes: Any) -> EvaluationSettings:
        fixed = {"archive": archive, "held_out": music_shar, "output": folder / "results.json"}
        small = {"num_clips": 6, "seconds": 0.3, "batch_size": 4, "seed": 3}
        return validate(EvaluationSettings, {**fixed, **small, **changes})

    return build


@pytest.fixture(scope="module")
def full(
    settings: Callable[..., EvaluationSettings], clap: Path, music_shar: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[EvaluationResult, Path]:  # fmt: skip
    """Everything at once, and the folder of its files."""
    folder = tmp_path_factory.mktemp("full")
    asked = settings(folder, clap=str(clap), train=music_shar, samples=folder / "wavs")
    return evaluate(asked), folder


def held_out(model: Any, shar: Path) -> Any:
    return open_shar(shar, model.parts.validation_collator, batch_size=4)


# -- likelihood -----------------------------------------------------------------------------------


def test_likelihood_is_that_of_the_models_own_evaluation(
    full: tuple[EvaluationResult, Path], model: Any, music_shar: Path
) -> None:
    (expected,) = model.evaluate(held_out(model, music_shar), description="test").rows
    likelihood = full[0].likelihood
    assert likelihood.trained == {**likelihood.trained, **expected}
    bits = [likelihood.trained[f"bits_{k}"] for k in range(3)]
    assert fmean(bits) == pytest.approx(likelihood.trained["bits"])
    assert likelihood.untrained["nll"] == pytest.approx(np.log(32), abs=0.8)


def test_untrained_model_differs_only_in_what_is_learned(model: Any) -> None:
    untrained = untrained_copy(model, seed=0)
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    before, after = untrained.state_dict(), model.state_dict()
    same = {name for name in after if torch.equal(before[name], after[name])}
    assert learned and same == set(after) - learned
    again = untrained_copy(model, seed=0).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in before.items())


def test_codes_are_counted_once_each(model: Any, music_shar: Path) -> None:
    pairs = [model.model.codes_of(batch) for batch in held_out(model, music_shar)]
    rows = [row[:, :n] for codes, lens in pairs for row, n in zip(codes, lens, strict=True)]
    codes = torch.cat(rows, dim=1)
    counts = count_codes(model, held_out(model, music_shar), description="test")
    assert torch.equal(counts, torch.stack([torch.bincount(row, minlength=32) for row in codes]))


# -- distances and scores -------------------------------------------------------------------------


def test_distances_of_a_set_with_itself_are_none() -> None:
    rng = np.random.default_rng(0)
    songs = [rng.standard_normal((count, 4)) for count in (5, 1, 30, 30)]
    distance, notes = measure_distance(np.concatenate(songs), songs)
    assert distance.fad.value == 0 and distance.infinity.value < 0.3
    assert distance.kad == pytest.approx(0, abs=0.02)
    assert distance.per_song[1] is None and all(v > 0 for v in distance.per_song[2:])
    assert notes == []
    away, _ = measure_distance(np.concatenate(songs), [song + 3 for song in songs])
    assert away.fad.value == pytest.approx(36) and away.kad > 0.5


def test_few_clips_are_said_to_be_few_and_silence_is_refused() -> None:
    rows = np.random.default_rng(0).standard_normal((4, 8))
    _, notes = measure_distance(rows, list(rows[:3, None]))
    assert ["`reference` has 4 rows for 8", "`evaluated` has 3 rows for 8"] == [
        note.split(" dim")[0] for note in notes
    ]
    with pytest.raises(DataError, match="the reference: `bandwidth` must be above 0"):
        measure_distance(np.zeros((4, 8)), list(rows[:3, None]))


def test_clap_scores_are_those_of_every_pair(clap: Path, tones: list[Any]) -> None:
    scorer = ClapScorer(clap)
    captions = ["slow tone", "fast tone", "slow tone"]
    scores = measure_clap(scorer, captions, tones[:3], tones[3:6], 16000)

    def pair(text: str, audio: Any) -> float:
        return scorer.score([text], [audio], 16000).item()

    own = [pair(*item) for item in zip(captions, tones[:3], strict=True)]
    assert scores.generated == pytest.approx(own, abs=1e-5)
    real = [pair(*item) for item in zip(captions, tones[3:6], strict=True)]
    assert scores.real == pytest.approx(real, abs=1e-5)
    others = [pair(c, a) for a, own in zip(tones, captions, strict=False) for c in captions
              if c != own]  # fmt: skip
    assert len(others) == 4 and scores.shuffled == pytest.approx(fmean(others), abs=1e-5)
    alike = measure_clap(scorer, captions[::2], tones[:2], [tones[0], None], 16000)
    assert alike.real is None and alike.shuffled is None


def test_better_of_several_candidates_is_kept(
    full: tuple[EvaluationResult, Path], settings: Callable[..., EvaluationSettings], clap: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    chosen = evaluate(settings(tmp_path, clap=str(clap), candidates=3, embedder="mel"))
    pairs = zip(chosen.clap.generated, full[0].clap.generated, strict=True)
    assert all(best >= first - 1e-6 for best, first in pairs)
    assert fmean(chosen.clap.generated) > fmean(full[0].clap.generated)
    assert chosen.embedder == "mel" and "has also chosen them" in chosen.notes[-1]


# -- what comes out -------------------------------------------------------------------------------


def test_file_holds_every_value_and_the_table_the_main_ones(
    full: tuple[EvaluationResult, Path], model: Any
) -> None:
    result, folder = full
    written = json.loads((folder / "results.json").read_text())
    assert written == json.loads(json.dumps(asdict(result)))
    assert written["settings"]["seed"] == 3 and written["generation"]["top_k"] == 0
    assert {"whalesong", "torch", "python"} <= set(written["versions"])
    assert [clip["seed"] for clip in written["clips"]] == list(range(3, 9))
    assert written["clips"][1]["caption"] == "slow tone number 1"
    assert len(written["generated"]["per_song"]) == len(written["round_trip"]["per_song"]) == 6
    assert result.embedder == "clap" and result.num_reference == 6
    assert 0 < result.round_trip.fad.value < result.generated.fad.value
    table = format_table(result)
    for name in ("untrained", "unigram", "NLL of codebook 2", "FAD (clap)", "FAD infinity", "KAD",
                 "CLAP score", "shuffled captions", "codec MelRVQCodec"):  # fmt: skip
        assert name in table
    assert f"Note: `reference` has {result.generated.fad.num_reference} rows for 8 dim" in table
    assert "Note: the condition 'prompt' is heard" in table


def test_samples_are_written_beside_real_and_recoded_audio(
    full: tuple[EvaluationResult, Path],
) -> None:
    files = sorted(path.name for path in (full[1] / "wavs").iterdir())
    assert len(files) == 15 and files[:3] == ["001_codec.wav", "001_generated.wav", "001_real.wav"]
    assert {soundfile.info(full[1] / "wavs" / name).frames for name in files} == {4800}


def test_same_seed_gives_the_same_numbers_in_other_batches(
    full: tuple[EvaluationResult, Path], settings: Callable[..., EvaluationSettings], tmp_path: Path
) -> None:
    one = evaluate(settings(tmp_path))
    assert one.clips == full[0].clips and one.likelihood.trained == full[0].likelihood.trained
    assert one.clap is None and one.likelihood.unigram is None and one.embedder == "mel"
    other = evaluate(settings(tmp_path, batch_size=5))
    assert other.generated.fad.value == pytest.approx(one.generated.fad.value, rel=1e-4)
    assert other.likelihood.trained == pytest.approx(one.likelihood.trained, rel=1e-5)
    another = evaluate(settings(tmp_path, seed=100, temperature=0.5, guidance_scale=2.0))
    assert another.generated.fad.value != one.generated.fad.value
    assert another.round_trip == one.round_trip and another.generation["guidance_scale"] == 2.0


def test_every_clip_has_its_own_length_unless_one_is_given(model: Any, music_shar: Path) -> None:
    collator = model.parts.validation_collator
    clips = list(read_clips(music_shar, ClipReader(collator, seconds=None)))
    for index, clip in enumerate(clips):
        assert clip.id == f"clip{index}" and clip.audio.shape == (1, 8000 + 640 * index)
        assert clip.seconds == pytest.approx(0.5 + 0.04 * index)
        assert clip.conditions["tempo"] == 60 + 5 * index
    short = next(read_clips(music_shar, ClipReader(collator, seconds=0.3)))
    assert short.audio.shape == (1, 4800) and short.seconds == 0.3
    assert collator.max_frames is None and collator.condition_keys


# -- bad input ------------------------------------------------------------------------------------


def test_codes_alone_need_a_reference_with_recordings(
    settings: Callable[..., EvaluationSettings], music_shar: Path, mel_rvq: Path, tmp_path: Path
) -> None:
    codes = tokenize_shar(music_shar, read_pretransform(mel_rvq), output=tmp_path / "codes").folder
    with pytest.raises(DataError, match="cut clip0: has no recording to compare with; name a shar"):
        evaluate(settings(tmp_path, held_out=codes))
    with pytest.raises(DataError, match="codes, cut clip0: has no recording"):
        evaluate(settings(tmp_path, reference=codes))
    result = evaluate(settings(tmp_path, held_out=codes, reference=music_shar))
    assert result.num_reference == 12 and len(result.round_trip.per_song) == 6
    whole = evaluate(settings(tmp_path))
    # An audio prompt is cut off before it is encoded, or after: its last frames differ.
    nll = whole.likelihood.trained["nll"]
    assert result.likelihood.trained["nll"] == pytest.approx(nll, rel=1e-2)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_clips": 2}, ConfigError, "`num_clips`"),
        ({"temperature": -1.0}, ConfigError, "`temperature`"),
        ({"embedder": "clap"}, ConfigError, "has the `embedder` clap, but no `clap`"),
        ({"clap": "no/such/folder"}, ConfigError, "but is 'no/such/folder'"),
        ({"archive": "none.nemo"}, ConfigError, "must be an existing file, but 'none.nemo' is not"),
        ({"output": "."}, ConfigError, "`output` must be a file, but '.' is a folder"),
        ({"held_out": "no/shar"}, DataError, "no/shar: no such shar folder"),
        ({"train": "no/shar"}, DataError, "no/shar: no such shar folder"),
        ({"reference": "no/shar"}, DataError, "no/shar: no such shar folder"),
    ],
)
def test_what_cannot_work_is_one_line_at_once(
    settings: Callable[..., EvaluationSettings], tmp_path: Path, changes: dict[str, Any],
    error: type[Exception], message: str,
) -> None:  # fmt: skip
    with pytest.raises(error) as caught:
        evaluate(settings(tmp_path, **changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_clap_needs_a_model_of_captions(
    build_codec_lm: Callable[..., Any], settings: Callable[..., EvaluationSettings], clap: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    lm = {"cross_attention_cond_ids": [], "global_cond_ids": ["tempo"]}
    build_codec_lm(lm).save_to(tmp_path / "tempo.nemo")
    changes = {"archive": tmp_path / "tempo.nemo", "num_clips": 3}
    with pytest.raises(ConfigError, match="no condition of the model is a text"):
        evaluate(settings(tmp_path, clap=str(clap), **changes))
    result = evaluate(settings(tmp_path, **changes))
    assert result.clips[0].caption == "" and "CLAP" not in format_table(result)
