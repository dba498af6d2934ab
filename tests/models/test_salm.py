"""The laws of SALM: batching, caching, freezing, LoRA, archives."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from whalesong.core.errors import ArchiveError, ConfigError, DataError
from whalesong.models.salm.collator import LoadedDialog

QUESTION = "Repeat after me: <audio>"


def dialog(model: Any, audio: torch.Tensor, answer: str, question: str = QUESTION) -> LoadedDialog:
    """A question about one audio with its answer, as the collator loads it."""
    collator = model.parts.validation_collator
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    frames = [model.counter(len(audio))] if "<audio>" in question else []
    return LoadedDialog(
        answer,
        collator.encode(messages, frames, answer),
        collator.encode(messages[:-1], frames, answer),
        [audio] if frames else [],
        answer,
    )


@pytest.fixture(scope="module")
def model(build_salm: Callable[..., Any]) -> Any:
    return build_salm()


@pytest.fixture(scope="module")
def audios() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(n, generator=generator) * 0.1 for n in (30000, 17000)]


@pytest.fixture(scope="module")
def dialogs(model: Any, audios: list[torch.Tensor]) -> list[LoadedDialog]:
    answers = ("turn on the light", "set the heating to twenty degrees")
    return [dialog(model, audio, answer) for audio, answer in zip(audios, answers, strict=True)]


def loss_of(model: Any, dialogs: list[LoadedDialog]) -> dict[str, torch.Tensor]:
    return model.parts.loss.loss_fn(model.parts.validation_collator(dialogs))


def test_loss_falls_on_one_batch(
    build_salm: Callable[..., Any], dialogs: list[LoadedDialog]
) -> None:
    model = build_salm(freeze_params=[], lora=None)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(12):
        loss = loss_of(model, dialogs)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]


def copy_of(model: Any) -> Any:
    """An independent twin: ModelPT cannot be deep-copied."""
    twin = type(model)(model.cfg, assets=model.assets)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def test_loss_of_a_batch_is_that_of_its_rows(model: Any, dialogs: list[LoadedDialog]) -> None:
    together = loss_of(model, dialogs)
    alone = [loss_of(model, [one]) for one in dialogs]
    total = sum(float(out["loss"]) * int(out["num_targets"]) for out in alone)
    assert int(together["num_targets"]) == sum(int(out["num_targets"]) for out in alone)
    assert float(together["loss"]) == pytest.approx(total / int(together["num_targets"]), abs=1e-5)


def test_generation_of_a_batch_is_that_of_its_rows(model: Any, dialogs: list[LoadedDialog]) -> None:
    collator, predictor = model.parts.validation_collator, model.parts.predictor
    together = predictor.predict(collator(dialogs))["ids"]
    assert together == [predictor.predict(collator([one]))["ids"][0] for one in dialogs]


def test_cached_generation_equals_whole_forward_passes(
    model: Any, dialogs: list[LoadedDialog]
) -> None:
    batch = model.parts.validation_collator(dialogs[:1])
    given = model.parts.predictor.predict(batch, max_new_tokens=6, eos_token_id=-1)["ids"][0]
    network, prompt = model.model, batch["prompt"]
    with torch.no_grad():
        embeds = network.embed(
            prompt["input_ids"], prompt["audio_mask"], batch["audio"], batch["audio_lens"]
        )
        ids: list[int] = []
        for _ in range(6):
            logits = network.llm(inputs_embeds=embeds).logits[0, -1]
            ids.append(int(logits.argmax()))
            token = network.llm.get_input_embeddings()(torch.tensor([[ids[-1]]]))
            embeds = torch.cat([embeds, token], dim=1)
    assert given == ids


def test_generation_leaves_the_model_as_it_was(model: Any, dialogs: list[LoadedDialog]) -> None:
    model = copy_of(model)
    model.train()
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.parts.predictor.predict(model.parts.validation_collator(dialogs))
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_frozen_encoder_stays_in_evaluation_mode(model: Any) -> None:
    model = copy_of(model)
    model.train()
    assert not model.model.perception.encoder.training
    assert model.model.perception.modality_adapter.training


def test_text_is_streamed_as_it_is_produced(model: Any, dialogs: list[LoadedDialog]) -> None:
    pieces: dict[int, str] = {0: "", 1: ""}

    def on_text(row: int, text: str) -> None:
        pieces[row] += text

    vocabulary = model.tokenizer.tokenizer.get_vocab()
    single_bytes = [index for token, index in vocabulary.items() if token.startswith("<0x")]
    texts = model.parts.predictor.predict(
        model.parts.validation_collator(dialogs), on_text=on_text, suppress_tokens=single_bytes
    )["text"]
    assert list(pieces.values()) == texts and any(texts)


def test_unknown_generation_field_is_refused(model: Any, dialogs: list[LoadedDialog]) -> None:
    with pytest.raises(ConfigError, match="holds 'temprature'"):
        model.parts.predictor.predict(model.parts.validation_collator(dialogs), temprature=1.0)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "top_p": 0.9}])
def test_beams_and_sampling_run(
    model: Any, dialogs: list[LoadedDialog], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    batch = model.parts.validation_collator(dialogs)
    assert len(model.parts.predictor.predict(batch, max_new_tokens=4, **options)["text"]) == 2


def test_text_only_dialog_has_the_loss_of_the_plain_llm(model: Any) -> None:
    text_only = dialog(model, torch.zeros(0), "turn on the light", question="hello there")
    batch = model.parts.validation_collator([text_only])
    with torch.no_grad():
        logits = model.model.llm(input_ids=batch["input_ids"]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    torch.testing.assert_close(loss_of(model, [text_only])["loss"], expected)


def test_mixed_batch_is_the_mean_of_its_rows(model: Any, dialogs: list[LoadedDialog]) -> None:
    mixed = [dialog(model, torch.zeros(0), "no", question="is it on"), dialogs[0]]
    outs = [loss_of(model, [one]) for one in mixed]
    total = sum(float(out["loss"]) * int(out["num_targets"]) for out in outs)
    count = sum(int(out["num_targets"]) for out in outs)
    assert float(loss_of(model, mixed)["loss"]) == pytest.approx(total / count, abs=1e-5)


def test_recomputed_activations_give_the_same_gradients(
    build_salm: Callable[..., Any], dialogs: list[LoadedDialog]
) -> None:
    gradients = []
    for recompute in (False, True):
        model = build_salm(activation_checkpointing=recompute, freeze_params=[r"^llm\..+$"])
        model.train()
        torch.manual_seed(1)
        loss_of(model, dialogs)["loss"].backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_batch_of_nothing_has_no_targets_and_no_loss(model: Any) -> None:
    outputs = loss_of(model, [])
    assert (int(outputs["num_targets"]), float(outputs["loss"])) == (0, 0.0)


def test_placeholders_must_match_frames(model: Any, dialogs: list[LoadedDialog]) -> None:
    batch = model.parts.validation_collator(dialogs)
    batch["audio_mask"][0, 0] = True
    with pytest.raises(ValueError, match="one position per audio frame"):
        model.parts.loss.loss_fn(batch)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_any_causal_lm(
    build_salm: Callable[..., Any], audios: list[torch.Tensor], architecture: str
) -> None:
    model = build_salm(architecture)
    first, second = (dialog(model, audio, "turn on the light") for audio in audios)
    batch = model.parts.validation_collator([first, second])
    supervised = batch["labels"] != -100
    network = model.model
    embeds = network.embed(
        batch["input_ids"], batch["audio_mask"], batch["audio"], batch["audio_lens"]
    )
    logits = network.llm(inputs_embeds=embeds, attention_mask=batch["attention_mask"].long()).logits
    expected = torch.nn.functional.cross_entropy(logits[supervised], batch["labels"][supervised])
    torch.testing.assert_close(model.parts.loss.loss_fn(batch)["loss"], expected)
    assert model.generate([[{"role": "user", "content": QUESTION, "audio": [audios[0]]}]])


# -- freezing ------------------------------------------------------------------


def test_freeze_pattern_freezes_what_it_names(build_salm: Callable[..., Any]) -> None:
    model = build_salm(freeze_params=[r"^llm\.model\.layers\.[0-0]\..+$"], lora=None)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if ".llm.model.layers.0." in n}


def test_patterns_mean_the_same_with_lora(build_salm: Callable[..., Any]) -> None:
    pattern = r"^llm\.model\.layers\.1\.self_attn\.q_proj\.weight$"
    model = build_salm(freeze_params=[pattern], prevent_freeze_params=[r"^llm\.model\.norm\..+$"])
    trained = {name for name, p in model.model.llm.named_parameters() if p.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {"model.norm.weight"}
    assert any("lora_" in name for name in trained)


def test_keep_patterns_win(build_salm: Callable[..., Any]) -> None:
    model = build_salm(freeze_params=[r"^llm\..+$"], prevent_freeze_params=[r"^llm\.lm_head\..+$"])
    assert model.model.llm.lm_head.weight.requires_grad
    assert not model.model.llm.model.norm.weight.requires_grad


def test_tied_embedding_is_frozen_under_either_name(
    build_salm: Callable[..., Any], tiny_llm: Callable[..., Path]
) -> None:
    tied = str(tiny_llm("llama", tie_word_embeddings=True))
    for pattern in (r"^embed_tokens\..+$", r"^llm\.lm_head\..+$"):
        model = build_salm(pretrained_llm=tied, freeze_params=[pattern])
        assert not model.model.llm.lm_head.weight.requires_grad


def test_pattern_without_match_names_near_parameters(build_salm: Callable[..., Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"matches no parameter; near names: .*perception\.encoder"
    ):
        build_salm(freeze_params=[r"^perception\.encodr\.layers\..+$"])


def test_nothing_left_to_train_is_refused(build_salm: Callable[..., Any]) -> None:
    model = build_salm(freeze_params=[".*"], lora=None)
    model._trainer = type("Trainer", (), {"max_steps": 1})()
    with pytest.raises(ConfigError, match="freezes every parameter"):
        model.configure_optimizers()


# -- LoRA and other formats -----------------------------------------------------


def test_lora_changes_nothing_at_the_start(
    build_salm: Callable[..., Any], model: Any, dialogs: list[LoadedDialog]
) -> None:
    plain = build_salm(lora=None)
    weights = {name: t for name, t in model.model.perception.state_dict().items()}
    plain.model.perception.load_state_dict(weights)
    torch.testing.assert_close(loss_of(plain, dialogs)["loss"], loss_of(model, dialogs)["loss"])


def test_merged_folder_equals_the_model_with_lora(
    model: Any, dialogs: list[LoadedDialog], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from whalesong.models.salm.exchange import export_to_hf

    model = copy_of(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    export_to_hf(model, tmp_path / "hf")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "hf").encode("turn on the light")])
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model.model.llm(ids).logits)
    assert (tmp_path / "hf" / "perception" / "model.safetensors").is_file()
    with pytest.raises(DataError, match="must be new or empty"):
        export_to_hf(model, tmp_path / "hf")


# -- archives -------------------------------------------------------------------


def test_archive_restores_anywhere_without_the_original_parts(
    salm_config: Callable[..., Any], dialogs: list[LoadedDialog], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import shutil

    import whalesong
    from whalesong.models.salm.salm import SALM

    config = salm_config()
    parts = tmp_path / "parts"
    shutil.copytree(config["pretrained_llm"], parts / "llm")
    shutil.copy(config["pretrained_asr"], parts / "asr.nemo")
    config |= {"pretrained_llm": str(parts / "llm"), "pretrained_asr": str(parts / "asr.nemo")}
    torch.manual_seed(0)
    model = SALM(config).eval()
    model.save_to(tmp_path / "a.nemo")
    shutil.rmtree(parts)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(tmp_path / "a.nemo", elsewhere / "b.nemo")
    monkeypatch.chdir(elsewhere)
    restored = whalesong.load("b.nemo")
    assert type(restored) is SALM
    assert torch.equal(loss_of(restored, dialogs)["loss"], loss_of(model, dialogs)["loss"])
    assert (
        restored.parts.predictor.generation_config.to_dict()
        == model.parts.predictor.generation_config.to_dict()
    )
    (elsewhere / "b.nemo").rename(elsewhere / "gone.nemo")
    restored.save_to("c.nemo")
    assert (elsewhere / "c.nemo").read_bytes() == (elsewhere / "gone.nemo").read_bytes()


def test_slim_archive_needs_exactly_its_base(
    build_salm: Callable[..., Any], tiny_llm: Callable[..., Path],
    dialogs: list[LoadedDialog], tmp_path: Path,
) -> None:  # fmt: skip
    from whalesong.models.salm.salm import SALM

    model = build_salm(save_slim_nemo=True)
    model.save_to(tmp_path / "slim.nemo")
    whole = copy_of(model)
    whole.cfg.save_slim_nemo = False
    whole.save_to(tmp_path / "whole.nemo")
    assert (tmp_path / "slim.nemo").stat().st_size < 0.5 * (tmp_path / "whole.nemo").stat().st_size
    restored = SALM.restore_from(tmp_path / "slim.nemo")
    assert torch.equal(loss_of(restored, dialogs)["loss"], loss_of(model, dialogs)["loss"])
    other = str(tiny_llm("llama", seed=7))
    with pytest.raises(
        ArchiveError, match="trained on frozen parts with fingerprint [0-9a-f]{64}, but"
    ):
        SALM.restore_from(tmp_path / "slim.nemo", override_config_path={"pretrained_llm": other})


def test_slim_archive_without_a_trained_weight_is_refused(
    build_salm: Callable[..., Any], tmp_path: Path
) -> None:
    from omegaconf import OmegaConf

    from whalesong.core.archive import open_archive, write_archive
    from whalesong.models.salm.salm import SALM

    model = build_salm(save_slim_nemo=True)
    model.save_to(tmp_path / "slim.nemo")
    with open_archive(tmp_path / "slim.nemo") as archive:
        tensors, metadata = archive.tensors(), archive.metadata
    removed = next(name for name in tensors if "lora_B" in name)
    write_archive(
        tmp_path / "x.nemo",
        config=OmegaConf.to_container(model.cfg),
        tensors={name: tensor for name, tensor in tensors.items() if name != removed},
        files=model.assets,
        kind="slim",
        metadata=metadata,
    )
    with pytest.raises(ArchiveError, match=f"lacks the weight `{removed}`"):
        SALM.restore_from(tmp_path / "x.nemo")


def test_archive_with_other_weights_is_refused(model: Any, tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from whalesong.core.archive import write_archive
    from whalesong.models.salm.salm import SALM

    state = model.state_dict()
    removed = next(name for name in state if "modality_adapter" in name)
    write_archive(
        tmp_path / "x.nemo",
        config=OmegaConf.to_container(model.cfg),
        tensors={name: tensor for name, tensor in state.items() if name != removed},
        files=model.assets,
    )
    with pytest.raises(ArchiveError, match=f"lacks the weight `{removed}`"):
        SALM.restore_from(tmp_path / "x.nemo")


def test_config_of_the_caller_is_not_edited(salm_config: Callable[..., Any]) -> None:
    from whalesong.models.salm.salm import SALM

    config = salm_config()
    before = copy.deepcopy(config)
    SALM(config)
    assert config == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pretrained_llm": "nobody/nothing"},
            "neither a local folder nor a model that can be reached",
        ),
        ({"pretrained_asr": "missing.nemo"}, "must be an existing file, but 'missing.nemo' is not"),
        ({"prompt_format": "lama2"}, "must be one of .*llama2.* but is 'lama2'"),
        ({"freeze_param": []}, "`model.freeze_param`.*did you mean `freeze_params`"),
        ({"lora": {"rank": 8}}, r"`model.lora.rank`"),
    ],
)
def test_bad_config_gets_one_clear_line(
    salm_config: Callable[..., Any], change: dict[str, Any], message: str
) -> None:
    from whalesong.models.salm.salm import SALM

    with pytest.raises(ConfigError, match=message):
        SALM(salm_config(**change))


def test_unknown_adapter_key_is_named(salm_config: Callable[..., Any]) -> None:
    from whalesong.models.salm.salm import SALM

    config = salm_config()
    adapter = dict(config["perception"]["modality_adapter"], hiden_dim=3)
    with pytest.raises(
        ConfigError, match="model.perception.modality_adapter.hiden_dim.*hidden_dim"
    ):
        SALM({**config, "perception": {"modality_adapter": adapter}})
