"""Evaluating a duplex model, and letting it answer audio files."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
import soundfile
import torch

from whalesong.core.config.job import PredictConfig
from whalesong.core.errors import ConfigError, DataError
from whalesong.data.turns import Turn

RATE, FRAME = 22050, 1764


@pytest.fixture(scope="module", params=["duplex_s2s", "duplex_s2s_speech_decoder"])
def model(request: pytest.FixtureRequest, talkative: Callable[..., Any]) -> Any:
    return talkative(request.param)


@pytest.fixture
def loader(duplex_shar: Path) -> Callable[..., Any]:
    from whalesong.data.datamodule import build_loader

    def build(model: Any, batch_size: int = 5) -> Any:
        config = {"shar_path": str(duplex_shar), "batch_size": batch_size, "num_workers": 0,
                  "force_finite": True}  # fmt: skip
        return build_loader(config, model.parts.validation_collator, path="test_ds")

    return build


@pytest.fixture
def wavs(dialogues: list[Any], tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"user{number}.wav") for number in range(2)]
    for path, (user, _, _) in zip(paths, dialogues, strict=False):
        soundfile.write(path, user, 16000)
    return paths


# -- evaluation ---------------------------------------------------------------------------------


def test_rows_tell_what_was_said_and_the_summary_scores_it(
    talkative: Callable[..., Any], loader: Callable[..., Any], causal_asr: Path
) -> None:
    model = talkative(scoring_asr=str(causal_asr))
    found = model.evaluate(loader(model), description="test")
    json.dumps(found.rows)
    assert len(found.rows) == 12
    said, wanted = ([row[key] for row in found.rows] for key in ("hypothesis", "reference"))
    assert any(said) and all(row["asr_hypothesis"] for row in found.rows)
    for row in found.rows:
        assert row["hypothesis"] == " ".join(t["text"] for t in row["agent_turns"] if t["text"])
        assert row["reference"] == " ".join(turn["text"] for turn in row["reference_turns"])
    bleu = sacrebleu.corpus_bleu(said, [wanted]).score
    assert found.summary.startswith(f"BLEU {bleu:.2f}, ASR-BLEU ")
    assert "ASR-WER" in found.summary and found.summary.endswith("over 12 conversations")


def test_a_batch_is_answered_as_its_rows_are(model: Any, loader: Callable[..., Any]) -> None:
    settings = {"text_temperature": 0.0, "temperature": 0.0}
    batch = next(iter(loader(model, 5)))
    together = model.parts.predictor.predict(batch, **settings)
    for row, single in zip(range(5), loader(model, 1), strict=False):
        alone = model.parts.predictor.predict(single, **settings)
        count = int(alone["tokens_len"])
        assert together["tokens_len"][row] == count
        assert together["audio_len"][row] == alone["audio_len"][0] == count * FRAME
        for name, length in (("tokens_text", count), ("tokens_audio", count)):
            assert torch.equal(together[name][row, :length], alone[name][0])
        samples = together["audio"][row, : count * FRAME]
        torch.testing.assert_close(samples, alone["audio"][0], atol=1e-5, rtol=1e-4)


def test_without_its_recognizer_only_the_text_is_scored(
    talkative: Callable[..., Any], loader: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = talkative(scoring_asr="/elsewhere/asr.nemo")
    caplog.set_level(logging.WARNING)
    found = model.evaluate(loader(model), description="test")
    assert "/elsewhere/asr.nemo" in caplog.text
    assert "BLEU" in found.summary and "ASR" not in found.summary
    assert not any("asr_hypothesis" in row for row in found.rows)


def test_no_cuts_are_no_rows(model: Any) -> None:
    batch = model.parts.validation_collator([])
    preds = model.parts.predictor.predict(batch)
    assert model.parts.predictor.to_dict(batch, preds) == []
    assert preds["audio"].shape == (1, 0)


def test_generation_leaves_the_modes_of_a_training_alone(
    model: Any, loader: Callable[..., Any]
) -> None:
    model.train()
    before = [part.training for part in model.model.modules()]
    try:
        model.parts.predictor.predict(next(iter(loader(model, 1))), decode_audio=False)
        assert [part.training for part in model.model.modules()] == before
    finally:
        model.eval()


# -- answers ------------------------------------------------------------------------------------


def answers(model: Any, folder: Path, **request: Any) -> list[dict[str, Any]]:
    rows = list(model.answer(PredictConfig(**request, output_dir=str(folder))))
    json.dumps(rows)
    return rows


def test_a_recording_is_answered_in_words_sound_and_a_picture(
    model: Any, wavs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = answers(model, tmp_path / "out", audio=wavs)
    printed = capsys.readouterr().out
    assert [row["audio"] for row in rows] == wavs
    for number, row in enumerate(rows, start=1):
        paths = [row[key] for key in ("agent", "stereo", "picture")]
        names = (f"00{number}_agent.wav", f"00{number}_stereo.wav", f"00{number}.png")
        assert paths == [str(tmp_path / "out" / name) for name in names]
        agent, rate = soundfile.read(paths[0])
        both, _ = soundfile.read(paths[1])
        user, _ = soundfile.read(row["audio"])
        assert rate == RATE and len(agent) % FRAME == 0
        assert both.shape == (max(len(agent), round(len(user) * RATE / 16000)), 2)
        np.testing.assert_allclose(both[: len(agent), 1], agent)
        assert abs(both[:, 0].std() - user.std()) < 0.02
        assert Path(paths[2]).read_bytes().startswith(b"\x89PNG")
        for turn in row["turns"]:
            assert f"[{turn['begin']:.2f} - " in printed
        assert row["answer"] == " ".join(turn["text"] for turn in row["turns"] if turn["text"])
    assert any(row["answer"] for row in rows)


def test_a_stream_says_the_same(
    model: Any, wavs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    whole = answers(model, tmp_path / "whole", audio=wavs)
    capsys.readouterr()
    streamed = answers(model, tmp_path / "stream", audio=wavs, generation={"stream": True})
    printed = capsys.readouterr().out
    for one, other in zip(whole, streamed, strict=True):
        assert (one["turns"], one["answer"]) == (other["turns"], other["answer"])
        assert f"{one['audio']}: {one['answer']}\n" in printed
        assert other["report"] in printed
        ours, theirs = (soundfile.read(row["agent"])[0] for row in (one, other))
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "`predict.audio` must name at least one file, but is empty"),
        ({"audio": ["a.wav"], "prompts": ["hi"]}, "`predict.prompts` is not for duplex models"),
        ({"audio": ["a.wav"], "begin": ["a.wav"]}, "`predict.begin` is not for duplex models"),
        ({"audio": ["a.wav"], "generation": {"temprature": 1}}, "generation.temprature"),
        ({"audio": ["a.wav"], "generation": {"top_p": 2}}, "generation.top_p"),
    ],
    ids=str,
)
def test_requests_that_do_not_fit_are_refused(
    model: Any, tmp_path: Path, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        answers(model, tmp_path / "out", **request_)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_is_no_audio_is_named(model: Any, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no audio")
    for name, message in (("missing.wav", "does not exist"), ("text.wav", "read as audio")):
        with pytest.raises(DataError, match=f"{name}.*{message}"):
            answers(model, tmp_path / "out", audio=[str(tmp_path / name)])


def test_no_file_is_written_over(model: Any, wavs: list[str], tmp_path: Path) -> None:
    (tmp_path / "002.png").write_text("mine")
    with pytest.raises(ConfigError, match=r"`predict.output_dir` must hold no '002.png'"):
        answers(model, tmp_path, audio=wavs)
    assert (tmp_path / "002.png").read_text() == "mine"
    assert not (tmp_path / "001.png").exists()


# -- pieces -------------------------------------------------------------------------------------


def test_turns_are_told_with_their_times() -> None:
    from whalesong.duplex.use import timed

    assert timed(Turn(2.4, 3.6, "seven")) == "[2.40 - 3.60] seven"
    assert timed(Turn(2.4, None, "sev")) == "[2.40 - ] sev"


def test_the_shorter_channel_is_silent_at_its_end() -> None:
    from whalesong.duplex.use import stereo

    mixed = stereo(torch.ones(3), torch.full((5,), 2.0))
    assert mixed.tolist() == [[1, 1, 1, 0, 0], [2, 2, 2, 2, 2]]


@pytest.mark.parametrize("length", [1, 7, 100, 101, 5000])
def test_an_envelope_holds_every_peak(length: int) -> None:
    from whalesong.duplex.picture import envelope

    wave = torch.randn(length, generator=torch.Generator().manual_seed(length))
    low, high = envelope(wave, 100)
    assert len(low) == len(high) <= 100
    assert (low.min(), high.max()) == (wave.min(), wave.max())


@pytest.mark.parametrize("samples", [0, 1, 40000])
def test_a_picture_is_drawn_of_anything(tmp_path: Path, samples: int) -> None:
    from whalesong.duplex.picture import draw_conversation

    wave = torch.zeros(samples)
    wave[: samples // 2] = torch.nan
    turns = [Turn(0.0, 0.5, "costs $5 or $6 " * 20), Turn(0.5, 0.5, ""), Turn(1.0, None, "x")]
    path = tmp_path / "new" / "talk.png"
    draw_conversation(
        wave, torch.ones(9), turns=turns, sample_rates=(16000, RATE), path=path, title="$a " * 99
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir()] == ["talk.png"]
