"""`MultiConditioner`: keys, null conditions, dropout, and sections that build it."""

from typing import Any

import pytest
import torch

from whalesong.modules.codec.codec import Codec
from whalesong.modules.conditioning.build import build_multi_conditioner, check_conditioning
from whalesong.modules.conditioning.multi import MultiConditioner

ROWS = [{"caption": "piano", "bpm": 90, "genre": ["jazz"]}, {"caption": "drums", "bpm": 120.5,
        "genre": "rock"}]  # fmt: skip


def section(**changes: Any) -> dict[str, Any]:
    return {
        "configs": [
            {"id": "caption", "type": "text", "config": {"width": 16}},
            {"id": "bpm", "type": "number", "config": {"max_val": 240, "output_dim": 6}},
            {"id": "genre", "type": "list", "config": {"options": ["rock", "jazz"]}},
        ],
        **changes,
    }


def build(**changes: Any) -> MultiConditioner:
    torch.manual_seed(0)
    return build_multi_conditioner(section(**changes), default_dim=8)


def test_each_condition_has_its_width() -> None:
    conditions = build()(ROWS)
    assert build().output_dims == {"caption": 8, "bpm": 6, "genre": 8}
    assert build(cond_dim=12).output_dims == {"caption": 12, "bpm": 6, "genre": 12}
    shapes = {name: tuple(condition.embeds.shape) for name, condition in conditions.items()}
    assert shapes == {"caption": (2, 6, 8), "bpm": (2, 1, 6), "genre": (2, 1, 8)}


def test_a_list_of_one_is_its_element() -> None:
    conditioner = build()
    wrapped = [{key: [value] for key, value in row.items() if key != "genre"} for row in ROWS]
    wrapped = [row | {"genre": ("jazz",)} for row in wrapped]
    plain = [row | {"genre": "jazz"} for row in ROWS]
    for name, condition in conditioner(wrapped).items():
        assert torch.equal(condition.embeds, conditioner(plain)[name].embeds)


def test_a_missing_key_is_an_error_that_names_the_row() -> None:
    with pytest.raises(ValueError, match="Conditioner key bpm not found in batch metadata .row 1"):
        build()([ROWS[0], {"caption": "drums", "genre": "rock"}])


def test_a_default_key_is_read_where_the_key_is_missing() -> None:
    conditioner = build(default_keys={"bpm": "tempo"})
    tempo = [{**ROWS[0], "bpm": 90}, {"caption": "drums", "genre": "rock", "tempo": 120.5}]
    assert torch.equal(conditioner(tempo)["bpm"].embeds, conditioner(ROWS)["bpm"].embeds)
    with pytest.raises(ValueError, match="Conditioner key tempo not found"):
        conditioner([{"caption": "drums", "genre": "rock"}])


def test_errors_of_a_conditioner_name_the_condition() -> None:
    with pytest.raises(ValueError, match="condition 'bpm': .* must be a finite number.*'fast'"):
        build()([{**ROWS[0], "bpm": "fast"}])


def test_null_and_none_are_masked_everywhere() -> None:
    conditioner = build()
    nothing = conditioner([dict.fromkeys(("caption", "bpm", "genre"))] * 3)
    for conditions in (nothing, conditioner.null(3)):
        for name, condition in conditions.items():
            assert condition.embeds.shape == (3, 1, conditioner.output_dims[name])
            assert not condition.mask.any() and not condition.embeds.any()


def test_pre_encoded_values_are_taken_as_they_are() -> None:
    conditioner = build(pre_encoded_keys=["caption"])
    encoded = torch.randn(5, 8)
    rows = [{**ROWS[0], "caption": encoded}, {**ROWS[1], "caption": encoded[0]}]
    condition = conditioner([*rows, {**ROWS[0], "caption": None}])["caption"]
    assert condition.mask.sum(dim=1).tolist() == [5, 1, 0]
    assert torch.equal(condition.embeds[0], encoded)
    assert torch.equal(condition.embeds[1, 0], encoded[0])
    with pytest.raises(ValueError, match=r"must be \(S, 8\) tensors, but one is \(5, 3\)"):
        conditioner([{**ROWS[0], "caption": encoded[:, :3]}])


def test_dropout_of_all_takes_the_same_rows_from_every_condition() -> None:
    conditioner = build(dropout=0.4).train()
    conditions = conditioner(ROWS * 100)
    dropped = ~conditions["bpm"].mask.any(dim=1)
    assert 40 < int(dropped.sum()) < 120
    for condition in conditions.values():
        assert torch.equal(~condition.mask.any(dim=1), dropped)
        assert not condition.embeds[dropped].any()


def test_dropout_of_one_leaves_the_others() -> None:
    configs = section()["configs"]
    configs[1]["dropout"] = 0.5
    conditioner = build(configs=configs).train()
    conditions = conditioner(ROWS * 100)
    assert 60 < int(conditions["bpm"].mask.sum()) < 140
    assert conditions["genre"].mask.all() and conditions["caption"].mask.any(dim=1).all()


def test_dropout_follows_the_global_generator_and_only_in_training() -> None:
    configs = section()["configs"]
    configs[0]["dropout"] = 0.5
    conditioner = build(configs=configs, dropout=0.5).train()
    masks = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        masks.append(conditioner(ROWS * 20)["caption"].mask)
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    before = torch.get_rng_state()
    assert conditioner.eval()(ROWS * 20)["caption"].mask.any(dim=1).all()
    assert torch.equal(torch.get_rng_state(), before)


def test_every_weight_has_a_gradient_even_without_any_value() -> None:
    conditioner = build(dropout=1.0).train()
    conditions = conditioner([{"caption": "piano", "bpm": None, "genre": None}])
    sum(condition.embeds.sum() for condition in conditions.values()).backward()
    for weight in conditioner.parameters():
        assert weight.grad is not None and not weight.grad.any()


def test_assets_and_weights_make_it_again(tiny_t5, codec_file, codec: Codec) -> None:
    own = {"type": "mel_rvq", "config": {"model_path": str(codec_file)}}
    configs = [
        {"id": "text", "type": "t5", "config": {"t5_model_name": str(tiny_t5)}},
        {"id": "prompt", "type": "audio_prompt"},
        {"id": "stem", "type": "pretransform",
         "config": {"sample_rate": 8000, "pretransform_config": own}},
    ]  # fmt: skip
    row = {"text": "rain", "prompt": torch.randn(1, 900), "stem": torch.randn(1, 600)}
    conditioner = build_multi_conditioner({"configs": configs}, default_dim=8, codec=codec)
    own["config"]["model_path"] = configs[0]["config"]["t5_model_name"] = "gone"
    again = build_multi_conditioner(
        {"configs": configs}, default_dim=8, codec=codec, assets=conditioner.assets
    )
    again.load_state_dict(conditioner.state_dict())
    for name, condition in conditioner([row]).items():
        assert torch.equal(again([row])[name].embeds, condition.embeds)
    names = set(conditioner.assets)
    assert {"text.config.json", "text.tokenizer.json", "stem.codec.json"} <= names
    assert not any(name.startswith("prompt.") for name in names)
    assert not any(key.startswith("conditioners.prompt.codec") for key in again.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"configs": section()["configs"] * 2}, "distinct ids, but has 'caption' twice"),
        ({"cond_dimm": 3}, "`conditioning.cond_dimm` is not a known field; did you mean 'cond_dim"),
        ({"default_keys": {"captoin": "x"}}, "names 'captoin'.*did you mean 'caption'"),
        ({"pre_encoded_keys": ["x"]}, "`pre_encoded_keys` names 'x', but `configs` has no such id"),
        ({"dropout": 1.5}, "`conditioning.dropout` should be less than or equal to 1, but is 1.5"),
        ({"configs": [{"id": "x", "type": "zzz"}]}, "'x': Unknown conditioner type: zzz"),
        (
            {"configs": [{"id": "x", "typ": "t5"}]},
            "`conditioning.configs.0.typ` is not a known field",
        ),
        (
            {"configs": [{"id": "x", "type": "t5", "config": {"max_lenght": 3}}]},
            "conditioner 'x': `t5.max_lenght` is not a known field; did you mean 'max_length'",
        ),
        ({"configs": [{"id": "a.b", "type": "t5"}]}, "`conditioning.configs.0.id` .*'a.b'"),
    ],
)
def test_a_wrong_section_is_refused_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check_conditioning(section(**changes))
    assert "\n" not in str(error.value)


def test_ids_are_listed() -> None:
    assert check_conditioning(section()) == ["caption", "bpm", "genre"]
    assert check_conditioning(None) == []


def test_an_id_that_a_module_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be 'keys'"):
        build(configs=[{"id": "keys", "type": "int"}])
