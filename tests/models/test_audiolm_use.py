"""Using AudioLM: go on from audio, fill in, restyle, answer requests, and log continuations."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from whalesong.core.config.job import PredictConfig
from whalesong.core.errors import ConfigError, DataError
from whalesong.data.datamodule import build_loader
from whalesong.models.audiolm.config import AudioLMSamples
from whalesong.models.audiolm.use import log_continuations, summary_of

SAMPLES = 320
"""Of a frame."""

TEMPO = {"id": "tempo", "type": "number", "config": {"min_val": 50, "max_val": 150}}


def make_sure(model: Any) -> Any:
    model.model.lm.ar.heads.weight.data *= 10
    return model


@pytest.fixture(scope="module")
def model(build_audiolm: Callable[..., Any]) -> Any:
    return make_sure(build_audiolm())


@pytest.fixture(scope="module")
def guided(build_audiolm: Callable[..., Any]) -> Any:
    model = make_sure(build_audiolm(conditioning={"configs": [TEMPO], "cond_dim": 8}))
    for name, weight in model.model.lm.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


@pytest.fixture(scope="module")
def wavs(tones: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wavs")
    for number, tone in enumerate(tones[:3]):
        soundfile.write(folder / f"{number}.wav", tone[: 10 * SAMPLES + 100 * number], 16000)
    return [str(folder / f"{number}.wav") for number in range(3)]


def clips(*lens: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(32, (3, length), generator=generator) for length in lens]


# -- in Python ----------------------------------------------------------------------------------


def test_audio_and_its_codes_are_gone_on_from_alike(model: Any, tones: list[np.ndarray]) -> None:
    audio = torch.from_numpy(tones[0])[None, : 9 * SAMPLES + 100]
    codes = model.model.pretransform.encode(audio[None, :, : 9 * SAMPLES])[0][0]
    by_audio = model.generate_audio([audio], seconds=0.2, seeds=0)
    by_codes = model.generate_audio([codes], seconds=0.2, seeds=0)
    assert torch.equal(by_audio.codes[0], by_codes.codes[0])
    assert torch.equal(by_audio.codes[0][:, :9], codes)
    assert torch.equal(by_audio.audio[0], by_codes.audio[0])


def test_what_lies_between_depends_on_both_sides(model: Any) -> None:
    left, right, other = clips(6, 5, 5)
    settings = {"seeds": 0, "temperature": 0.0}
    made = model.infill_audio([left], [right], 0.2, **settings)
    assert made.num_new == [10]
    assert torch.equal(made.codes[0][:, :6], left)
    assert torch.equal(made.codes[0][:, 16:], right)
    assert made.audio[0].shape == (1, 21 * SAMPLES)
    elsewhere = model.infill_audio([left], [other], 0.2, **settings)
    assert not torch.equal(elsewhere.codes[0][:, 6:16], made.codes[0][:, 6:16])
    without = model.infill_audio([None], [right], 0.2, return_prompt=False, **settings)
    assert without.codes[0].shape == (3, 10)
    assert without.audio[0].shape == (1, 10 * SAMPLES)


def test_a_gap_is_filled_to_its_end_and_at_once(model: Any) -> None:
    left, right = clips(6, 5)
    bias = model.model.lm.ar.logit_bias
    bias[0, -1] += 50
    try:
        settings = {"seeds": 0, "temperature": 0.0}
        made = model.infill_audio([left], [right], 0.2, **settings)
        chunked = model.infill_audio([left], [right], 0.2, nar_chunk_seconds=0.04, **settings)
        assert model.generate_audio([left], seconds=0.2, **settings).num_new == [0]
    finally:
        bias[0, -1] -= 50
    assert made.num_new == [10]
    assert torch.equal(chunked.codes[0], made.codes[0])


def test_style_keeps_the_first_quantizers(model: Any) -> None:
    content, style, other = clips(8, 6, 6)
    made = model.transfer_style([content], [style])
    assert made.codes[0].shape == (3, 8)
    assert made.audio[0].shape == (1, 8 * SAMPLES)
    assert torch.equal(made.codes[0][0], content[0])
    changed = torch.cat((content[:1], 31 - content[1:]))
    assert torch.equal(model.transfer_style([changed], [style]).codes[0], made.codes[0])
    assert not torch.equal(model.transfer_style([content], [other]).codes[0], made.codes[0])
    drawn = [model.transfer_style([content], [style], nar_temperature=2.0, seeds=0) for _ in "ab"]
    assert torch.equal(drawn[0].codes[0], drawn[1].codes[0])
    assert not torch.equal(drawn[0].codes[0], made.codes[0])


def test_style_needs_a_second_half(build_audiolm: Callable[..., Any]) -> None:
    content, style = clips(8, 6)
    with pytest.raises(ValueError, match="needs a second half .* `ar_quantizers` is all 3"):
        build_audiolm(ar_quantizers=3).transfer_style([content], [style])


def test_guidance_leads_to_the_condition(guided: Any) -> None:
    begin = clips(6)
    settings = {"seconds": 0.2, "seeds": 0, "temperature": 0.0}

    def made(**changes: Any) -> Tensor:
        return guided.generate_audio(begin, **{**settings, **changes}).codes[0]

    fast, slow = [{"tempo": 140.0}], [{"tempo": 60.0}]
    plain = made(conditioning=fast)
    assert not torch.equal(plain, made(conditioning=slow))
    assert torch.equal(plain, made(conditioning=fast, guidance_scale=1.0))
    assert torch.equal(made(), made(conditioning=fast, guidance_scale=0.0))
    assert torch.equal(made(), made(conditioning=[{"tempo": None}], guidance_scale=3.0))
    assert not torch.equal(plain, made(conditioning=fast, guidance_scale=3.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"begin": [None]}, "`begin` of row 0 must have at least one frame"),
        ({"begin": [torch.zeros(1, 100)]}, "`begin` of row 0 must have at least one frame"),
        ({"begin": [torch.zeros(2, 900)]}, "`begin`: The clip of row 0 must be audio"),
        ({"begin": [torch.full((1, 900), torch.nan)]}, "audio without NaN and infinity"),
        ({"begin": [torch.full((3, 5), 32)]}, "codes from 0 to 31, but has 32 to 32"),
        ({"begin": clips(5), "seeds": [1, 2]}, "`seeds` must have one entry for each of 1 rows"),
        ({"begin": clips(5), "seconds": 0.0}, "`seconds` must be above 0"),
        ({"begin": clips(5), "num_candidates": 0}, "`num_candidates` must be at least 1"),
        ({"begin": clips(5), "temprature": 1}, "temprature"),
    ],
)
def test_wrong_requests_are_refused(model: Any, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate_audio(**{"seconds": 0.1, **arguments})


# -- the predictor ------------------------------------------------------------------------------


def test_a_batch_is_gone_on_from(model: Any, music_shar: Path) -> None:
    config = {"shar_path": str(music_shar), "batch_size": 3, "num_workers": 0}
    batch = next(iter(build_loader(config, model.parts.validation_collator, path="test_ds")))
    predictor = model.parts.predictor
    made = predictor.predict(batch, max_seconds=0.1, seeds=0, stop_on_eos=False)
    assert made["num_new"] == [5, 5, 5]
    rows = predictor.to_dict(batch, made)
    assert [row["id"] for row in rows] == batch["ids"]
    arrangement = model.model.arrangement(batch)
    for number, row in enumerate(rows):
        begin = int(arrangement.begins[number])
        assert torch.equal(
            torch.tensor(row["codes"])[:, :begin], arrangement.codes[number, :, :begin]
        )
        assert len(row["codes"][0]) == begin + 5
        assert row["seed"] == number
        assert row["log_prob"] < 0
    json.dumps(rows)


def test_a_test_set_is_evaluated(model: Any, music_shar: Path) -> None:
    config = {"shar_path": str(music_shar), "batch_size": 5, "num_workers": 0}
    loader = build_loader(config, model.parts.validation_collator, path="test_ds")
    found = model.evaluate(loader, description="test")
    (values,) = found.rows
    assert found.summary == summary_of(values)
    assert "AR top-1" in found.summary
    assert "NAR top-1" in found.summary
    assert {"loss", "ar_loss", "nar_loss", "ar_top10", "nar_top1_q2"} <= set(values)


# -- requests -----------------------------------------------------------------------------------


def answers(model: Any, folder: Path, **request: Any) -> list[dict[str, Any]]:
    generation = {"seed": 3, "stop_on_eos": False, "max_seconds": 0.2}
    generation |= request.pop("generation", {})
    wanted = PredictConfig(**request, generation=generation, output_dir=str(folder))
    rows = list(model.answer(wanted))
    json.dumps(rows)
    return rows


def test_recordings_are_gone_on_from(model: Any, wavs: list[str], tmp_path: Path) -> None:
    rows = answers(model, tmp_path, begin=wavs, generation={"num_candidates": 3})
    assert [row["begin"] for row in rows] == wavs
    assert [row["wav"] for row in rows] == [str(tmp_path / f"00{n}.wav") for n in (1, 2, 3)]
    for row in rows:
        audio, rate = soundfile.read(row["wav"])
        assert (rate, len(audio)) == (16000, 20 * SAMPLES)
        assert row["seed"] == row["seeds"][row["scores"].index(max(row["scores"]))]
        assert len(row["seeds"]) == 3
    alone = answers(
        model, tmp_path / "alone", begin=wavs[1:2], generation={"seed": rows[1]["seed"]}
    )
    assert Path(alone[0]["wav"]).read_bytes() == Path(rows[1]["wav"]).read_bytes()


def test_a_stream_writes_the_same(
    model: Any, wavs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    chunk = {"nar_chunk_seconds": 0.1}
    whole = answers(model, tmp_path / "whole", begin=wavs[:2], generation=chunk)
    streamed = answers(
        model, tmp_path / "stream", begin=wavs[:2], generation={**chunk, "stream": True}
    )
    assert "first audio after" in capsys.readouterr().out
    for one, other in zip(whole, streamed, strict=True):
        ours, theirs = (soundfile.read(row["wav"])[0] for row in (one, other))
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        assert other["seed"] == one["seed"]


@pytest.mark.parametrize("stream", [True, False])
def test_what_ends_at_once_is_empty(
    model: Any, wavs: list[str], tmp_path: Path, stream: bool
) -> None:
    generation = {"stop_on_eos": True, "return_prompt": False, "stream": stream}
    bias = model.model.lm.ar.logit_bias
    bias[0, -1] += 100
    try:
        rows = answers(model, tmp_path, begin=wavs[:2], generation=generation)
    finally:
        bias[0, -1] -= 100
    assert [len(soundfile.read(row["wav"])[0]) for row in rows] == [0, 0]
    assert all(stream or row["scores"] == [None] for row in rows)


def test_gaps_are_filled(model: Any, wavs: list[str], tmp_path: Path) -> None:
    (row,) = answers(model, tmp_path, begin=wavs[:1], end=wavs[1:2])
    assert (row["begin"], row["end"]) == (wavs[0], wavs[1])
    assert len(soundfile.read(row["wav"])[0]) == 30 * SAMPLES


def test_recordings_are_restyled(model: Any, wavs: list[str], tmp_path: Path) -> None:
    rows = answers(model, tmp_path, audio=wavs[:2], begin=wavs[2:])
    assert [(row["audio"], row["begin"]) for row in rows] == [
        (wavs[0], wavs[2]),
        (wavs[1], wavs[2]),
    ]
    for row in rows:
        assert len(soundfile.read(row["wav"])[0]) == 10 * SAMPLES


def test_conditions_are_heard(guided: Any, wavs: list[str], tmp_path: Path) -> None:
    conditions = [{"tempo": 60.0}, {"tempo": 140.0}]
    rows = answers(
        guided, tmp_path, begin=wavs[:1], conditions=conditions, generation={"temperature": 0}
    )
    assert [row["conditions"] for row in rows] == conditions
    first, second = (soundfile.read(row["wav"])[0] for row in rows)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"audio": 1}, "`predict.begin` must name the style of `predict.audio`, but is empty"),
        ({"audio": 1, "begin": 1, "end": 1}, "`predict.end` must be empty where `predict.audio`"),
        ({"end": 1, "generation": {"stream": True}}, "must have nothing to lead to"),
        (
            {"begin": 1, "generation": {"stream": True, "num_candidates": 2}},
            "must be 1 in a stream",
        ),
        ({"begin": 1, "generation": {"temprature": 2}}, "temprature"),
        ({"begin": 1, "prompts": ["a"]}, "`predict.prompts` needs a model with a condition"),
        ({"begin": 1, "conditions": [{"style": 1}]}, "names 'style', but the model's conditions"),
        ({"conditions": [{}]}, "`begin` of row 0 must have at least one frame"),
    ],
)
def test_requests_that_do_not_fit_are_refused(
    model: Any, wavs: list[str], tmp_path: Path, request_: dict, message: str
) -> None:
    files = {name: wavs[:value] for name, value in request_.items() if isinstance(value, int)}
    with pytest.raises(ConfigError, match=message):
        answers(model, tmp_path, **{**request_, **files})


# -- samples ------------------------------------------------------------------------------------


def test_continuations_are_logged(model: Any, wavs: list[str], tmp_path: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path))
    model._trainer = SimpleNamespace(loggers=[logger], global_step=7)
    try:
        log_continuations(model, AudioLMSamples(begin=wavs[:2], seed=1))
    finally:
        model._trainer = None
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir, size_guidance={"audio": 0}).Reload()
    tags = [f"continuation_{number}/audio" for number in (1, 2)]
    assert events.Tags()["audio"] == tags
    assert [event.step for event in events.Audio(tags[0])] == [7]


def test_samples_that_do_not_exist_are_refused_before_training(build_audiolm: Any) -> None:
    model = build_audiolm(samples={"begin": ["nowhere.wav"]})
    with pytest.raises(DataError, match="`model.samples.begin`: the audio file 'nowhere.wav' does"):
        model.on_fit_start()
