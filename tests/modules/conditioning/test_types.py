"""What single types of conditioners do beyond the laws."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from whalesong.modules.codec.codec import Codec
from whalesong.modules.conditioning.build import build_conditioner
from whalesong.modules.conditioning.recordings import resample


def build(type: str, *, output_dim: int = 8, codec: Codec | None = None, **fields: Any) -> Any:
    torch.manual_seed(0)
    return build_conditioner(type, fields, output_dim=output_dim, codec=codec)


@pytest.mark.parametrize(
    ("type", "fields", "message"),
    [
        ("zzz", {}, "^Unknown conditioner type: zzz$"),
        ("numbr", {}, "^Unknown conditioner type: numbr; did you mean 'number'"),
        ("pretransform", {}, "^Sample rate must be specified for pretransform conditioners"),
        ("source_mix", {}, "^Sample rate must be specified for source_mix conditioners"),
        ("pretransform", {"sample_rate": 8000, "use_model_pretransform": True},
         "^Model pretransform must be specified for pretransform conditioners"),
        ("pretransform", {"sample_rate": 8000}, "exactly one of `use_model_pretransform`"),
        ("source_mix", {"sample_rate": 8000, "use_model_pretransform": True,
                        "allow_null_source": True},
         "^Source length must be specified if allowing null sources"),
        ("audio_prompt", {}, "^Model pretransform must be specified for audio_prompt"),
        ("t5", {"t5_model_name": "t5-bsae"}, "^Unknown T5 model name: t5-bsae; did .*'t5-base'"),
        ("t5", {"padding_mode": "left"}, "`t5.padding_mode` should be 'none', 'zero' or 'learned'"),
        ("number", {"min_val": 1}, "`max_val` must be greater than `min_val` .1.0., but is 1.0"),
        ("int", {"min_val": 3, "max_val": 2}, "`max_val` must be at least `min_val` .3., but is 2"),
        ("list", {"options": ["a", "a"]}, "`options` must be distinct, but names 'a' twice"),
        ("text", {"width": 30}, "`num_heads` must divide `width` .30., but is 4"),
        ("clap_text", {}, "`clap_text.clap_ckpt_path` is mandatory"),
        ("clap_text", {"clap_ckpt_path": "x", "padding_mode": "learned"}, "only with `use_text_f"),
        ("lut", {"tokenizer_name": "/nowhere"}, "no tokenizer could be read: '/nowhere'"),
    ],
)  # fmt: skip
def test_wrong_fields_are_refused_in_one_sentence(
    type: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build(type, **fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("type", "fields", "value", "message"),
    [
        ("number", {}, float("nan"), "must be a finite number, but is nan"),
        ("number", {}, "3", "must be a finite number, but is '3'"),
        ("int", {}, 2.5, "must be a whole number, but is 2.5"),
        ("list", {"options": ["a"]}, 3, "a `list` condition must be a string, but is 3"),
        ("text", {}, 3, "a `text` condition must be a string, but is 3"),
        ("phoneme", {}, 3, "must be a text or a list of phonemes, but is 3"),
        ("phoneme", {}, "rain", "must be a list of phonemes where the package g2p_en is not"),
        ("audio_prompt", {}, torch.zeros(2, 5).long(), r"codes must be \(3, F\), but are \(2, 5\)"),
        ("audio_prompt", {}, torch.full((3, 5), 8), "codes must be from 0 to 7, but reach from 8"),
        ("audio_prompt", {}, torch.zeros(1, 0), r"audio must be .*, but is \(1, 0\)"),
        ("audio_prompt", {}, {"audio": torch.zeros(5)}, "must have the keys .* but has: audio"),
        ("audio_prompt", {}, "drums.wav", "must be a tensor, but is 'drums.wav'"),
    ],
)
def test_wrong_values_are_refused(
    type: str, fields: dict[str, Any], value: Any, message: str, codec: Codec
) -> None:
    with pytest.raises(ValueError, match=message):
        build(type, codec=codec, **fields)([value])


def test_values_beyond_a_range_count_as_its_ends() -> None:
    conditioner = build("int", min_val=-2, max_val=5)
    embeds = conditioner([-9, -2, 5, 50, torch.tensor(0), 0.0]).embeds
    assert torch.equal(embeds[0], embeds[1]) and torch.equal(embeds[2], embeds[3])
    assert torch.equal(embeds[4], embeds[5])
    assert torch.equal(embeds[:, 0], conditioner.int_embedder.weight[[0, 0, 7, 7, 2, 2]])
    conditioner = build("number", min_val=-2, max_val=5)
    for beyond, end in ((-9, -2), (50, 5)):
        assert torch.equal(conditioner([beyond]).embeds, conditioner([end]).embeds)


def test_unknown_names_share_one_embedding() -> None:
    embeds = build("list", options=["rock", "jazz"])(["polka", "ska", "rock", "jazz"]).embeds
    assert torch.equal(embeds[0], embeds[1])
    assert len(embeds.unique(dim=0)) == 3


def test_output_dim_among_the_fields_wins() -> None:
    assert build("int", output_dim=8)([1]).embeds.shape == (1, 1, 8)
    conditioner = build_conditioner("int", {"output_dim": 5}, output_dim=8)
    assert conditioner.output_dim == 5 and conditioner([1]).embeds.shape == (1, 1, 5)


def test_both_names_of_the_token_table_are_known(tiny_t5: Path) -> None:
    for name in ("lut", "tokenizer_lut"):
        condition = build(name, tokenizer_name=str(tiny_t5), max_length=3)(["a calm piano piece"])
        assert condition.mask.tolist() == [[True] * 3]


def test_phonemes_of_a_text_come_from_any_function() -> None:
    conditioner = build("phoneme", max_length=3)
    conditioner.g2p = lambda text: {"bee": ["B", "IY1"], "long": ["B"] * 9}[text]
    condition = conditioner(["bee", ["B", "IY1"], "long"])
    assert condition.mask.sum(dim=1).tolist() == [2, 2, 3]
    assert torch.equal(condition.embeds[0], condition.embeds[1])


def test_t5_equals_transformers(tiny_t5: Path) -> None:
    from transformers import AutoTokenizer, T5EncoderModel

    texts = ["a calm piano piece", "rain"]
    encoder = T5EncoderModel.from_pretrained(tiny_t5).eval()
    inputs = AutoTokenizer.from_pretrained(tiny_t5)(texts, padding=True, return_tensors="pt")
    inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    expected = encoder(**inputs).last_hidden_state
    for project_out in (False, True):
        conditioner = build("t5", output_dim=16, model_path=str(tiny_t5), project_out=project_out)
        expected = conditioner.proj_out(expected) * inputs["attention_mask"].unsqueeze(-1)
        condition = conditioner.train()(texts)
        torch.testing.assert_close(condition.embeds, expected, atol=1e-6, rtol=1e-5)
        assert torch.equal(condition.mask, inputs["attention_mask"].bool())


def test_t5_is_trained_only_where_it_is_asked_for(tiny_t5: Path) -> None:
    conditioner = build("t5", t5_model_name=str(tiny_t5), enable_grad=True).train()
    conditioner(["rain", "a calm piano piece"]).embeds.square().sum().backward()
    assert all(weight.grad is not None for weight in conditioner.parameters())
    frozen = build("t5", t5_model_name=str(tiny_t5))
    assert [name for name, weight in frozen.named_parameters() if weight.requires_grad] == [
        "proj_out.weight", "proj_out.bias",
    ]  # fmt: skip


def test_learned_padding_fills_up_to_the_longest_text_there_can_be(tiny_t5: Path) -> None:
    conditioner = build("t5", model_path=str(tiny_t5), max_length=7, padding_mode="learned")
    condition = conditioner(["rain", None])
    assert condition.mask.tolist() == [[True] * 7, [False] * 7]
    assert torch.equal(condition.embeds[0, 2:], conditioner.padding.expand(5, -1))


def test_a_folder_of_another_kind_is_refused(llm_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights of a T5EncoderModel, first"):
        build("t5", model_path=str(llm_folder))
    with pytest.raises(ValueError, match="holds no complete pretrained model"):
        build("t5", model_path=str(tmp_path))
    with pytest.raises(ValueError, match="holds no tokenizer of a known kind"):
        build("lut", tokenizer_name=str(tmp_path))
    checkpoint = tmp_path / "music_audioset.pt"
    checkpoint.touch()
    with pytest.raises(ValueError, match="is the file .*convert_clap_original_pytorch_to_hf"):
        build("clap_text", clap_ckpt_path=str(checkpoint))


def test_clap_equals_transformers(clap_folder: Path) -> None:
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    model = ClapModel.from_pretrained(clap_folder).eval()
    text = AutoTokenizer.from_pretrained(clap_folder)(["a calm piano piece"], return_tensors="pt")
    audio = torch.randn(1, 7000)
    extractor = ClapFeatureExtractor.from_pretrained(clap_folder)
    sound = extractor(audio[0].numpy(), sampling_rate=8000, return_tensors="pt")
    expected = {
        "clap_text": model.get_text_features(text["input_ids"], text["attention_mask"]),
        "clap_audio": model.get_audio_features(sound["input_features"].float()),
    }
    values = {"clap_text": "a calm piano piece", "clap_audio": audio}
    for type, output in expected.items():
        condition = build(type, output_dim=12, clap_ckpt_path=str(clap_folder))([values[type]])
        torch.testing.assert_close(condition.embeds[:, 0], output.pooler_output)


def test_clap_is_trained_only_where_it_is_asked_for(clap_folder: Path) -> None:
    conditioner = build("clap_audio", clap_ckpt_path=str(clap_folder), finetune=True)
    conditioner([torch.randn(1, 900)]).embeds.sum().backward()
    assert any(weight.grad is not None for weight in conditioner.model.parameters())


def test_audio_and_its_codes_are_the_same_prompt(codec: Codec) -> None:
    conditioner = build("audio_prompt", codec=codec, max_seconds=0.2)
    audio = torch.randn(1, 5000)
    codes, _ = codec.encode(audio[None])
    from_audio, from_codes = conditioner([audio]), conditioner([codes[0].numpy()])
    assert from_audio.mask.shape == (1, 20) and from_audio.mask.all()
    assert torch.equal(from_audio.embeds, from_codes.embeds)


def test_a_prompt_tells_the_order_of_its_frames(codec: Codec) -> None:
    codes = torch.randint(0, 8, (3, 1)).expand(-1, 6)
    plain = build("audio_prompt", codec=codec, positions=False)([codes]).embeds[0]
    assert len(plain.unique(dim=0)) == 1
    expected = sum(
        build("audio_prompt", codec=codec).embedding.table.weight[8 * k + int(codes[k, 0])]
        for k in range(3)
    )
    torch.testing.assert_close(plain[0], expected)
    ordered = build("audio_prompt", codec=codec)([codes]).embeds[0]
    assert len(ordered.unique(dim=0)) == 6


def test_the_codec_of_the_model_stays_with_the_model(codec: Codec) -> None:
    conditioner = build("audio_prompt", codec=codec)
    assert set(conditioner.state_dict()) == {"embedding.table.weight"}
    assert conditioner.codec is codec and not conditioner.assets


def test_weights_of_an_own_codec_come_from_a_file(codec: Codec, codec_file: Path, tmp_path) -> None:
    weights = {name: tensor + 1 for name, tensor in codec.state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "own.ckpt")
    section = {"type": "mel_rvq", "config": {"model_path": str(codec_file)}}
    fields = {"sample_rate": 8000, "pretransform_config": section}
    path = str(tmp_path / "own.ckpt")
    conditioner = build("pretransform", pretransform_ckpt_path=path, **fields)
    for name, tensor in conditioner.codec.state_dict().items():
        assert torch.equal(tensor, weights[name])
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="`pretransform_ckpt_path` .* does not hold"):
        build("pretransform", pretransform_ckpt_path=path, **fields)


def test_a_mix_is_the_sum_of_its_sources(codec: Codec) -> None:
    fields = {"sample_rate": 8000, "use_model_pretransform": True, "positions": False}
    conditioner = build("source_mix", codec=codec, source_keys=["drums", "bass"], **fields)
    drums, bass = torch.randint(0, 8, (3, 5)), torch.randint(0, 8, (3, 9))
    values = [{"drums": drums}, {"bass": bass}, {"bass": bass, "drums": drums, "voice": None}]
    condition = conditioner(values)
    assert condition.mask.sum(dim=1).tolist() == [5, 9, 9]
    torch.testing.assert_close(condition.embeds[2], condition.embeds[0] + condition.embeds[1])
    conditioner.train()(values[:1]).embeds.sum().backward()
    assert [bool(part.table.weight.grad.any()) for part in conditioner.embeddings] == [True, False]
    with pytest.raises(ValueError, match="No sources found for mix"):
        conditioner([{"voice": drums}])
    coded = build("source_mix", codec=codec, source_keys=["a"], pre_encoded=True, **fields)
    with pytest.raises(ValueError, match="must be codes where `pre_encoded` is set"):
        coded([{"a": torch.zeros(1, 80)}])


def test_resampling_keeps_a_tone() -> None:
    def tone(rate: int) -> torch.Tensor:
        return torch.sin(2 * torch.pi * 440 * torch.arange(rate) / rate)[None]

    for new_rate in (8000, 24000):
        changed = resample(tone(16000), 16000, new_rate)
        assert changed.shape == (1, new_rate) and changed.dtype == torch.float32
        torch.testing.assert_close(
            changed[:, 500:-500], tone(new_rate)[:, 500:-500], atol=1e-2, rtol=0
        )


def test_fields_are_light_to_import() -> None:
    code = (
        "import sys; from whalesong.modules.conditioning import config, section; "
        "section.check_conditioning({'configs': [{'id': 'x', 'type': 't5'}]}); "
        "sys.exit(bool({'torch', 'transformers', 'nemo'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
