"""The codec language model: its loss, its laws, and its archives."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

import whalesong
from whalesong.core.errors import ConfigError, DataError
from whalesong.data.datamodule import build_loader
from whalesong.models.codec_lm.request import make_request

PATTERNS = {
    "parallel": {},
    "delay": {},
    "unroll": {},
    "musiclm": {"group_by": 3},
    "coarse_first": {},
}
ROUTES = {
    "cross-attention": {"cross_attention_cond_ids": ["text", "prompt"]},
    "prepended": {"cross_attention_cond_ids": [], "prepend_cond_ids": ["text", "prompt"]},
    "global": {"cross_attention_cond_ids": [], "global_cond_ids": ["text", "tempo"]},
}
ROW = {"text": "a fast tone", "tempo": 90.0, "prompt": None}


@pytest.fixture(scope="module")
def model(build_codec_lm: Callable[..., Any]) -> Any:
    return build_codec_lm({"prepend_cond_ids": ["prompt"], "global_cond_ids": ["tempo"]})


def loader_of(model: Any, shar: Path, size: int) -> Any:
    config = {"shar_path": str(shar), "batch_size": size, "num_workers": 0}
    return build_loader(config, model.parts.validation_collator, path="test_ds")


def batch_of(model: Any, shar: Path, size: int = 4) -> dict[str, Any]:
    return next(iter(loader_of(model, shar, size)))


def rows(count: int) -> list[dict[str, Any]]:
    texts = ["a slow tone", "fast", "two tones at once", "x"]
    prompt = torch.arange(9).reshape(3, 3)
    return [
        {"text": texts[i % 4], "tempo": 60.0 + i, "prompt": None if i % 2 else prompt}
        for i in range(count)
    ]


# -- loss ---------------------------------------------------------------------------------------


def test_loss_starts_near_the_uniform_one_and_falls(
    build_codec_lm: Callable[..., Any], music_shar: Path
) -> None:
    model = build_codec_lm()
    batch = batch_of(model, music_shar)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        outputs = model.parts.loss.loss_fn(batch)
        outputs["loss"].backward()
        optimizer.step()
        losses.append(float(outputs["loss"].detach()))
    assert abs(losses[0] - torch.tensor(32.0).log()) < 0.8
    assert losses[-1] < losses[0] - 0.3
    assert outputs["num_targets"] == 3 * batch_frames(model, batch)


def batch_frames(model: Any, batch: dict[str, Any]) -> int:
    return int(model.model.codes_of(batch)[1].sum())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_loss_of_a_batch_is_that_of_its_rows(
    build_codec_lm: Callable[..., Any], music_shar: Path, pattern: str
) -> None:
    model = build_codec_lm(
        {"codebook_pattern": pattern, "codebook_pattern_config": PATTERNS[pattern]}
    )
    together = batch_of(model, music_shar, size=12)
    sums = model.parts.loss.loss_fn(together)["sums"]["nll"]
    alone = islice(loader_of(model, music_shar, 1), 12)
    single = sum(model.parts.loss.loss_fn(row)["sums"]["nll"] for row in alone)
    torch.testing.assert_close(sums, single, rtol=1e-4, atol=1e-3)


def test_loss_equals_cross_entropy_of_the_aligned_logits(model: Any, music_shar: Path) -> None:
    batch = batch_of(model, music_shar)
    codes, lens = model.model.codes_of(batch)
    output = model.model(codes, lens, batch["metadata"])
    expected = torch.nn.functional.cross_entropy(output.logits[output.mask], codes[output.mask])
    torch.testing.assert_close(model.parts.loss.loss_fn(batch)["loss"], expected)


def test_tail_of_a_clip_is_trained(model: Any) -> None:
    codes = torch.randint(32, (1, 3, 9))
    batch = {"codes": codes, "codes_lens": torch.tensor([9]), "metadata": [ROW]}
    loss = model.parts.loss.loss_fn(batch)
    assert loss["sums"]["codes"].tolist() == [9, 9, 9]
    changed = codes.clone()
    changed[0, 2, 8] = (changed[0, 2, 8] + 1) % 32
    other = model.parts.loss.loss_fn({**batch, "codes": changed})
    assert other["sums"]["nll"][2] != loss["sums"]["nll"][2]


def test_no_gradient_reaches_the_codec(model: Any, music_shar: Path) -> None:
    model.parts.loss.loss_fn(batch_of(model, music_shar))["loss"].backward()
    assert all(p.grad is None for p in model.model.pretransform.parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None for p in trained)
    model.zero_grad()


def test_recomputed_activations_give_the_same_gradients(
    build_codec_lm: Callable[..., Any], music_shar: Path
) -> None:
    gradients = []
    for recompute in (False, True):
        model = build_codec_lm(activation_checkpointing=recompute)
        assert model.model.backbone.transformer.checkpointing is recompute
        model.parts.loss.loss_fn(batch_of(model, music_shar))["loss"].backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_empty_batch_has_a_loss_of_zero(model: Any) -> None:
    outputs = model.parts.loss.loss_fn(model.parts.train_collator([]))
    assert outputs["loss"] == 0 and outputs["num_targets"] == 0


def test_codes_and_audio_of_the_same_clips_give_one_loss(model: Any, music_shar: Path) -> None:
    batch = batch_of(model, music_shar)
    codes, lens = model.model.codes_of(batch)
    ahead = {"codes": codes, "codes_lens": lens, "metadata": batch["metadata"]}
    torch.testing.assert_close(
        model.parts.loss.loss_fn(ahead)["loss"], model.parts.loss.loss_fn(batch)["loss"]
    )


# -- conditions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
def test_every_condition_has_an_effect_by_every_route(
    build_codec_lm: Callable[..., Any], route: str
) -> None:
    model = build_codec_lm(ROUTES[route]).model
    with torch.no_grad():  # adaptive norms start as the identity
        for parameter in model.lm.backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    codes = torch.randint(32, (1, 3, 6))
    row = {"text": "a", "tempo": 60.0, "prompt": torch.zeros(3, 2, dtype=torch.long)}
    changes = {"text": "b", "tempo": 120.0, "prompt": torch.ones(3, 2, dtype=torch.long)}
    before = model(codes, metadata=[row]).logits
    for name in [name for ids in ROUTES[route].values() for name in ids]:
        after = model(codes, metadata=[{**row, name: changes[name]}]).logits
        assert (after - before).abs().max() > 1e-4, name


def test_a_row_under_conditions_is_what_it_is_alone(model: Any) -> None:
    codes, metadata = torch.randint(32, (4, 3, 7)), rows(4)
    lens = torch.tensor([7, 3, 5, 1])
    together = model.model(codes, lens, metadata).logits
    for row in range(4):
        alone = model.model(codes[row : row + 1, :, : lens[row]], None, [metadata[row]]).logits
        torch.testing.assert_close(together[row, :, : lens[row]], alone[0], rtol=1e-4, atol=1e-4)


def test_a_missing_condition_is_named(model: Any) -> None:
    with pytest.raises(ValueError, match="Conditioner key tempo not found in batch metadata"):
        model.model(torch.zeros(1, 3, 4, dtype=torch.long), None, [{"text": "a", "prompt": None}])


# -- generation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("route", ROUTES)
def test_cached_generation_takes_the_best_codes_of_the_whole_model(
    build_codec_lm: Callable[..., Any], pattern: str, route: str
) -> None:
    model = build_codec_lm(
        {"codebook_pattern": pattern, "codebook_pattern_config": PATTERNS[pattern], **ROUTES[route]}
    ).model
    metadata = [{**row, "prompt": torch.arange(6).reshape(3, 2)} for row in rows(2)]
    begin = [torch.randint(32, (3, 4)), None]
    made = model.generate_audio(
        metadata, seconds=[0.2, 0.14], begin=begin, temperature=0, guidance_scale=1.0
    )
    assert torch.equal(made.codes[0][:, :4], begin[0])
    for row, codes in enumerate(made.codes):
        logits = model(codes[None], metadata=[metadata[row]]).logits[0]
        first = 4 if begin[row] is not None else 0
        assert torch.equal(logits.argmax(-1)[:, first:], codes[:, first:])


def test_each_row_is_generated_as_alone(model: Any) -> None:
    metadata, seconds, seeds = rows(3), [0.3, 0.1, 0.2], [5, 6, 7]
    begin = [None, torch.randint(32, (3, 2)), torch.randint(32, (3, 5))]
    settings = {"guidance_scale": 2.0, "temperature": 0.9, "top_k": 20}
    together = model.generate_audio(metadata, seconds=seconds, seeds=seeds, begin=begin, **settings)
    for row in range(3):
        alone = model.generate_audio(
            metadata[row : row + 1],
            seconds=seconds[row],
            seeds=seeds[row : row + 1],
            begin=begin[row : row + 1],
            **settings,
        )
        assert torch.equal(alone.codes[0], together.codes[row])
        torch.testing.assert_close(alone.audio[0], together.audio[row])
        assert together.audio[row].shape == (1, round(seconds[row] * 50) * 320)


def test_guidance_of_one_is_no_guidance_and_of_zero_no_condition(model: Any) -> None:
    fixed = {"seconds": 0.2, "seeds": [3, 4]}
    plain = model.model.generate_audio(rows(2), guidance_scale=1.0, **fixed)
    split = model.model.generate_audio(rows(2), guidance_scale={"text": 1.0, "tempo": 1.0}, **fixed)
    nothing = model.model.generate_audio(rows(2), guidance_scale=0.0, **fixed)
    free = model.model.generate_audio(None, batch_size=2, **fixed)
    for row in range(2):
        assert torch.equal(plain.codes[row], split.codes[row])
        assert torch.equal(nothing.codes[row], free.codes[row])


def test_negative_prompts_lead_away(model: Any) -> None:
    fixed = {"seconds": 0.3, "seeds": [3], "guidance_scale": 4.0}
    plain = model.model.generate_audio(rows(1), **fixed)
    negative = model.model.generate_audio(rows(1), negative=rows(3)[2:], **fixed)
    same = model.model.generate_audio(rows(1), negative=rows(1), **fixed)
    unguided = model.model.generate_audio(rows(1), **{**fixed, "guidance_scale": 1.0})
    assert not torch.equal(plain.codes[0], negative.codes[0])
    assert torch.equal(same.codes[0], unguided.codes[0])


def test_a_scale_for_an_unknown_condition_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="`guidance_scale` names 'mood'"):
        model.generate_audio(rows(1), guidance_scale={"mood": 2.0}, seconds=0.1)


def test_a_generator_packs_once_for_requests_of_as_many_rows(model: Any) -> None:
    generator = model.parts.predictor.generator(seconds=0.2)
    request = make_request(
        rows(2), batch_size=None, negative=None, begin=None, seconds=0.2, seeds=[1, 2]
    )
    first = generator.generate(request)
    packed = generator._packed
    assert all(map(torch.equal, first.codes, generator.generate(request).codes))
    assert generator._packed is packed
    alone = replace(request, metadata=rows(1), begin=[None], seconds=[0.2], seeds=[1])
    assert torch.equal(generator.generate(alone).codes[0], first.codes[0])
    assert generator._packed is not packed


def test_generation_is_the_same_in_the_middle_of_training(
    build_codec_lm: Callable[..., Any],
) -> None:
    section = {"configs": [{"id": "text", "type": "text", "dropout": 0.9}], "dropout": 0.9}
    model = build_codec_lm(conditioning=section)
    fixed = {"seconds": 0.2, "seeds": [1, 2], "guidance_scale": 2.0}
    calm = model.model.generate_audio(rows(2), **fixed)
    model.train()
    modes = [part.training for part in model.modules()]
    busy = model.model.generate_audio(rows(2), **fixed)
    assert all(map(torch.equal, calm.codes, busy.codes))
    assert [part.training for part in model.modules()] == modes


def test_progress_is_a_bar_or_a_function(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[int, int]] = []
    model.generate_audio(rows(1), seconds=0.1, progress=lambda *step: told.append(step))
    assert told[-1][0] == told[-1][1] == len(told)
    model.generate_audio(rows(1), seconds=0.1, progress=True)
    assert f"{len(told)}/{len(told)}" in capsys.readouterr().err


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("window", [None, 0.24])
def test_streamed_pieces_are_the_whole(
    build_codec_lm: Callable[..., Any], pattern: str, window: float | None
) -> None:
    model = build_codec_lm(
        {"codebook_pattern": pattern, "codebook_pattern_config": PATTERNS[pattern]}
    )
    fixed = {"seconds": 0.5, "seeds": [1, 2], "window_seconds": window, "stride_seconds": 0.1}
    whole = model.generate_audio(rows(2), **fixed)
    pieces = list(model.stream_audio(rows(2), **fixed))
    assert all(piece.shape[:2] == (2, 1) for piece in pieces)
    torch.testing.assert_close(
        torch.cat(pieces, dim=2), torch.stack(whole.audio), atol=1e-4, rtol=0
    )


def test_infilling_keeps_what_is_outside_of_the_span(model: Any) -> None:
    clips = [torch.randint(32, (3, 20)) for _ in range(2)]
    filled = model.model.infill_audio(
        clips, begin_seconds=0.1, end_seconds=0.2, conditioning=rows(2), seeds=[1, 2],
        num_candidates=3,
    )  # fmt: skip
    for clip, codes in zip(clips, filled.codes, strict=True):
        assert torch.equal(codes[:, :5], clip[:, :5]) and torch.equal(codes[:, 10:], clip[:, 10:])
        assert not torch.equal(codes[:, 5:10], clip[:, 5:10])
    with pytest.raises(ValueError, match="the span must lie inside of every clip"):
        model.model.infill_audio(clips, begin_seconds=0.1, end_seconds=2.0, conditioning=rows(2))


def test_continuation_begins_with_the_audio_it_is_given(model: Any, tones: list[Any]) -> None:
    audio = torch.from_numpy(tones[0])[None]
    made = model.generate_audio(rows(1), begin=[audio], seconds=0.8)
    assert torch.equal(made.codes[0][:, :25], model.model.pretransform.encode(audio[None])[0][0])
    with pytest.raises(ValueError, match="`begin` of row 0 must be shorter than `seconds`"):
        model.generate_audio(rows(1), begin=[audio], seconds=0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"begin": [None]}, "`begin` must have one entry for each of 2 rows"),
        ({"seconds": [0.1, 0.2, 0.3]}, "`seconds` must have one entry"),
        ({"temperature": -1.0}, "temperature"),
        ({"tempeature": 1.0}, "tempeature"),
        ({"begin": [torch.full((3, 2), 99), None]}, "codes from 0 to 31"),
    ],
)
def test_wrong_requests_are_refused(model: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate_audio(rows(2), **{"seconds": 0.2, **arguments})


# -- archives and configuration -------------------------------------------------------------------


def test_archive_restores_elsewhere_without_the_codecs_file(
    build_codec_lm: Callable[..., Any], codec_lm_config: Callable[..., dict[str, Any]],
    mel_rvq: Path, tmp_path: Path,
) -> None:  # fmt: skip
    copy = tmp_path / "codec.safetensors"
    copy.write_bytes(mel_rvq.read_bytes())
    model = build_codec_lm(pretransform={"type": "mel_rvq", "config": {"model_path": str(copy)}})
    model.save_to(tmp_path / "model.nemo")
    copy.unlink()
    restored = whalesong.load(tmp_path / "model.nemo")
    assert type(restored) is whalesong.CodecLMModel
    fixed = {"seconds": 0.3, "seeds": [1, 2], "guidance_scale": 3.0}
    for name in ("codes", "audio"):
        before = getattr(model.generate_audio(rows(2), **fixed), name)
        after = getattr(restored.generate_audio(rows(2), **fixed), name)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_lora_starts_as_the_identity_and_trains_nothing_else(
    build_codec_lm: Callable[..., Any], music_shar: Path
) -> None:
    plain, lora = build_codec_lm(), build_codec_lm(lora={"r": 2, "lora_alpha": 4})
    names = {name.replace(".base_layer.", "."): t for name, t in lora.state_dict().items()}
    lora.load_state_dict(
        {k: plain.state_dict().get(k.replace(".base_layer.", "."), t)
         for k, t in lora.state_dict().items()}
    )  # fmt: skip
    assert set(plain.state_dict()) <= set(names)
    batch = batch_of(plain, music_shar)
    torch.testing.assert_close(
        lora.parts.loss.loss_fn(batch)["loss"], plain.parts.loss.loss_fn(batch)["loss"]
    )
    trained = [name for name, p in lora.model.lm.named_parameters() if p.requires_grad]
    assert trained and all(".lora_" in name for name in trained)
    with torch.no_grad():
        for name, parameter in lora.model.lm.named_parameters():
            if ".lora_B" in name:
                parameter.add_(0.1)
    made = lora.generate_audio(rows(1), seconds=0.2, temperature=0, guidance_scale=1.0)
    logits = lora.model(made.codes[0][None], metadata=rows(1)).logits[0]
    assert torch.equal(logits.argmax(-1), made.codes[0])


def test_wrong_sections_are_one_line(codec_lm_config: Callable[..., dict[str, Any]]) -> None:
    def message(**changes: Any) -> str:
        with pytest.raises(ConfigError) as error:
            whalesong.CodecLMModel(codec_lm_config(**changes))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "did you mean `window_seconds`" in message(window_second=3.0)
    assert "model.pretransform.type" in message(pretransform={"type": "mel_rvx", "config": {}})
    assert "'mood'" in message(lm={"global_cond_ids": ["mood"]})
    assert "codec.safetensors" in message(
        pretransform={"type": "mel_rvq", "config": {"model_path": "no/codec.safetensors"}}
    )


def test_a_clip_without_its_attribute_is_named(
    build_codec_lm: Callable[..., Any], music_shar: Path
) -> None:
    section = {"configs": [{"id": "mood", "type": "list", "config": {"options": ["sad"]}}]}
    model = build_codec_lm({"cross_attention_cond_ids": ["mood"]}, conditioning=section)
    with pytest.raises(DataError, match=r"clip\d+: must have the attribute 'mood'"):
        batch_of(model, music_shar)
