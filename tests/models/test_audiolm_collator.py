"""Batches of AudioLM: what is prompt, what is target, where it ends, and what is refused."""

import io
import json
from collections import Counter
from collections.abc import Callable
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lhotse import Features, Recording
from lhotse.array import Array, TemporalArray
from lhotse.cut import Cut
from lhotse.utils import fastcopy

from whalesong.core.errors import DataError
from whalesong.core.seeding import seeded
from whalesong.data.codes import CodecInfo
from whalesong.data.conversation import make_conversation
from whalesong.data.datamodule import build_loader
from whalesong.data.shar import write_shar
from whalesong.models.audiolm.arrangement import arrange
from whalesong.models.audiolm.collator import AudioLMCollator, PromptedClip
from whalesong.models.audiolm.config import PromptSettings
from whalesong.sound.codec_info import describe_codec
from whalesong.sound.tokenize import read_pretransform, tokenize_shar

CODEC = CodecInfo("Tiny", "0123456789abcdef", 8000, 1, 2, 100, 80)
MODES = ("prefix", "infill", "none", "segment", "neighbour")
EVERY_MODE = dict.fromkeys(MODES, 1.0)


def recording(seconds: float, *, id: str = "clip") -> Recording:
    data = io.BytesIO()
    samples = np.linspace(0, 0.5, round(seconds * 8000))
    soundfile.write(data, samples, 8000, format="WAV", subtype="FLOAT")
    return Recording.from_bytes(data.getvalue(), recording_id=id)


def frames(count: int, first: int = 0) -> np.ndarray:
    """Codes whose frame f is (first + f) % 100 in both codebooks."""
    return np.tile((first + np.arange(count)) % 100, (2, 1)).astype(np.uint8)


def array_of(codes: np.ndarray) -> TemporalArray:
    data = io.BytesIO()
    np.save(data, codes)
    array = Array("memory_npy", "", data.getvalue(), list(codes.shape))
    return TemporalArray(array, temporal_dim=1, frame_shift=0.01, start=0)


def clip(seconds: float = 0.5, *, id: str = "clip", with_codes: bool = True, **custom: Any) -> Cut:
    cut = recording(seconds, id=id).to_cut()
    cut.id = id
    codes = {"codes": array_of(frames(round(seconds * 100)))} if with_codes else {}
    cut.custom = {**codes, **custom}
    return cut


def collator(modes: Any = "prefix", **settings: Any) -> AudioLMCollator:
    modes = {modes: 1.0} if isinstance(modes, str) else modes
    keys = {key: settings.pop(key) for key in ("split", "segment_seconds") if key in settings}
    prompt = PromptSettings(modes=modes, **keys)
    return AudioLMCollator(CODEC, prompt=prompt, **{"training": False, **settings})


def batch_of(collate: AudioLMCollator, *cuts: Cut) -> dict[str, Any]:
    return collate([collate.load(cut) for cut in cuts])


def draws(collate: AudioLMCollator, cut: Cut, count: int = 60) -> list[PromptedClip]:
    loaded = []
    for seed in range(count):
        with seeded(seed):
            loaded.append(collate.load(cut))
    return loaded


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_every_frame_is_prompt_or_target(mode: str, training: bool) -> None:
    collate = collator(mode, split=(0.2, 0.7), training=training, max_frames=40)
    cuts = [
        clip(seconds, id=str(seconds), prompt=recording(0.3)) for seconds in (0.25, 0.41, 0.7, 0.02)
    ]
    cuts = cuts if mode in ("none", "neighbour") else cuts[:3]
    for seed in range(20):
        with seeded(seed):
            batch = batch_of(collate, *cuts)
        begins, ends = batch["target_span"].unbind(1)
        assert ((begins >= 0) & (begins < ends) & (ends <= batch["codes_lens"])).all()
        if "prompt_audio" in batch:
            lens = batch["prompt_audio_lens"] // CODEC.downsampling_ratio
            codes = torch.full((len(cuts), 2, int(lens.max())), 7)
            batch |= {"prompt_codes": codes, "prompt_codes_lens": lens}
        arrangement = arrange(batch)
        prompt, target = arrangement.prompt_mask, arrangement.target_mask
        assert (prompt ^ target).equal(arrangement.mask)
        assert target.any(1).all() and prompt.any(1).all() == (mode != "none")
        assert (arrangement.scored_mask <= target).all() and arrangement.scored_mask.any(1).all()


def test_the_prompt_is_the_share_of_the_clip_rounded_down() -> None:
    for count in range(3, 60):
        target = collator(split=0.4).load(clip(count / 100)).target
        assert target == (floor(0.4 * count + 1e-6), count)


def test_a_range_is_drawn_from_in_training_and_its_middle_taken_else() -> None:
    settings = {"split": (0.2, 0.6)}
    lengths = {drawn.target[0] for drawn in draws(collator(training=True, **settings), clip(1.0))}
    assert len(lengths) > 20 and min(lengths) >= 20 and max(lengths) <= 60
    assert collator(**settings).load(clip(1.0)).target == (40, 100)


def test_modes_are_drawn_by_their_weights_and_the_heaviest_taken_else() -> None:
    modes = {"none": 3.0, "prefix": 1.0, "infill": 0.0}
    drawn = draws(collator(modes, training=True), clip(), count=400)
    starts = Counter(row.target[0] for row in drawn)
    assert set(starts) == {0, 20}
    assert 250 < starts[0] < 350
    assert collator(modes).load(clip()).target == (0, 50)


def test_the_same_seed_draws_the_same() -> None:
    collate = collator(EVERY_MODE, split=(0.1, 0.9), training=True, max_frames=40)
    cut = clip(0.9, prompt=array_of(frames(60)))
    rows = [repr(row) for row in draws(collate, cut)]
    assert rows == [repr(row) for row in draws(collate, cut)]
    assert len(set(rows)) > 40


def test_the_target_to_fill_in_is_anywhere_in_training_and_in_the_middle_else() -> None:
    drawn = draws(collator("infill", training=True), clip(), count=200)
    assert {end - begin for begin, end in (row.target for row in drawn)} == {30}
    assert {row.target[0] for row in drawn} == set(range(21))
    assert all(row.closes == (row.target[1] == 50) for row in drawn)
    assert collator("infill").load(clip()).target == (10, 40)


def test_a_copied_segment_lies_in_the_clip_and_is_not_scored() -> None:
    settings = {"split": 0.5, "segment_seconds": 0.1}
    drawn = draws(collator("segment", training=True, **settings), clip(), count=200)
    assert {end - begin for begin, end in (row.copied for row in drawn)} == {10}
    assert {row.copied[0] for row in drawn} == set(range(41))
    collate = collator("segment", **settings)
    assert collate.load(clip(0.14)).copied == (0, 7)
    arrangement = arrange(batch_of(collate, clip()))
    assert arrangement.lens.tolist() == [60] and arrangement.prompt_lens.tolist() == [10]
    assert arrangement.codes[0, 0].tolist() == [*range(10), *range(50)]
    assert arrangement.scored_mask[0].nonzero().flatten().tolist() == [*range(20, 60)]


@pytest.mark.parametrize("with_codes", [False, True])
def test_a_neighbour_is_a_piece_of_the_prompt(with_codes: bool) -> None:
    prompt = array_of(frames(80, first=5)) if with_codes else recording(0.8)
    cut = clip(prompt=prompt)
    settings = {"segment_seconds": 0.2}
    starts = set()
    for drawn in draws(collator("neighbour", training=True, **settings), cut):
        piece = drawn.prompt.codes if with_codes else drawn.prompt.audio
        assert piece.shape == ((2, 20) if with_codes else (1, 1600))
        starts.add(float(piece[0, 0]))
        steps = piece[:, 1:] - piece[:, :-1]
        torch.testing.assert_close(steps, torch.full_like(steps, 1 if with_codes else 0.5 / 6399))
    assert len(starts) > 20
    loaded = collator("neighbour", **settings).load(cut)
    first = loaded.prompt.codes if with_codes else loaded.prompt.audio
    assert first[0, 0] == (5 if with_codes else 0)
    assert loaded.target == (0, 50)
    short = array_of(frames(3)) if with_codes else recording(0.03)
    assert batch_of(collator("neighbour"), clip(prompt=short))[
        "prompt_codes_lens" if with_codes else "prompt_audio_lens"
    ].tolist() == [3 if with_codes else 240]


def test_rows_without_a_neighbour_have_one_of_no_frames() -> None:
    collate = collator({"neighbour": 1.0, "prefix": 1.0}, training=True)
    with seeded(3):
        loaded = [collate.load(clip(id=str(n), prompt=array_of(frames(9)))) for n in range(8)]
    batch = collate(loaded)
    has_prompt = [row.prompt is not None for row in loaded]
    assert 0 < sum(has_prompt) < 8
    assert batch["prompt_codes_lens"].tolist() == [9 * has for has in has_prompt]
    assert batch["target_span"][:, 0].tolist() == [0 if has else 20 for has in has_prompt]
    assert "prompt_codes" not in collate([row for row in loaded if row.prompt is None])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("with_codes", [False, True])
def test_a_row_is_the_same_alone_and_among_others(mode: str, with_codes: bool) -> None:
    collate = collator(mode, condition_keys={"style": "style"}, training=True)
    with seeded(0):
        loaded = [
            collate.load(
                clip(0.1 * n, id=str(n), with_codes=with_codes, style=n, prompt=recording(0.05 * n))
            )
            for n in (3, 5, 4)
        ]
    together = collate(loaded)
    for row, one in enumerate(loaded):
        alone = collate([one])
        assert alone.keys() == together.keys()
        for key, values in alone.items():
            if isinstance(values, list):
                assert together[key][row] == values[0]
            elif values.dim() == 3:
                width = values.shape[2]
                assert together[key][row, :, :width].equal(values[0])
                assert not together[key][row, :, width:].any()
            else:
                assert together[key][row].equal(values[0])


@pytest.mark.parametrize(
    ("cut", "closes"),
    [
        (clip(), True),
        (clip().truncate(offset=0.1), True),
        (clip().truncate(duration=0.3), False),
        (clip().truncate(duration=0.497), True),
        (clip().truncate(duration=0.494), False),
        (clip(0.505), True),
        (clip(0.8), False),
        (fastcopy(clip(), recording=None), True),
        (fastcopy(clip().truncate(duration=0.3), recording=None), False),
        (clip(with_codes=False).truncate(duration=0.3), False),
        (clip(with_codes=False), True),
        (clip(with_codes=False).pad(0.6), False),
    ],
)
def test_the_end_is_learned_where_recording_or_codes_end(cut: Cut, closes: bool) -> None:
    for mode in ("prefix", "none", "segment"):
        assert collator(mode, max_frames=51).load(cut).closes is closes
        assert collator(mode, max_frames=51, predict_eos="always").load(cut).closes
        assert not collator(mode, max_frames=51, predict_eos="never").load(cut).closes
    assert not collator("infill", predict_eos="always").load(cut).closes


def test_the_window_that_ends_the_clip_closes() -> None:
    drawn = draws(collator(max_frames=45, training=True), clip(), count=100)
    ends = Counter((int(row.clip.codes[0, -1]), row.closes) for row in drawn)
    assert {end: closes for end, closes in ends} == {
        **dict.fromkeys(range(44, 49), False), 49: True,
    }  # fmt: skip


@pytest.mark.parametrize(("offset", "closes"), [(0.2, False), (0.5, True), (None, True)])
def test_a_segment_of_a_file_closes_where_the_file_ends(
    tmp_path: Path, offset: float | None, closes: bool
) -> None:
    soundfile.write(tmp_path / "a.wav", np.linspace(0, 0.5, 8000), 8000)
    line = {"audio_filepath": "a.wav", "duration": 0.5 if offset else 1.0, "text": "a"}
    line |= {} if offset is None else {"offset": offset}
    (tmp_path / "a.json").write_text(json.dumps(line))
    section = {"input_cfg": [{"type": "nemo", "manifest_filepath": str(tmp_path / "a.json")}]}
    loader = build_loader({**section, "batch_size": 1}, collator(), path="data.train_ds")
    (batch,) = loader
    assert batch["audio"].shape[2] == (4000 if offset else 8000)
    assert batch["closes"].tolist() == [closes]


def test_no_clips_give_one_row_of_no_frames() -> None:
    batch = collator(EVERY_MODE, condition_keys={"style": "style"}, with_prompts=True)([])
    assert batch["codes"].shape == (1, 2, 0) and batch["codes_lens"].tolist() == [0]
    assert batch["target_span"].tolist() == batch["copied_span"].tolist() == [[0, 0]]
    assert batch["closes"].tolist() == [False] and batch["ids"] == []
    assert batch["metadata"] == [{"style": None}] and batch["prompt"] is True
    assert not arrange(batch).scored_mask.any()


def test_tokens_are_frames_within_the_window() -> None:
    assert collator().measure_tokens(clip(0.5)) == 50
    assert collator(max_frames=30, training=True).measure_tokens(clip(0.5)) == 30


def test_conditions_come_with_their_rows() -> None:
    keys = {"style": "style", "from": "seconds_start", "of": "seconds_total"}
    collate = collator(condition_keys=keys, audio_prompt_ids=["voice"], prompt_seconds=0.1)
    (row,) = batch_of(collate, clip(style="jazz"))["metadata"]
    assert row.pop("voice").shape == (2, 10)
    assert row == {"style": "jazz", "from": 0.0, "of": 0.5}


@pytest.mark.parametrize(
    ("cut", "settings", "message"),
    [
        (clip(0.02), {}, "cut clip: must have a prompt of at least 1 frame, but 40% of 2 frames"),
        (clip(0.02), {"modes": "infill"}, "cut clip: must have a prompt of at least 1 frame"),
        (clip(), {"modes": "neighbour"}, "cut clip: .* as its attribute 'prompt' .* has none"),
        (clip(prompt="x.wav"), {"modes": "neighbour"}, "cut clip: .* 'prompt' .* but has 'x.wav'"),
        (clip(prompt=array_of(frames(5)[:1])), {"modes": "neighbour"}, r"must be \(2, frames\)"),
        (clip(prompt=array_of(frames(0))), {"modes": "neighbour"}, r"cut clip: codes must be"),
        (clip(prompt=array_of(frames(5) + 99)), {"modes": "neighbour"}, "from 0 to 99"),
        (clip(codes=array_of(frames(50) + 60)), {}, "cut clip: codes must be from 0 to 99"),
        (clip(), {"codebook_sizes": [50, 49]}, "codes of codebook 2 must be from 0 to 48"),
        (
            make_conversation("clip", [("user", clip())]),
            {},
            "'clip' must be a single clip for AudioLM",
        ),
        (clip(style=None), {"condition_keys": {"style": "style"}}, "must have the attribute"),
    ],
)
def test_clips_that_cannot_be_trained_on_are_named(
    cut: Cut, settings: dict[str, Any], message: str
) -> None:
    for training in (False, True):
        with pytest.raises(DataError, match=message):
            collator(**settings, training=training).load(cut)


def test_batches_of_two_kinds_are_refused() -> None:
    collate = collator("neighbour")
    a, b = clip(id="a", prompt=recording(0.1)), clip(id="b", prompt=array_of(frames(5)))
    with pytest.raises(DataError, match=r"cut a \(its prompt\) has no codes, but cut b \(its"):
        batch_of(collate, a, b)
    with pytest.raises(DataError, match="cut b has no codes, but cut a of the same batch has"):
        batch_of(collator(), clip(id="a"), clip(id="b", with_codes=False))


def test_features_may_be_codes_of_clip_and_prompt() -> None:
    def features(codes: np.ndarray) -> Features:
        data = io.BytesIO()
        np.save(data, codes.T.astype(np.float32))
        seconds = codes.shape[1] / 100
        return Features(
            "encodec", codes.shape[1], 2, 0.01, 8000, 0, seconds, "memory_npy", "", data.getvalue()
        )

    cut = clip(with_codes=False, prompt=features(frames(9, first=30)))
    cut.features = features(frames(50))
    batch = batch_of(collator("neighbour"), cut)
    assert batch["codes"][0].equal(torch.from_numpy(frames(50)).long())
    assert batch["prompt_codes"][0].equal(torch.from_numpy(frames(9, first=30)).long())


@pytest.mark.parametrize("with_codes", [False, True])
def test_prompts_are_a_field_of_shar(tmp_path: Path, with_codes: bool) -> None:
    prompt = array_of(frames(50, first=3)) if with_codes else recording(0.5)
    cuts = [clip(id=str(number), with_codes=False, prompt=prompt) for number in range(3)]
    fields = {"recording": "flac", "prompt": "numpy" if with_codes else "flac"}
    write_shar(cuts, tmp_path / "shar", fields=fields, shard_size=2)
    section = {"shar_path": str(tmp_path / "shar"), "batch_size": 3, "shuffle": False}
    collate = collator("neighbour", segment_seconds=0.2)
    (batch,) = build_loader(section, collate, path="data.train_ds")
    if with_codes:
        assert batch["prompt_codes"].equal(torch.from_numpy(frames(20, first=3)).expand(3, 2, 20))
    else:
        expected = torch.from_numpy(recording(0.5).load_audio()[:, :1600]).expand(3, 1, 1600)
        torch.testing.assert_close(batch["prompt_audio"], expected, atol=1e-4, rtol=0)
    assert batch["audio_lens"].tolist() == [4000] * 3


def build(shar: Path, codec: CodecInfo, **settings: Any) -> list[dict[str, Any]]:
    modes = {"prefix": 1.0, "infill": 1.0, "segment": 1.0}
    prompt = PromptSettings(modes=modes, split=(0.3, 0.5), segment_seconds=0.1)
    collate = AudioLMCollator(codec, prompt=prompt, training=True, max_frames=30, **settings)
    section = {"shar_path": str(shar), "batch_size": 5, "seed": 1, "num_workers": 0}
    return list(build_loader(section, collate, path="data.train_ds"))


def test_shar_is_read_as_codes_or_audio_with_the_same_draws(
    mel_rvq: Path, music_shar: Path, tmp_path: Path, same: Callable[[Any, Any], bool]
) -> None:
    from whalesong.modules.codec.files import load_codec

    model = load_codec(mel_rvq)
    codec = describe_codec(model)
    coded = tokenize_shar(music_shar, read_pretransform(mel_rvq), output=tmp_path / "codes").folder
    batches, on_the_fly = build(coded, codec), build(music_shar, codec)
    assert [batch["codes"].shape[:2] for batch in batches] == [(5, 3), (5, 3), (2, 3)]
    assert same(batches, build(coded, codec))
    for batch, sounding in zip(batches, on_the_fly, strict=True):
        codes, lens = model.encode(sounding.pop("audio"), sounding.pop("audio_lens"))
        assert lens.equal(batch["codes_lens"])
        sounding |= {"codes": codes, "codes_lens": lens}
        prompts, others = arrange(batch), arrange(sounding)
        assert prompts.prompt_mask.equal(others.prompt_mask)
        assert prompts.scored_mask.equal(others.scored_mask)
        assert prompts.closes.equal(others.closes)


@pytest.fixture
def same() -> Callable[[Any, Any], bool]:
    """Whether two nested values are equal, tensors included."""

    def compare(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor):
            return a.equal(b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(compare(a[key], b[key]) for key in a)
        if isinstance(a, list):
            return len(a) == len(b) and all(compare(x, y) for x, y in zip(a, b, strict=True))
        return bool(a == b)

    return compare
