"""Two channels of a conversation to batches on one grid of frames."""

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, Recording, SupervisionSegment
from lhotse.augmentation import get_or_create_resampler

from whalesong.core.errors import ConfigError, DataError
from whalesong.data.config import DataConfig
from whalesong.data.datamodule import LanguageDataModule, fingerprint
from whalesong.data.text_channel import TextIds
from whalesong.data.turns import Turn
from whalesong.duplex.collator import DuplexCollator
from whalesong.modules.frames import FrameCounter, Strided

COUNTER = FrameCounter(Strided(512, 160, 352), (Strided(3, 2, 3),) * 3, 16000)
CODEC = SimpleNamespace(sample_rate=22050, downsampling_ratio=1764)
ROLES = {"input_roles": ["user"], "output_roles": ["agent"]}


class Letters:
    """One token a letter, from 10 on."""

    bos, eos, pad = 1, 2, 0

    def text_to_ids(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") + 10 for letter in text if letter != " "]


class Words(Letters):
    """One token a word: its length and 10."""

    def text_to_ids(self, text: str) -> list[int]:
        return [len(word) + 10 for word in text.split()]


def make_collator(**changes: Any) -> DuplexCollator:
    arguments = {
        "tokenizer": Letters(), "ids": TextIds(1, 2, 0), "counter": COUNTER, "codec": CODEC,
        **ROLES, "with_prompts": True, **changes,
    }  # fmt: skip
    return DuplexCollator(**arguments)


def recording(seconds: float, sample_rate: int, channels: int = 1) -> Recording:
    samples = np.random.default_rng(0).standard_normal((round(seconds * sample_rate), channels))
    data = io.BytesIO()
    soundfile.write(data, 0.1 * samples, sample_rate, format="WAV", subtype="FLOAT")
    return Recording.from_bytes(data.getvalue(), recording_id=f"{seconds}-{sample_rate}")


def talk(
    source: Recording | None = None, target: Recording | None = None, *, id: str = "talk"
) -> Any:
    cut = (source or recording(2.0, 16000)).to_cut()
    cut.id, cut.target_audio = id, target or recording(2.0, 22050)
    cut.supervisions = [
        SupervisionSegment("u", id, 0.1, 0.8, text="lights on", speaker="user"),
        SupervisionSegment("a", id, 1.04, 0.72, text="okay", speaker="agent"),
    ]
    return cut


def load_batch(*cuts: Any, **changes: Any) -> dict[str, Any]:
    collator = make_collator(**changes)
    return collator([collator.load(cut) for cut in cuts])


def test_a_batch_holds_both_sides() -> None:
    longer = talk(recording(2.4, 16000), recording(2.4, 22050), id="longer")
    longer.supervisions.append(
        SupervisionSegment("b", "longer", 2.0, 1.0, text="yes", speaker="agent")
    )
    batch = load_batch(talk(), longer)
    assert batch["ids"] == ["talk", "longer"]
    assert batch["source_audio"].shape == (2, 38400)
    assert batch["source_audio_lens"].tolist() == [32000, 38400]
    assert batch["target_audio"].shape == (2, 52920)
    assert batch["target_audio_lens"].tolist() == [44100, 52920]
    assert batch["target_token_lens"].tolist() == [25, 30]
    okay = [1, 24, 20, 10, 34, 0, 0, 0, 0, 2]
    assert batch["target_tokens"].tolist() == [
        [0] * 13 + okay + [0] * 7,
        [0] * 13 + okay + [0, 0, 1, 34, 14, 28, 0],
    ]
    events = batch["target_events"]
    assert events.shape == (2, 30) and events.nonzero().tolist() == [[0, 13], [0, 22],
        [1, 13], [1, 22], [1, 25]]  # fmt: skip
    assert batch["source_texts"] == ["lights on"] * 2
    assert batch["target_texts"] == ["okay", "okay yes"]
    assert batch["source_turns"][0] == [Turn(0.1, 0.9, "lights on")]
    assert batch["target_turns"][1][1] == Turn(2.0, 3.0, "yes")
    assert batch["prompt"].keys() == {"source_audio", "source_audio_lens"}
    assert "prompt" not in load_batch(talk(), with_prompts=False)


def test_no_cuts_are_one_row_without_frames() -> None:
    batch = load_batch()
    assert batch["ids"] == batch["target_turns"] == []
    for name in ("source_audio", "target_audio", "target_tokens", "target_events"):
        assert len(batch[name]) == 1 and not batch[name].any()
    for name in ("source_audio_lens", "target_audio_lens", "target_token_lens"):
        assert batch[name].tolist() == [0]


@pytest.mark.parametrize(("source_rate", "target_rate"), [(8000, 16000), (22050, 48000)])
def test_each_side_is_resampled_once(source_rate: int, target_rate: int) -> None:
    source, target = recording(2.0, source_rate), recording(2.0, target_rate)
    batch = load_batch(talk(source, target))
    for name, own, rate in (("source", source, 16000), ("target", target, 22050)):
        resample = get_or_create_resampler(own.sampling_rate, rate)
        once = resample(torch.from_numpy(own.load_audio()))
        assert torch.equal(batch[f"{name}_audio"], once)


def test_a_part_of_a_conversation_has_the_same_part_of_both_sides() -> None:
    source, target = recording(4.0, 16000), recording(4.0, 22050)
    cut = talk(source, target)
    cut.supervisions[1].start = 2.04
    cut.supervisions[0].start = 1.2
    part = cut.truncate(offset=1.0, duration=2.0)
    batch = load_batch(part)
    expected = torch.from_numpy(source.load_audio(offset=1.0, duration=2.0))
    assert torch.equal(batch["source_audio"], expected)
    expected = torch.from_numpy(target.load_audio(offset=1.0, duration=2.0))
    assert torch.equal(batch["target_audio"], expected)
    assert batch["target_events"][0].nonzero()[:, 0].tolist() == [13, 22]


def test_frames_are_those_that_all_channels_have() -> None:
    for seconds in (1.99, 2.0, 2.01, 2.03, 2.05, 2.07):
        batch = load_batch(talk(recording(seconds, 16000), recording(seconds, 22050)))
        frames = int(batch["target_token_lens"])
        samples = [round(seconds * rate) for rate in (16000, 22050)]
        assert frames <= min(COUNTER(samples[0]), -(-samples[1] // 1764))
        assert abs(frames - seconds / 0.08) <= 0.5


def test_an_unfinished_turn_has_no_end() -> None:
    cut = talk()
    cut.supervisions[1].duration = 1.5
    assert load_batch(cut)["target_events"][0].nonzero().tolist() == [[13]]


def without_target(cut: Any) -> None:
    cut.custom = None


def with_roles(cut: Any) -> None:
    cut.supervisions[1].speaker = "assistant"


def with_shorter_target(cut: Any) -> None:
    cut.target_audio = recording(1.9, 22050)


def with_two_channels(cut: Any) -> None:
    cut.target_audio = recording(2.0, 22050, channels=2)


def with_late_turn(cut: Any) -> None:
    cut.supervisions[1].start = 2.0


def with_damage(cut: Any) -> None:
    cut.target_audio.sources[0].source = cut.target_audio.sources[0].source[:30]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_target, "must have the agent's recording in `target_audio`, but has none"),
        (with_roles, "of the speaker 'agent', but has those of 'assistant' or 'user'"),
        (with_shorter_target, "must be equally long, but have 2.00 s and 1.90 s"),
        (with_two_channels, "the recording of the agent must have one channel, but has 2"),
        (with_late_turn, "a turn must begin within its 2.00 s, but one begins at 2.00 s"),
        (with_damage, "cannot be decoded"),
    ],
)
def test_what_cannot_be_used_names_the_cut(spoil: Callable[[Any], None], message: str) -> None:
    cut = talk()
    spoil(cut)
    with pytest.raises(DataError, match=f"cut talk: .*{message}"):
        make_collator().load(cut)


def test_mixtures_and_very_short_cuts_are_refused() -> None:
    with pytest.raises(DataError, match="must be a single recording for a duplex model"):
        make_collator().load(talk().pad(duration=3.0, preserve_id=True))
    short = talk(recording(0.1, 16000), recording(0.1, 22050))
    for segment in short.supervisions:
        segment.start, segment.duration = 0.0, 0.1
    with pytest.raises(DataError, match="cut talk: must have at least 2 frames, but has 1"):
        make_collator().load(short)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("source_sample_rate", 8000, "the encoder's 16000, but is 8000"),
        ("target_sample_rate", 24000, "the codec's 22050, but is 24000"),
        ("frame_length", 0.04, "the encoder's 0.08, but is 0.04"),
    ],
)
def test_a_data_section_of_other_parts_is_refused(key: str, value: float, message: str) -> None:
    with pytest.raises(ConfigError, match=f"`data.{key}` must be {message}"):
        make_collator().for_data(DataConfig(**{key: value}))


def test_the_data_module_takes_the_roles_of_its_section(duplex_shar: Path) -> None:
    dataset = {"shar_path": str(duplex_shar), "batch_size": 4}
    for roles, loads in ((ROLES, True), ({"output_roles": ["robot"]}, False)):
        config = DataConfig(train_ds=dataset, validation_ds=dataset, **roles)
        data = LanguageDataModule(config, train_collator=make_collator())
        for loader in (data.train_dataloader(), *data.val_dataloader()):
            if loads:
                assert len(next(iter(loader))["ids"]) == 4
            else:
                with pytest.raises(DataError, match="must have supervisions of the speaker 'rob"):
                    next(iter(loader))


def test_a_run_resumes_with_the_same_roles_only() -> None:
    dataset = {"shar_path": "shar"}
    own, other = DataConfig(train_ds=dataset), DataConfig(train_ds=dataset, output_roles=["robot"])
    assert fingerprint(own) == fingerprint(DataConfig(train_ds=dataset)) != fingerprint(other)


def test_batches_of_shar_equal_those_of_nemo(duplex_shar: Path) -> None:
    from nemo.collections.speechlm2.data.s2s_dataset import DuplexS2SDataset

    cuts = list(CutSet.from_shar(in_dir=str(duplex_shar)))
    dataset = DuplexS2SDataset(Words(), 0.08, 16000, 22050, **ROLES)
    theirs = dataset[CutSet.from_cuts(cuts)]
    ours = load_batch(*cuts, tokenizer=Words())
    for name in ("source_audio", "target_audio", "target_tokens"):
        lens = f"{name.removesuffix('s')}_lens"
        assert torch.equal(ours[name], theirs[name])
        assert ours[lens].tolist() == theirs[lens].tolist()
    assert ours["target_texts"] == theirs["target_texts"]
