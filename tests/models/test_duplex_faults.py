"""Sixteen faults of NeMo's duplex models, numbered as in the notes on NeMo: none of them is here.

Five have their tests beside the part that they are about:
    7   text longer than its turn spills into the next one:
        data/test_text_channel.py, test_text_is_cut_to_its_turn_with_one_warning
    8   draws ignore the filter by top-k:
        modules/test_speech_decoder.py, test_fault_8_draws_stay_among_the_top_k_of_every_codebook
    9   each step of the speech decoder computes the whole prefix again:
        modules/test_speech_decoder.py, test_fault_9_a_cached_step_computes_one_position
    11  the user's audio is resampled twice:
        duplex/test_duplex_collator.py, test_each_side_is_resampled_once
    13  the scoring recognizer is loaded again for each validation:
        duplex/test_scoring.py, test_it_is_loaded_once_for_all
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lhotse import CutSet
from torch.utils.data import DataLoader

from whalesong.core.config.trainer import TrainerConfig
from whalesong.core.parts import Batch
from whalesong.core.training.trainer import build_trainer
from whalesong.data.text_channel import NO_EVENT, TURN_BEGINS, TURN_ENDS
from whalesong.duplex.steps import prepare_steps

FAMILIES = ("duplex_s2s", "duplex_s2s_speech_decoder")


@pytest.fixture(scope="module", params=[*FAMILIES, "looks ahead"])
def model(request: pytest.FixtureRequest, build_duplex: Callable[..., Any], tiny_asr: Path) -> Any:
    """One model for all tests, none of which changes it; its weights make answers vary.

    One has an encoder that norms and attends over whole rows, as most published ones do.
    """
    if request.param in FAMILIES:
        return vary(build_duplex(request.param))
    return vary(build_duplex(pretrained_asr=str(tiny_asr)))


@pytest.fixture(scope="module")
def cuts(duplex_shar: Path) -> list[Any]:
    """Conversations of 2 to 4 seconds, each of another length."""
    return list(CutSet.from_shar(in_dir=str(duplex_shar)))


def vary(model: Any) -> Any:
    """Add noise to all matrices that are trained."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.model.parameters():
            if parameter.dim() == 2 and parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def collate(model: Any, cuts: list[Any]) -> Batch:
    """A batch of some conversations."""
    collator = model.parts.validation_collator
    return collator([collator.load(cut) for cut in cuts])


def answer(model: Any, batch: Batch, **options: Any) -> dict[str, Any]:
    """The model's answer to the users of a batch."""
    return model.offline_inference(batch["source_audio"], batch["source_audio_lens"], **options)


@torch.no_grad()
def test_fault_1_padding_has_no_part_in_the_loss(model: Any, cuts: list[Any]) -> None:
    loss_fn = model.parts.loss.loss_fn
    together = loss_fn(collate(model, [cuts[0], cuts[11]]))
    alone = [loss_fn(collate(model, [cut])) for cut in (cuts[0], cuts[11])]
    frames = torch.stack([outputs["num_targets"] for outputs in alone])
    assert frames.tolist() == [24, 47] and int(together["num_targets"]) == 24 + 47
    for name in ("text_loss", "audio_loss"):
        parts = torch.stack([outputs["parts"][name] for outputs in alone])
        expected = (parts * frames).sum() / frames.sum()
        torch.testing.assert_close(together["parts"][name], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_fault_2_what_is_behind_a_row_changes_nothing_in_it(model: Any, cuts: list[Any]) -> None:
    batch = collate(model, [cuts[0], cuts[11]])
    alone = model.model(collate(model, [cuts[0]]))
    for name, filler in (("source_audio", 0.5), ("target_audio", 0.5), ("target_tokens", 7)):
        lens = batch["target_token_lens" if name == "target_tokens" else f"{name}_lens"]
        batch[name][0, int(lens[0]) :] = filler
    given = model.model(batch)
    steps = int(given.mask[0].sum())
    for name in ("text_logits", "audio_logits"):
        torch.testing.assert_close(
            getattr(given, name)[:steps], getattr(alone, name), atol=1e-4, rtol=1e-4
        )


@torch.no_grad()
def test_fault_3_the_padding_ratio_is_the_share_of_padding(model: Any, cuts: list[Any]) -> None:
    full = model.parts.loss.loss_fn(collate(model, [cuts[0], cuts[0]]))
    assert float(full["parts"]["padding_ratio"]) == 0
    half = model.parts.loss.loss_fn(collate(model, [cuts[0], cuts[11]]))
    assert float(half["parts"]["padding_ratio"]) == pytest.approx((47 - 24) / (2 * 47))


@pytest.mark.parametrize("family", FAMILIES)
def test_fault_4_every_parameter_that_is_trained_has_a_gradient(
    family: str, build_duplex: Callable[..., Any], cuts: list[Any]
) -> None:
    model = build_duplex(family).train()
    model.parts.loss.loss_fn(collate(model, cuts[:2]))["loss"].backward()
    trained = [item for item in model.named_parameters() if item[1].requires_grad]
    assert len(trained) > 50
    assert [name for name, parameter in trained if parameter.grad is None] == []


@torch.no_grad()
def test_fault_5_no_control_code_reaches_the_codec(model: Any) -> None:
    """Not even where it is in the first frame, whose codes NeMo puts in the place of others."""
    network = model.model
    codes = torch.randint(network.codebook_size, (1, network.num_codebooks, 6))
    spoiled = codes.clone()
    spoiled[:, :, 0] = network.speech_bos_id
    spoiled[:, 1, 2], spoiled[:, :, 5] = network.speech_delay_id, network.speech_eos_id
    played = network.playable(spoiled)
    assert torch.equal(played[:, :, [1, 3, 4]], codes[:, :, [1, 3, 4]])
    assert (played[:, :, [0, 2, 5]] == network.silence_codes[None, :, None]).all()
    assert int(played.max()) < network.codebook_size


@torch.no_grad()
def test_fault_6_begins_and_ends_differ_in_speech_where_they_do_not_in_text(
    build_duplex: Callable[..., Any], cuts: list[Any]
) -> None:
    model = build_duplex(special_tokens={"bos": "<s>", "eos": "<s>"})
    batch = collate(model, cuts[:2])
    assert batch["target_tokens"].eq(model.model.ids.bos).sum() == 4
    steps = prepare_steps(model.model, batch)
    events = batch["target_events"][:, : steps.code_labels.shape[2]]
    for event, code in ((TURN_BEGINS, "speech_bos_id"), (TURN_ENDS, "speech_eos_id")):
        found = steps.code_labels == getattr(model.model, code)
        assert torch.equal(found.all(dim=1), events == event)
        assert torch.equal(found.any(dim=1), events == event)
    assert events.ne(NO_EVENT).sum() == 4


@torch.no_grad()
def test_fault_10_the_scorer_hears_the_agent_at_the_rate_of_the_codec(
    build_duplex: Callable[..., Any], cuts: list[Any], causal_asr: Path
) -> None:
    """NeMo takes 22,050 Hz for granted; duplex/test_scoring.py resamples from other rates."""
    model, heard = build_duplex(scoring_asr=str(causal_asr)), []
    codec, predictor = model.model.audio_codec, model.parts.predictor
    batch = collate(model, cuts[:1])
    transcribe = predictor.scoring.transcribe
    predictor.scoring.transcribe = lambda audios, rate: (
        heard.append(rate) or transcribe(audios, rate)
    )
    predictor.predict(batch)
    codec.sample_rate = 11025
    predictor.predict(batch)
    assert heard == [22050, 11025]


@pytest.mark.parametrize("family", FAMILIES)
def test_fault_12_no_checkpoint_holds_the_codec_which_stays_what_it_is(
    family: str,
    build_duplex: Callable[..., Any],
    cuts: list[Any],
    causal_asr: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NeMo reads it again at every begin of an epoch, since bf16-true has rounded its weights.

    The trained parts are bf16, codec and scoring recognizer stay fp32, in validation, too.
    """
    model = build_duplex(family, scoring_asr=str(causal_asr))
    codec = model.model.audio_codec
    before = {name: tensor.clone() for name, tensor in codec.state_dict().items()}
    monkeypatch.delattr("whalesong.duplex.build.build_codec")
    settings = {"accelerator": "cpu", "max_steps": 1, "precision": "bf16-true"}
    trainer = build_trainer(TrainerConfig(**settings, enable_progress_bar=False), callbacks=[])
    data = DataLoader([collate(model, cuts[:2])], batch_size=None)
    trainer.fit(model, data, data)
    assert model.model.llm.dtype == torch.bfloat16
    assert model.model.audio_codec is codec
    for name, tensor in codec.state_dict().items():
        assert torch.equal(tensor, before[name]) and tensor.dtype == before[name].dtype
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"].keys()
    own = model.state_dict().keys()
    assert own - saved == {name for name in own if name.startswith("model.audio_codec.")}


@torch.no_grad()
def test_fault_14_decoding_starts_where_training_does(model: Any, cuts: list[Any]) -> None:
    batch = collate(model, cuts[:1])
    state = model.model.start(3, model.parts.predictor.settings)
    assert state.codes.tolist() == [[model.model.speech_delay_id] * 4] * 3
    assert state.text.tolist() == [model.model.ids.pad] * 3
    first = model.model(batch)  # its first frame is outside of any turn
    drawn = answer(model, batch, decode_audio=False)
    assert int(drawn["tokens_text"][0, 0]) == int(first.text_logits[0].argmax())
    assert torch.equal(drawn["tokens_audio"][0, 0], first.audio_logits[0].argmax(dim=-1))


@pytest.mark.parametrize("family", FAMILIES)
def test_fault_15_lora_trains_its_own_matrices_and_starts_as_the_identity(
    family: str, build_duplex: Callable[..., Any], cuts: list[Any]
) -> None:
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    plain, model = build_duplex(family), build_duplex(family, lora=lora)
    weights = {name.replace(".base_layer", ""): t for name, t in model.state_dict().items()}
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    batch = collate(model, cuts[:2])
    loss = model.parts.loss.loss_fn(batch)["loss"]
    torch.testing.assert_close(loss, plain.parts.loss.loss_fn(batch)["loss"])
    loss.backward()
    trained = {name for name, p in model.model.llm.named_parameters() if p.grad is not None}
    assert trained and all("lora_" in name for name in trained)
    assert answer(model, batch)["audio"].isfinite().all()


@torch.no_grad()
def test_fault_16_a_row_that_is_over_takes_no_more_steps(
    model: Any, cuts: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, rows, step = collate(model, [cuts[0], cuts[11], cuts[5]]), [], model.model.step
    monkeypatch.setattr(
        model.model, "step", lambda source, state: rows.append(len(source)) or step(source, state)
    )
    lens = answer(model, batch, decode_audio=False)["tokens_len"].tolist()
    assert sum(rows) == sum(lens) and len(rows) == max(lens)


@torch.no_grad()
def test_fault_16_answers_may_be_drawn(model: Any, cuts: list[Any]) -> None:
    batch = collate(model, [cuts[0], cuts[11]])
    greedy = answer(model, batch, decode_audio=False)
    kept = answer(model, batch, decode_audio=False, temperature=2.0, top_k=1)
    assert torch.equal(kept["tokens_audio"], greedy["tokens_audio"])
    drawn = [
        answer(model, batch, decode_audio=False, text_temperature=2.0, temperature=2.0, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0]["tokens_audio"], drawn[1]["tokens_audio"])
    assert not torch.equal(drawn[0]["tokens_audio"], drawn[2]["tokens_audio"])
    assert not torch.equal(drawn[0]["tokens_text"], greedy["tokens_text"])
