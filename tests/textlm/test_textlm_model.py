"""TextLMModel: built from YAML, trained, saved, restored elsewhere, evaluated, asked."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import whalesong
from whalesong.core.config.job import PredictConfig
from whalesong.core.errors import ArchiveError, ConfigError
from whalesong.data.text_example import TextExample

PROMPT = "2 0 8 7 7 6 4 3 8 2 8 4 8 3"
EXAMPLE = TextExample(id="a", text="8 4 4 3", prompt=PROMPT)


@pytest.fixture(scope="module")
def config(text_config):
    return text_config("arlm")


@pytest.fixture(scope="module")
def model(config):
    torch.manual_seed(0)
    return whalesong.TextLMModel(config).eval()


def logits(model):
    collator = model.parts.validation_collator
    batch = collator([collator.load(EXAMPLE)])
    with torch.no_grad():
        return model.model(batch["input_ids"], batch["attention_mask"])


def test_sizes_of_the_parts_come_from_tokenizer_and_data(model):
    assert model.model.vocab_size == len(model.tokenizer) == 7 + 12
    assert model.parts.loss.model is model.parts.predictor.model is model.model


def test_restored_in_another_folder_it_says_the_same(model, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    model.save_to(tmp_path / "a" / "x.nemo")
    (tmp_path / "b").mkdir()
    moved = (tmp_path / "a" / "x.nemo").rename(tmp_path / "b" / "y.nemo")
    monkeypatch.chdir(tmp_path / "a")
    restored = whalesong.load(moved)
    assert isinstance(restored, whalesong.TextLMModel)
    assert torch.equal(logits(restored), logits(model))
    assert restored.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    request = PredictConfig(prompts=[PROMPT])
    assert list(restored.answer(request)) == list(model.answer(request))


def test_an_archive_may_not_name_a_class_that_is_not_ours(model, tmp_path):
    changed = OmegaConf.to_container(model.cfg)
    changed["predictor"] = {"_target_": "subprocess.Popen", "args": ["true"]}
    with pytest.raises((ArchiveError, ConfigError), match="subprocess"):
        whalesong.TextLMModel(changed)


def test_answers_come_one_for_each_prompt(model, capsys):
    rows = list(model.answer(PredictConfig(prompts=[PROMPT, PROMPT])))
    assert [row["id"] for row in rows] == ["prompt-0", "prompt-1"]
    assert rows[0]["ids"] == rows[1]["ids"]
    assert rows[0]["prompt"] == PROMPT
    assert capsys.readouterr().out.splitlines()[0] == f"{PROMPT} -> {rows[0]['text']}"


def test_a_seed_makes_the_answer_and_rows_do_not_share_one(model):
    generation = {"seed": 3, "top_k": 0, "temperature": 2.0}
    request = PredictConfig(prompts=[PROMPT] * 3, generation=generation)
    first, second = list(model.answer(request)), list(model.answer(request))
    assert [row["ids"] for row in first] == [row["ids"] for row in second]
    assert len({tuple(row["ids"]) for row in first}) > 1


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (PredictConfig(), "needs one of `predict.prompts`, `predict.infill` and .* but has none"),
        (PredictConfig(prompts=["1"], num_samples=2), "has `predict.prompts` and `predict.num_s"),
        (PredictConfig(prompts=["1"], audio=["a.wav"]), "`predict.audio` is not for text models"),
    ],
)
def test_requests_that_make_no_sense_are_refused(model, request_, said):
    with pytest.raises(ConfigError, match=said):
        list(model.answer(request_))


def test_without_a_collator_of_predictions_nothing_can_be_asked(config):
    model = whalesong.TextLMModel({**config, "collators": {"train": config["collators"]["train"]}})
    with pytest.raises(ConfigError, match="`model.collators.prediction` is mandatory"):
        list(model.answer(PredictConfig(prompts=["1"])))
    collator = model.parts.validation_collator
    assert "prediction" not in collator([collator.load(EXAMPLE)])


def test_evaluation_measures_loss_and_what_was_generated(model):
    collator = model.parts.validation_collator
    batch = collator([collator.load(EXAMPLE)] * 2)
    evaluation = model.evaluate([batch, batch], description="test")
    assert len(evaluation.rows) == 4
    assert {"loss", "exact_match", "token_accuracy"} <= {
        part.split()[0] for part in evaluation.summary.split(", ")
    }


def test_a_checkpoint_is_read_like_an_archive(model, tmp_path):
    from whalesong.core.config.job import JobConfig
    from whalesong.inference import load_model

    path = tmp_path / "step-1.ckpt"
    torch.save(
        {
            "state_dict": model.state_dict(),
            "hyper_parameters": {"cfg": OmegaConf.to_container(model.cfg)},
            "pytorch-lightning_version": "2.4.0",
        },
        path,
    )
    loaded = load_model(Path(path), JobConfig(job_type="eval"))
    assert torch.equal(logits(loaded), logits(model))
