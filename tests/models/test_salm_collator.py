"""What the collator refuses, and what a batch looks like."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lhotse import Recording, SupervisionSegment

from whalesong.core.errors import DataError
from whalesong.data.conversation import Conversation, Turn


@pytest.fixture(scope="module")
def collator(build_salm: Callable[..., Any]) -> Any:
    return build_salm().parts.validation_collator


@pytest.fixture
def make_cut(tmp_path: Path) -> Callable[..., Any]:
    def make(
        text: str = "turn on the light", num_samples: int = 16000, sample_rate: int = 16000
    ) -> Any:
        path = tmp_path / f"{num_samples}-{sample_rate}.wav"
        samples = np.random.default_rng(0).standard_normal(num_samples)
        soundfile.write(path, 0.1 * samples, sample_rate)
        cut = Recording.from_file(path).to_cut()
        cut.supervisions = [SupervisionSegment(cut.id, cut.id, 0, cut.duration, text=text)]
        return cut

    return make


def talk(*turns: tuple[str, Any]) -> Conversation:
    return Conversation("talk", tuple(Turn(role, (part,)) for role, part in turns))


def test_batch_of_several_turns_audios_and_texts(collator: Any, make_cut: Any) -> None:
    first, second = make_cut(num_samples=16000), make_cut(num_samples=9000)
    several = talk(
        ("user", "Listen:"),
        ("user", first),
        ("assistant", "yes"),
        ("user", second),
        ("assistant", "no"),
    )
    text_only = talk(("user", "Hello"), ("assistant", "hi there"))
    batch = collator([collator.load(several), collator.load(text_only)])
    assert batch["audio_lens"].tolist() == [16000, 9000]
    assert int(batch["audio_mask"].sum()) == collator.counter(16000) + collator.counter(9000)
    assert not batch["audio_mask"][1].any()
    assert batch["references"] == ["no", "hi there"]
    lens = batch["attention_mask"].sum(dim=1)
    assert batch["attention_mask"][1, : lens[1]].all()
    assert batch["prompt"]["attention_mask"][:, -1].all()


def test_labels_are_the_following_tokens(collator: Any, make_cut: Any) -> None:
    batch = collator([collator.load(make_cut())])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    supervised = labels != -100
    assert torch.equal(labels[:-1][supervised[:-1]], ids[1:][supervised[:-1]])


def test_padding_with_the_eos_id_keeps_the_eos_target(collator: Any, make_cut: Any) -> None:
    import copy

    eos = collator.prompts.stop_ids[0]
    twin = copy.copy(collator)
    twin.pad_id = eos
    examples = [collator.load(make_cut()), collator.load(make_cut("set the heating to one"))]
    assert torch.equal(twin(examples)["labels"], collator(examples)["labels"])
    assert int((twin(examples)["labels"] == eos).sum()) == 2
    assert torch.equal(twin(examples)["attention_mask"], collator(examples)["attention_mask"])


def test_audio_is_resampled_to_the_rate_of_the_encoder(collator: Any, make_cut: Any) -> None:
    assert len(collator.load(make_cut(num_samples=8000, sample_rate=8000)).audios[0]) == 16000


def test_measured_tokens_are_the_length_of_the_batch(collator: Any, make_cut: Any) -> None:
    cut = make_cut(num_samples=12345)
    assert collator.measure_tokens(cut) == len(collator.load(cut).dialog)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ({"num_samples": 100}, "must have at least .* samples, but has 100"),
        ({"text": "turn <audio> on"}, "must hold no special token, but holds '<audio>'"),
        ({"text": "so </s> on"}, "must hold no special token, but holds '</s>'"),
        ({"text": "on " * 5000}, "must fit the LLM's context of 4096 tokens, but has"),
        ({"text": " "}, "has an empty text"),
    ],
)
def test_unusable_example_is_named(
    collator: Any, make_cut: Any, cut: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        collator.load(make_cut(**cut))


def test_dialog_without_answer_is_refused(collator: Any, make_cut: Any) -> None:
    with pytest.raises(DataError, match="'talk' must end with an answer, but has none"):
        collator.load(talk(("user", make_cut())))


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (
            {"role": "user", "content": "hear <audio>"},
            "one '<audio>' for each audio, but has 1 for 0",
        ),
        ({"role": "user", "content": "hear", "audio": ["x.wav"]}, "'x.wav' does not exist"),
        ({"content": "hear"}, "must have 'role' and 'content', but has"),
    ],
)
def test_unusable_request_is_refused(
    build_salm: Callable[..., Any], turn: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        build_salm().generate([[turn]])


def test_audio_without_tag_is_refused(build_salm: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match="must have one tag each, but the last 1 have none"):
        build_salm().generate([[{"role": "user", "content": "hi"}]], audios=torch.randn(1, 16000))


def test_audio_files_and_waveforms_give_the_same_answer(
    build_salm: Callable[..., Any], tmp_path: Path
) -> None:
    model = build_salm()
    samples = (0.1 * np.random.default_rng(0).standard_normal(16000)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    assert model.transcribe([tmp_path / "a.wav"]) == model.transcribe([torch.from_numpy(samples)])


def test_plain_cuts_are_asked_the_default_context(collator: Any, speech_shar: Path) -> None:
    from whalesong.data.config import DataConfig
    from whalesong.data.datamodule import LanguageDataModule

    def first_prompt(**data: Any) -> list[int]:
        config = DataConfig(default_context="Repeat after me:", train_ds={"batch_size": 1, **data})
        module = LanguageDataModule(config, train_collator=collator)
        plan = module.train_dataloader().plan
        return collator.load(next(iter(plan.batches(0)))[0]).prompt.input_ids

    plain = first_prompt(shar_path=str(speech_shar), shuffle=False)
    item = {"type": "lhotse_as_conversation", "shar_path": str(speech_shar)}
    assert plain == first_prompt(input_cfg=[item], shuffle=False)
    asked = collator.encode([{"role": "user", "content": "Repeat after me: <audio>"}], [1], "x")
    assert plain[: asked.audio_mask.index(True)] == asked.input_ids[: asked.audio_mask.index(True)]
