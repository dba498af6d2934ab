"""Our SALM gives the numbers of NeMo's with the same weights and batch, where NeMo's is right."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from whalesong.models.salm.collator import LoadedDialog
from whalesong.modules.lora import canonical_name

TAG = "<audio>"
IDENTITY = {
    "_target_": "nemo.collections.speechlm2.modules.perception.IdentityConnector",
    "d_model": 64,
}
ANSWERS = ("turn on the light", "set the heating to twenty one degrees now")


def collate(model: Any, audios: list[torch.Tensor]) -> dict[str, Any]:
    """A batch of ours: one audio and one answer each."""
    collator = model.parts.validation_collator
    loaded = []
    for index, (audio, answer) in enumerate(zip(audios, ANSWERS, strict=True)):
        messages = [
            {"role": "user", "content": f"Repeat after me: {TAG}"},
            {"role": "assistant", "content": answer},
        ]
        frames = [model.counter(len(audio))]
        loaded.append(
            LoadedDialog(
                str(index),
                collator.encode(messages, frames, str(index)),
                collator.encode(messages[:-1], frames, str(index)),
                [audio],
                answer,
            )
        )
    return collator(loaded)


def nemo_batch(model: Any, audios: list[torch.Tensor]) -> dict[str, Any]:
    """The same batch as NeMo's data set gives it: one tag per audio, padded on the left."""
    from nemo.collections.common.prompts import PromptFormatter
    from nemo.collections.speechlm2.data.salm_dataset import left_collate_vectors

    formatter = PromptFormatter.resolve("llama2")(model.tokenizer)
    dialogs = [
        formatter.encode_dialog(
            [
                {"role": "user", "slots": {"message": f"Repeat after me: {TAG}"}},
                {"role": "assistant", "slots": {"message": answer}},
            ]
        )
        for answer in ANSWERS
    ]
    return {
        "audios": torch.nn.utils.rnn.pad_sequence(audios, batch_first=True),
        "audio_lens": torch.tensor([len(audio) for audio in audios]),
        "input_ids": left_collate_vectors(
            [dialog["input_ids"] for dialog in dialogs], padding_value=model.text_pad_id
        ),
        "loss_mask": left_collate_vectors([d["mask"] for d in dialogs], padding_value=0).bool(),
    }


def build_nemo_twin(config: dict[str, Any], ours: Any) -> Any:
    """NeMo's SALM with the weights of ours."""
    from nemo.collections.speechlm2.models import SALM as NemoSALM

    keys = ("pretrained_llm", "pretrained_asr", "prompt_format", "perception")
    section = {key: config[key] for key in keys}
    section |= {"pretrained_weights": True, "audio_locator_tag": TAG, "prevent_freeze_params": []}
    section["perception"] = {
        "target": "nemo.collections.speechlm2.modules.perception.AudioPerceptionModule",
        **section["perception"],
    }
    if "lora" in config:
        section["lora"] = {"task_type": "CAUSAL_LM", **config["lora"]}
    twin = NemoSALM(section).eval()
    weights = {name_in_nemo(name): tensor for name, tensor in ours.model.state_dict().items()}
    twin.load_state_dict({name: weights[name_in_nemo(name)] for name in twin.state_dict()})
    return twin


def name_in_nemo(name: str) -> str:
    """One name for a weight in both models: NeMo keeps the embedding beside the LLM."""
    return canonical_name(name).replace("llm.model.embed_tokens", "embed_tokens")


@pytest.fixture(params=[False, True], ids=["frozen LLM", "LoRA"])
def pair(request: pytest.FixtureRequest, salm_config: Callable[..., Any], build_salm: Any) -> Any:
    """Our model and NeMo's, with LoRA matrices that are not zero."""
    changes: dict[str, Any] = {"perception": {"modality_adapter": dict(IDENTITY)}}
    if not request.param:
        changes["lora"] = None
    ours = build_salm(**changes)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return ours, build_nemo_twin(salm_config(**changes), ours)


@pytest.fixture
def audios() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, generator=generator) * 0.1 for n in (32000, 20000)]


def test_loss_equals_nemo(pair: Any, audios: list[torch.Tensor]) -> None:
    ours, nemo = pair
    inputs = nemo.prepare_inputs(nemo_batch(nemo, audios))
    logits = nemo(inputs["input_embeds"], attention_mask=inputs["attention_mask"])["logits"]
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), inputs["target_ids"].flatten(0, 1), ignore_index=-100
    )
    outputs = ours.parts.loss.loss_fn(collate(ours, audios))
    assert int(outputs["num_targets"]) == int((inputs["target_ids"] != -100).sum())
    torch.testing.assert_close(outputs["loss"], expected, atol=1e-4, rtol=0)


def test_greedy_generation_equals_nemo(pair: Any, audios: list[torch.Tensor]) -> None:
    ours, nemo = pair
    batch = nemo_batch(nemo, audios)
    prompts = [[{"role": "user", "slots": {"message": f"Repeat after me: {TAG}"}}]] * 2
    expected = nemo.generate(
        prompts=prompts,
        audios=batch["audios"],
        audio_lens=batch["audio_lens"],
        max_new_tokens=12,
        do_sample=False,
    )
    given = ours.parts.predictor.predict(collate(ours, audios), max_new_tokens=12)["ids"]
    stop = ours.tokenizer.eos_id
    for row, ids in zip(expected.tolist(), given, strict=True):
        assert ids == (row[: row.index(stop)] if stop in row else row)


def test_folder_saved_by_nemo_is_imported(
    pair: Any, audios: list[torch.Tensor], tmp_path: Path
) -> None:
    from whalesong.models.salm.exchange import import_from_nemo
    from whalesong.models.salm.salm import SALM

    ours, nemo = pair
    nemo.save_pretrained(tmp_path)
    imported = import_from_nemo(SALM, tmp_path)
    batch = collate(ours, audios)
    expected = ours.parts.loss.loss_fn(batch)["loss"]
    torch.testing.assert_close(imported.parts.loss.loss_fn(batch)["loss"], expected)
    imported.save_to(tmp_path / "imported.nemo")
    restored = SALM.restore_from(tmp_path / "imported.nemo")
    torch.testing.assert_close(restored.parts.loss.loss_fn(batch)["loss"], expected)
