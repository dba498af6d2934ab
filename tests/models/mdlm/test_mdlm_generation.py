"""Generation with mdlm: the right distribution, and the same with and without a cache."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from whalesong.models.mdlm.collator import MdlmSeq2SeqPredCollator
from whalesong.models.mdlm.filling import dense_rank, fine_noise
from whalesong.models.mdlm.model import MdlmModel
from whalesong.models.mdlm.noise_schedule import LogLinearNoise
from whalesong.models.mdlm.predictor import MdlmPredictor
from whalesong.modules.generation.sampling import RowNoise, SamplingSettings, sample

PAD, MASK, EOS, BOS, SIZE = 0, 2, 3, 4, 16
PROMPTS = [
    {"id": "a", "prompt_ids": [7, 8, 9, 10]},
    {"id": "b", "prompt_ids": [11]},
    {"id": "c"},
    {"id": "d", "partial_ids": [9, MASK, MASK, 12]},
]
SEEDS = [5, 6, 7, 2**60]
STRATEGIES = ["ancestral", "uniform", "top_prob", "prob_diff"]


def build_model(**fields: Any) -> MdlmModel:
    """A tiny network with large random weights, so that what it says differs."""
    torch.manual_seed(0)
    sizes = {"vocab_size": SIZE, "d_model": 32, "num_layers": 2, "num_heads": 4}
    model = MdlmModel(**sizes, condition_dim=8, **fields)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


class Recorded(nn.Module):
    """A model, and what noise it was told at each call."""

    def __init__(self, model: MdlmModel) -> None:
        super().__init__()
        self.model, self.time_conditioning = model, model.time_conditioning
        self.noises: list[float] = []

    def forward(self, *args: Any, total_noise: Tensor, **context: Any) -> Tensor:
        """What the model says."""
        self.noises.append(float(total_noise[0]))
        return self.model(*args, total_noise=total_noise, **context)


@pytest.fixture
def collate(number_tokenizer: Any) -> MdlmSeq2SeqPredCollator:
    return MdlmSeq2SeqPredCollator(number_tokenizer, 8, 6)


@pytest.fixture
def predictor_of(number_tokenizer: Any) -> Any:
    def build(model: nn.Module, **settings: Any) -> MdlmPredictor:
        return MdlmPredictor(model, number_tokenizer, LogLinearNoise(), **settings)

    return build


class Oracle(nn.Module):
    """Two slots that are equal always: (7, 7) with probability 0.7, (8, 8) with 0.3."""

    time_conditioning = False

    def forward(self, ids: Tensor, attention_mask: Tensor, *, at: Tensor, **_: Any) -> Tensor:
        """Exact logits of what is masked."""
        probs = torch.full((*ids.shape, SIZE), 1e-30)
        probs[..., 7], probs[..., 8] = 0.7, 0.3
        for token in (7, 8):
            seen = (ids == token).any(1)
            probs[seen] = 1e-30
            probs[seen, :, token] = 1.0
        return probs.log()[at]


@pytest.mark.parametrize(("num_steps", "share_equal"), [(1000, 1.0), (1, 0.58)])
def test_many_steps_give_the_joint_distribution_and_one_the_marginals(
    predictor_of: Any, number_tokenizer: Any, num_steps: int, share_equal: float
) -> None:
    collate = MdlmSeq2SeqPredCollator(number_tokenizer, 2, 0)
    batch = collate([{"id": str(index)} for index in range(2000)])
    predictor = predictor_of(Oracle(), num_steps=num_steps)
    ids = predictor.predict(batch, seeds=range(2000))["ids"]
    assert set(ids.flatten().tolist()) == {7, 8}
    for slot in range(2):
        share = (ids[:, slot] == 7).float().mean()
        assert abs(share - 0.7) < 4 * math.sqrt(0.21 / 2000)
    equal = (ids[:, 0] == ids[:, 1]).float().mean()
    assert abs(equal - share_equal) < 4 * math.sqrt(0.25 / 2000) * (num_steps == 1) + 0.005


def test_slots_are_unmasked_evenly_over_the_steps(predictor_of: Any, number_tokenizer: Any) -> None:
    collate = MdlmSeq2SeqPredCollator(number_tokenizer, 2, 0)
    batch = collate([{"id": str(index)} for index in range(2000)])
    predictor = predictor_of(Oracle(), num_steps=10, history=True)
    history = predictor.predict(batch, seeds=range(2000))["history"]
    left = torch.zeros(12)
    for row in history:
        left += torch.tensor([2.0 if step < row[1]["step"] else 0.0 for step in range(12)])
        if len(row) == 3:
            between = range(row[1]["step"], row[2]["step"])
            left += torch.tensor([1.0 if step in between else 0.0 for step in range(12)])
    expected = torch.cat((1 - 0.999 * torch.arange(11.0) / 10, torch.zeros(1)))
    assert ((left / 4000 - expected).abs() < 4 * 0.5 / math.sqrt(4000)).all()


@pytest.mark.parametrize("num_steps", [1, 5, 8, 60])
def test_with_and_without_a_cache_the_same_is_written(
    predictor_of: Any, collate: Any, num_steps: int
) -> None:
    model = Recorded(build_model())
    predictor, batch = predictor_of(model, num_steps=num_steps), collate(PROMPTS)
    cached = predictor.predict(batch, seeds=SEEDS, history=True)
    assert len(model.noises) <= min(8, num_steps + 1)
    model.noises.clear()
    uncached = predictor.predict(batch, seeds=SEEDS, history=True, use_cache=False)
    assert len(model.noises) == num_steps + 1
    assert torch.equal(cached["ids"], uncached["ids"])
    assert cached["history"] == uncached["history"]


def test_a_model_that_is_told_the_noise_takes_every_step(predictor_of: Any, collate: Any) -> None:
    model = Recorded(build_model(time_conditioning=True))
    predictor_of(model, num_steps=20).predict(collate(PROMPTS), seeds=SEEDS)
    times = torch.linspace(1, 1e-3, 21, dtype=torch.float64)
    assert model.noises == pytest.approx(LogLinearNoise().total_noise(times).tolist())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("time_conditioning", [False, True])
def test_a_batch_gives_what_its_rows_give_alone(
    predictor_of: Any, collate: Any, strategy: str, time_conditioning: bool
) -> None:
    model = build_model(time_conditioning=time_conditioning, prompt_positions=6)
    predictor = predictor_of(model, strategy=strategy, num_steps=6, top_p=0.9, top_k=10)
    together = predictor.predict(collate(PROMPTS), seeds=SEEDS)["ids"]
    for index, example in enumerate(PROMPTS):
        alone = predictor.predict(collate([example]), seeds=[SEEDS[index]])["ids"]
        assert torch.equal(alone[0], together[index])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("num_steps", [1, 3, 50])
def test_every_gap_is_filled_and_nothing_else_changes(
    predictor_of: Any, collate: Any, strategy: str, num_steps: int
) -> None:
    model = build_model().train()
    predictor, batch = predictor_of(model, strategy=strategy, num_steps=num_steps), collate(PROMPTS)
    before = {key: value.clone() for key, value in batch.items()}
    ids = predictor.predict(batch)["ids"]
    assert ids.shape == (4, 8) and model.training
    assert set(ids.flatten().tolist()) <= {PAD, EOS, *range(7, SIZE)}
    assert ids[3, [0, 3, 4, 5, 6, 7]].tolist() == [9, 12, EOS, PAD, PAD, PAD]
    assert all(torch.equal(batch[key], before[key]) for key in before)


def test_without_seeds_torch_seeds_it(predictor_of: Any, collate: Any) -> None:
    predictor, batch = predictor_of(build_model(), temperature=3.0), collate(PROMPTS)
    torch.manual_seed(1)
    first, second = predictor.predict(batch)["ids"], predictor.predict(batch)["ids"]
    torch.manual_seed(1)
    assert torch.equal(predictor.predict(batch)["ids"], first) and not torch.equal(first, second)


def test_the_history_tells_every_change(predictor_of: Any, collate: Any) -> None:
    predictor = predictor_of(build_model(), num_steps=40, history=True)
    batch = collate(PROMPTS)
    preds = predictor.predict(batch, seeds=SEEDS)
    for row, changes in zip(predictor.to_dict(batch, preds), preds["history"], strict=True):
        assert changes[0]["step"] == 0
        assert changes[-1]["text"] == row["text"]
        steps = [change["step"] for change in changes]
        assert steps == sorted(set(steps)) and steps[-1] <= 41
        masks = [change["text"].count("[MASK]") for change in changes]
        assert masks == sorted(set(masks), reverse=True) and masks[-1] == 0
    assert preds["history"][3][0]["text"] == "2 [MASK] [MASK] 5"


def test_the_surest_slot_comes_first(predictor_of: Any, collate: Any) -> None:
    model = build_model().eval()
    predictor = predictor_of(model, strategy="top_prob", temperature=0.0, num_steps=8)
    batch = collate([{"id": "a"}])
    with torch.no_grad():
        logits = model(
            batch["input_ids"], batch["attention_mask"], prompt_mask=batch["prompt_mask"]
        )
    logits[..., [1, MASK, BOS, 5, 6]] = -torch.inf
    sure, token = logits[0, 1:].softmax(-1).max(-1)
    slot = int(sure.argmax())
    ids = predictor.predict(batch)["ids"][0]
    assert ids[slot] == token[slot]


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"strategy": "best"}, ValueError, "`strategy` must be one of 'ancestral', .* 'best'"),
        ({"num_steps": 0}, ValueError, "`num_steps` must be at least 1, but is 0"),
        ({"threshold": 0.1}, ValueError, "`threshold` must be null with strategy 'ancestral'"),
        ({"temperature": -1.0}, ValueError, "`temperature` must be finite and at least 0"),
        ({"seeds": [1]}, ValueError, "`seeds` must be 4"),
        ({"steps": 3}, TypeError, "steps"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    predictor_of: Any, collate: Any, settings: Any, error: type, said: str
) -> None:
    with pytest.raises(error, match=said):
        predictor_of(build_model()).predict(collate(PROMPTS), **settings)


def test_rare_tokens_are_drawn_as_often_as_they_should() -> None:
    """Noise of fp32 cannot reach a token with probability 2 ** -30; ours does, as it should."""
    logits = torch.tensor([[[0.0, -30 * math.log(2)]]], dtype=torch.float64)
    settings = SamplingSettings(top_k=0)
    for distance, drawn in ((2.0**-31, 1), (2.0**-29, 0)):
        noise = torch.tensor([[1 - distance]], dtype=torch.float64)
        assert sample(logits, settings, noise).item() == drawn
    fine = fine_noise(RowNoise(range(200), 4), 100)
    assert fine.dtype == torch.float64 and fine.shape == (2, 200, 100)
    coarse_part = (fine * 2**24) % 1
    for values in (fine, coarse_part):
        assert abs(values.mean() - 0.5) < 4 / math.sqrt(12 * values.numel())
        assert abs(values.var() - 1 / 12) < 0.002
    assert fine.max() < 1


def test_ranks_are_those_of_the_different_values_of_a_row() -> None:
    values = torch.tensor([[5, -1, 3, 5, 9], [-1, -1, -1, -1, -1], [0, 4, 0, 2, 7]])
    assert dense_rank(values).tolist() == [[1, -1, 0, 1, 2], [-1] * 5, [0, 2, 0, 1, 3]]
