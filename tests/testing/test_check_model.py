"""`check_model` finds each broken law, names class, method and file, and lets sound models pass."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from whalesong.core.contract import ContractError
from whalesong.core.errors import ConfigError, ModelNotFoundError
from whalesong.core.external import compose_job
from whalesong.core.scaffold.command import main as scaffold
from whalesong.metrics.exact_match import ExactMatch
from whalesong.models.arlm.collator import ArlmSeq2SeqCollator, ArlmSeq2SeqPredCollator
from whalesong.models.arlm.loss import ArlmLoss
from whalesong.models.arlm.model import ArlmModel
from whalesong.models.arlm.predictor import ArlmPredictor
from whalesong.testing import check_model
from whalesong.textlm.assemble import assembled
from whalesong.textlm.textlm_model import TextLMModel

Break = Callable[[TextLMModel], None]
OF_CAUSAL_MODELS = {"the future is hidden", "a cache changes nothing"}


@pytest.fixture(scope="module")
def config() -> Any:
    """A composed job of arlm on the smallest star graphs."""
    choices = ["model=arlm", "model_type=arlm", "datamodule=star_mini_arlm", "model.d_model=16"]
    return compose_job("config", overrides=["job_type=train", *choices]).cfg


@pytest.fixture
def model(config: Any) -> TextLMModel:
    """A small arlm."""
    torch.manual_seed(0)
    return TextLMModel(assembled(config).model)


@pytest.mark.parametrize("name", ["arlm", "mlm", "ilm", "mdlm"])
def test_core_models_keep_all_laws(name: str) -> None:
    before = torch.get_rng_state()
    report = check_model(name)
    assert set(report.skipped) == (set() if name == "arlm" else OF_CAUSAL_MODELS)
    assert len(report.checked) + len(report.skipped) == 14
    assert f"{name} keeps {len(report.checked)} laws" in str(report)
    assert torch.equal(before, torch.get_rng_state())


def test_ready_model_stays_as_it_is(model: TextLMModel) -> None:
    model.train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = check_model(model)
    assert report.name == "TextLMModel"
    assert report.skipped == {}
    assert model.training and model.parts.model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_config_gives_a_ready_model_its_data(model: TextLMModel, config: Any) -> None:
    assert check_model(model, config=config).skipped == {}
    assert check_model("my arlm", config=config).name == "my arlm"


def test_unknown_name_is_not_found() -> None:
    with pytest.raises(ModelNotFoundError, match="No module named 'arml'"):
        check_model("arml")


def test_wrong_config_is_named(config: Any) -> None:
    with pytest.raises(ConfigError, match="validation_ds.*`generated`"):
        item = {"type": "generatd"}
        check_model("arlm", config={**config, "data": {"validation_ds": {"input_cfg": [item]}}})


# -- parts that break their contract; each class stands for a mistake that is easy to make ------


class ReturnsNothing(ArlmLoss):
    def loss_fn(self, batch: dict[str, Any]) -> Any:
        super().loss_fn(batch)


class HasNoLoss(ArlmLoss):
    def loss_fn(self, batch: dict[str, Any]) -> Any:
        return {"nll": super().loss_fn(batch)["loss"]}


class Detaches(ArlmLoss):
    def loss_fn(self, batch: dict[str, Any]) -> Any:
        outputs = super().loss_fn(batch)
        return {**outputs, "loss": outputs["loss"].detach()}


class IsNotFinite(ArlmLoss):
    def loss_fn(self, batch: dict[str, Any]) -> Any:
        outputs = super().loss_fn(batch)
        return {**outputs, "loss": outputs["loss"] / 0}


class EditsTheBatch(ArlmLoss):
    def loss_fn(self, batch: dict[str, Any]) -> Any:
        outputs = super().loss_fn(batch)
        batch["labels"][:] = -100
        return outputs


class DividesByRows(ArlmLoss):
    def loss_fn(self, batch: dict[str, Any]) -> Any:
        outputs = super().loss_fn(batch)
        mean = outputs["loss"] * outputs["num_targets"] / max(len(batch["labels"]), 1)
        return {**outputs, "loss": mean}


class CountsPadding(ArlmLoss):
    def loss_fn(self, batch: dict[str, Any]) -> Any:
        outputs = super().loss_fn(batch)
        num_targets = torch.tensor(batch["labels"].numel())
        mean = outputs["loss"] * outputs["num_targets"] / num_targets.clamp(min=1)
        return {**outputs, "loss": mean, "num_targets": num_targets}


class ForgetsTheMask(ArlmLoss):
    def loss_fn(self, batch: dict[str, Any]) -> Any:
        return super().loss_fn({**batch, "attention_mask": None})


class DividesByNothing(ArlmLoss):
    def loss_fn(self, batch: dict[str, Any]) -> Any:
        outputs = super().loss_fn(batch)
        scale = outputs["num_targets"] / (batch["labels"] >= 0).sum()
        return {**outputs, "loss": outputs["loss"] * scale}


class HasNoToDict:
    def __init__(self, predictor: ArlmPredictor) -> None:
        self.predict = predictor.predict


class GivesTensors(ArlmPredictor):
    def to_dict(self, batch: Any, preds: Any) -> Any:
        return [{"ids": ids} for ids in preds["ids"]]


class LosesRows(ArlmPredictor):
    def to_dict(self, batch: Any, preds: Any) -> Any:
        return super().to_dict(batch, preds)[1:]


class LeavesTheVocabulary(ArlmPredictor):
    def predict(self, batch: Any, *, seeds: Sequence[int] | None = None, **changes: Any) -> Any:
        ids = super().predict(batch, seeds=seeds, **changes)["ids"]
        return {"ids": ids + len(self.tokenizer)}

    def to_dict(self, batch: Any, preds: Any) -> Any:
        return [{"ids": ids} for ids in preds["ids"].tolist()]


class MixesRows(ArlmPredictor):
    def predict(self, batch: Any, *, seeds: Sequence[int] | None = None, **changes: Any) -> Any:
        ids = super().predict(batch, seeds=seeds, **changes)["ids"]
        return {"ids": ids.roll(1, dims=0)}


class StaysInEvaluation(ArlmPredictor):
    def predict(self, batch: Any, *, seeds: Sequence[int] | None = None, **changes: Any) -> Any:
        self.model.eval()
        return super().predict(batch, seeds=seeds, **changes)


class LeaksTheTarget(ArlmSeq2SeqPredCollator):
    def __call__(self, examples: Sequence[dict[str, Any]]) -> Any:
        told = [{**e, "prompt_ids": [*e["prompt_ids"][1:], e["input_ids"][0]]} for e in examples]
        return super().__call__(told)


class NeedsExamples(ArlmSeq2SeqCollator):
    def __call__(self, examples: Sequence[dict[str, Any]]) -> Any:
        self.longest = max(len(example["input_ids"]) for example in examples)
        return super().__call__(examples)


class SeesTheFuture(ArlmModel):
    def hidden_states(self, input_ids: Tensor, **context: Any) -> Tensor:
        mean = self.embedding(input_ids).mean(1, keepdim=True)
        return super().hidden_states(input_ids, **context) + mean


class ForgetsItsCache(ArlmModel):
    def forward(self, input_ids: Tensor, attention_mask: Any = None, **context: Any) -> Tensor:
        context.pop("cache", None)
        return super().forward(input_ids, attention_mask, **context)


class IsAMean(ExactMatch):
    def totals(self) -> list[float]:
        right, rows = super().totals()
        return [right / max(rows, 1.0), float(rows > 0)]


def loss(kind: type[ArlmLoss]) -> Break:
    """Replace the loss."""

    def replace(model: TextLMModel) -> None:
        model.parts.loss = kind(model=model.parts.model)

    return replace


def predictor(kind: type[ArlmPredictor]) -> Break:
    """Turn the predictor into one of another class."""

    def replace(model: TextLMModel) -> None:
        model.parts.predictor.__class__ = kind

    return replace


def network(kind: type[nn.Module]) -> Break:
    """Turn the network into one of another class."""

    def replace(model: TextLMModel) -> None:
        model.parts.model.__class__ = kind

    return replace


def collator(kind: type, *, name: str) -> Break:
    """Turn a collator into one of another class."""

    def replace(model: TextLMModel) -> None:
        getattr(model.parts.validation_collator, name).__class__ = kind

    return replace


def without_to_dict(model: TextLMModel) -> None:
    """Replace the predictor by one that cannot make rows."""
    model.parts.predictor = HasNoToDict(model.parts.predictor)


def with_mean(model: TextLMModel) -> None:
    """Replace the metrics by one whose counts are no sums."""
    model.parts.metrics = {"exact_match": IsAMean()}


@pytest.mark.parametrize(
    "break_it, law, message",
    [
        (
            loss(ReturnsNothing),
            "the loss trains",
            r"ReturnsNothing.loss_fn must return a dictionary, but returned None",
        ),
        (
            loss(HasNoLoss),
            "the loss trains",
            r'HasNoLoss.loss_fn must return a dictionary with "loss", but it has nll',
        ),
        (loss(Detaches), "the loss trains", r"Detaches.loss_fn must give a loss with gradients"),
        (
            loss(IsNotFinite),
            "the loss trains",
            r"IsNotFinite.loss_fn must give a finite loss.* inf",
        ),
        (
            loss(EditsTheBatch),
            "the loss repeats itself",
            r"EditsTheBatch.loss_fn must not edit the batch, but changes `labels`",
        ),
        (
            loss(DividesByRows),
            "the loss of a batch is that of its rows",
            r"DividesByRows.loss_fn must give a batch the mean over all targets",
        ),
        (
            loss(CountsPadding),
            "the loss of a batch is that of its rows",
            r"CountsPadding.loss_fn must count targets row by row",
        ),
        (
            loss(ForgetsTheMask),
            "the loss of a batch is that of its rows",
            r"ForgetsTheMask.loss_fn must give a batch the mean .*: is padding in it\?",
        ),
        (
            loss(DividesByNothing),
            "no examples have no targets",
            r"DividesByNothing.loss_fn must give a finite loss without examples, but gave nan",
        ),
        (without_to_dict, "the parts are complete", r"HasNoToDict.to_dict is missing"),
        (
            predictor(GivesTensors),
            "rows are plain",
            r"GivesTensors.to_dict must return what JSON can hold, but `ids` is Tensor",
        ),
        (
            predictor(LosesRows),
            "rows are plain",
            r"LosesRows.to_dict must return a row for each of 4 examples, but returned 3",
        ),
        (
            predictor(StaysInEvaluation),
            "rows are plain",
            r"StaysInEvaluation.predict must leave the model in training mode",
        ),
        (
            predictor(LeavesTheVocabulary),
            "tokens are in the vocabulary",
            r'LeavesTheVocabulary.predict must give "ids" below the vocabulary of 19 tokens',
        ),
        (
            predictor(MixesRows),
            "a row is generated as if alone",
            r"MixesRows.predict must give a row the same alone and in a batch, but `ids` differs",
        ),
        (
            collator(LeaksTheTarget, name="predict"),
            "prompts hold no truth",
            r"LeaksTheTarget.__call__ must not let `input_ids` depend on the target",
        ),
        (
            network(SeesTheFuture),
            "the future is hidden",
            r"SeesTheFuture.forward must be causal, but the logits before position 1 change",
        ),
        (
            network(ForgetsItsCache),
            "a cache changes nothing",
            r"ForgetsItsCache.forward must give the same with a cache",
        ),
        (with_mean, "metrics add up", r"IsAMean.totals must be sums over rows"),
    ],
)
def test_broken_law_is_named(
    model: TextLMModel, config: Any, break_it: Break, law: str, message: str
) -> None:
    break_it(model)
    expected = rf"TextLMModel breaks the law '{law}': {message}.*{Path(__file__).name}\)\.$"
    with pytest.raises(ContractError, match=expected):
        check_model(model, config=config)


def test_external_model_is_told_which_file_to_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scaffold(["forgetful_lm"])
    path = tmp_path / "forgetful_lm" / "forgetful_lm" / "model_forgetful_lm.py"
    text = path.read_text("utf-8")
    drawn = "        self.scale = torch.rand(())  # no buffer, so that no archive has it\n"
    text = text.replace("super().__init__()\n", f"super().__init__()\n{drawn}")
    text = text.replace("cache=cache)\n", "cache=cache) * self.scale\n", 1)
    path.write_text(f"import torch\n{text}", encoding="utf-8")
    with pytest.raises(ContractError) as caught:
        check_model("forgetful_lm")
    law = "forgetful_lm breaks the law 'an archive restores the model'"
    rule = "ForgetfulLmModel.state_dict must hold all that the model needs, but restored it"
    assert str(caught.value) == f"{law}: {rule} has another loss ({path})."


def test_failing_part_is_named_by_file_and_line(model: TextLMModel, config: Any) -> None:
    collator(NeedsExamples, name="collate")(model)
    with pytest.raises(ContractError) as caught:
        check_model(model, config=config)
    assert "fails at the law 'no examples have no targets': ValueError: max() " in str(caught.value)
    assert f"{Path(__file__).name}, line " in str(caught.value)
