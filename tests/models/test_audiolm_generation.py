"""Generation of codes with AudioLM: cached is uncached, a batch is its rows, and rows end."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from whalesong.models.audiolm.ar_steps import PromptedNetwork
from whalesong.models.audiolm.arrangement import Arrangement, with_target
from whalesong.models.audiolm.generation import CodesGenerator
from whalesong.models.audiolm.model import AudioLM
from whalesong.models.audiolm.request import CodesRequest
from whalesong.modules.generation.guided import GuidedStepModel, PackedWeights
from whalesong.modules.generation.sampling import SamplingSettings
from whalesong.modules.lora import add_lora

K, SIZE = 4, 16
SHAPES = [
    {},
    {"ar_group": 2},
    {"ar_group": 4, "ar_quantizers": 2},
    {"ar_quantizers": 2, "ar_pattern": "delayed", "position_mode": "restart"},
    {"ar_quantizers": 4, "ar_pattern": "delayed", "positions": "sinusoidal"},
    {"ar_quantizers": 4, "ar_group": 2, "position_mode": "restart"},
    {"positions": "sinusoidal", "position_mode": "restart", "prompt_attention": "causal"},
    {"prompt_attention": "causal", "norm": "rms_norm", "activation": "swiglu", "ar_group": 2},
    {"codebook_size": [16, 12, 16, 9], "nar": {"d_model": 16, "nhead": 1, "num_layers": 1}},
]


def build(seed: int = 0, **changes: Any) -> AudioLM:
    torch.manual_seed(seed)
    sizes = {"d_model": 32, "nhead": 2, "num_layers": 2, "num_quantizers": K}
    lm = AudioLM(**{**sizes, "codebook_size": SIZE, "dropout": 0.1, **changes})
    lm.ar.heads.weight.data *= 10  # as sure of itself as a trained model
    return lm.eval()


def prompts(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(9, (3, 11, K), generator=generator), torch.tensor([11, 4, 0])


def stepwise(
    lm: AudioLM, arrangement: Arrangement, *, first: int = 1, variants: Sequence = ()
) -> Tensor:
    """Logits of all steps of the target, (B, C, P - 1, V + 1)."""
    conditions, weights = zip(*(variants or [(None, 1.0)]), strict=True)
    tokens = lm.ar.target(arrangement).tokens
    rows, _, num_steps = tokens.shape
    network = PromptedNetwork(lm.ar, arrangement, conditions, max_steps=num_steps)
    packed = PackedWeights(
        lm.ar.transformer, lm.ar.heads, batch_size=rows, num_variants=len(weights)
    )
    model = GuidedStepModel(network, weights=weights, packed=packed)
    first_logits = model.prefill(tokens[:, :, :first])
    others = [model.step(tokens[:, :, step]) for step in range(first, num_steps - 1)]
    return torch.stack([first_logits, *others], dim=2)


# -- cached is uncached -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("first", [1, 2])
def test_steps_with_a_cache_give_the_logits_of_the_whole(shape: dict, first: int) -> None:
    lm = build(**shape)
    codes = torch.randint(9, (3, K, 20))
    plain = with_target(
        codes, torch.tensor([20, 9, 14]), torch.tensor([6, 0, 3]), torch.tensor([13, 9, 10])
    )
    ends = torch.tensor([True, False, True])
    arrangement = Arrangement(codes, plain.lens, plain.begins, plain.ends, plain.scored_mask, ends)
    with torch.no_grad():
        score = lm.ar.score(arrangement)
        logits = stepwise(lm, arrangement, first=first)
    target = lm.ar.target(arrangement)
    parts = []
    for column, labels in enumerate(target.labels.unbind(1)):
        row, frame = (labels != -100).nonzero(as_tuple=True)
        step = target.layout.step_of[row, column, frame] - first
        known = step < 0  # ran before the first logits that come out
        whole = logits[row, column, step.clamp(min=0)]
        offset = sum(map(len, parts))
        parts.append(torch.where(known[:, None], score.logits[offset : offset + len(row)], whole))
    torch.testing.assert_close(torch.cat(parts), score.logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_greedy_codes_are_the_most_probable_ones_without_a_cache(shape: dict) -> None:
    lm = build(**shape)
    x, lens = prompts()
    y, y_lens = lm.inference(x, lens, 9, 0.0, stop_on_eos=False, return_lens=True)
    assert y_lens.tolist() == [9, 9, 9]
    with torch.no_grad():
        scores = lm(x, lens, y, y_lens)
    assert torch.equal(scores.ar.logits[:, :-1].argmax(1), scores.ar.labels)
    for score in scores.nar:
        assert torch.equal(score.logits.argmax(1), score.labels)


def test_lora_takes_part() -> None:
    lm = build()
    x, lens = prompts()
    before = lm.inference(x, lens, 9, 0.0, stop_on_eos=False)
    add_lora(lm, {"r": 4, "lora_alpha": 64, "target_modules": ["qkv_proj", "up_proj"]})
    for name, weight in lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    after, y_lens = lm.inference(x, lens, 9, 0.0, stop_on_eos=False, return_lens=True)
    assert not torch.equal(before, after)
    with torch.no_grad():
        scores = lm(x, lens, after, y_lens)
    assert torch.equal(scores.ar.logits[:, :-1].argmax(1), scores.ar.labels)


# -- a batch is its rows ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_row_is_what_it_is_alone(shape: dict) -> None:
    lm = build(**shape)
    x, lens = prompts()
    settings = {"nar_temperature": 0.7, "top_p": 0.95, "repetition_window": 5}
    many, many_lens = lm.inference(x, lens, 10, seeds=[7, 8, 9], return_lens=True, **settings)
    for row, length in enumerate(lens.tolist()):
        one, one_lens = lm.inference(
            x[row : row + 1, :length],
            lens[row : row + 1],
            10,
            seeds=7 + row,
            return_lens=True,
            **settings,
        )
        assert one_lens.tolist() == [int(many_lens[row])]
        assert torch.equal(one[0], many[row, : int(one_lens)])
        assert not many[row, int(one_lens) :].any()


def test_seeds_decide() -> None:
    lm = build()
    x, lens = prompts()
    first = lm.inference(x, lens, 12, seeds=3, stop_on_eos=False)
    assert torch.equal(first, lm.inference(x, lens, 12, seeds=[3, 4, 5], stop_on_eos=False))
    assert not torch.equal(first, lm.inference(x, lens, 12, seeds=4, stop_on_eos=False))


def test_the_temperature_is_that_of_the_first_half() -> None:
    lm = build()
    x, lens = prompts()
    y, y_lens = lm.inference(x, lens, 9, 2.0, seeds=0, stop_on_eos=False, return_lens=True)
    with torch.no_grad():
        scores = lm(x, lens, y, y_lens)
    assert not torch.equal(scores.ar.logits[:, :-1].argmax(1), scores.ar.labels)
    assert all(torch.equal(score.logits.argmax(1), score.labels) for score in scores.nar)
    other = lm.inference(x, lens, 9, 2.0, seeds=0, stop_on_eos=False, nar_temperature=5.0)
    assert torch.equal(other[..., 0], y[..., 0])
    assert not torch.equal(other, y)


# -- ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "shortest"), [(1, 5), (2, 6), (4, 8)])
def test_rows_end_where_the_model_ends_them(group: int, shortest: int) -> None:
    lm = build(ar_group=group)
    lm.ar.logit_bias[0, SIZE] += 100
    x, lens = prompts()
    y, y_lens = lm.inference(x, lens, 9, return_lens=True)
    assert y.shape == (3, 0, K)
    assert y_lens.tolist() == [0, 0, 0]
    y = lm.inference(x, lens, 9, min_new_tokens=5)
    assert y.shape == (3, shortest, K)
    assert lm.inference(x, lens, 7, stop_on_eos=False).shape == (3, 7, K)


def test_a_row_may_end_inside_of_a_step() -> None:
    lm = build(ar_group=4)
    lm.ar.logit_bias[:2, SIZE] = -torch.inf
    lm.ar.logit_bias[2, SIZE] += 100
    x, lens = prompts()
    y, y_lens = lm.inference(x, lens, 9, return_lens=True)
    assert y_lens.tolist() == [2, 2, 2]
    assert y.shape == (3, 2, K)


def test_rows_end_by_themselves() -> None:
    lm = build()
    lm.ar.logit_bias[0, SIZE] += 2
    x, lens = prompts()
    y, y_lens = lm.inference(x, lens, 60, seeds=0, return_lens=True)
    assert len(set(y_lens.tolist())) == 3
    assert y.shape[1] == int(y_lens.max()) < 60
    assert build(predict_eos=False).inference(x, lens, 60, seeds=0).shape == (3, 60, K)


def test_the_prompt_may_be_given_back() -> None:
    lm = build()
    x, lens = prompts()
    new = lm.inference(x, lens, 6, seeds=0, stop_on_eos=False)
    both, both_lens = lm.inference(
        x, lens, 6, seeds=0, stop_on_eos=False, return_prompt=True, return_lens=True
    )
    assert both_lens.tolist() == [17, 10, 6]
    for row, length in enumerate(lens.tolist()):
        assert torch.equal(both[row, :length], x[row, :length])
        assert torch.equal(both[row, length : length + 6], new[row])


# -- conditions ---------------------------------------------------------------------------------


def test_guidance_of_1_is_none_and_of_0_is_without_conditions() -> None:
    lm = build(condition_dim=5)
    for half in (lm.ar, lm.nar):
        for name, weight in half.named_parameters():
            if "modulation" in name:
                torch.nn.init.normal_(weight, std=0.5)
    x, lens = prompts()
    condition = torch.randn(3, 5)

    def made(condition: Tensor | None, scale: float = 1.0) -> Tensor:
        settings = {"condition": condition, "guidance_scale": scale, "stop_on_eos": False}
        return lm.inference(x, lens, 8, 0.0, **settings)

    plain = made(condition)
    assert torch.equal(made(condition, 1.0), plain)
    assert torch.equal(made(condition, 0.0), made(torch.zeros(3, 5)))
    assert not torch.equal(made(condition, 4.0), plain)


def test_guided_logits_are_the_weighted_sum_over_the_variants() -> None:
    lm = build(condition_dim=5)
    torch.nn.init.normal_(lm.ar.transformer.layers[0].modulation.proj.weight)
    codes = torch.randint(9, (2, K, 12))
    arrangement = with_target(codes, torch.tensor([12, 8]), torch.tensor([5, 1]))
    condition, nothing = torch.randn(2, 5), torch.zeros(2, 5)
    with torch.no_grad():
        ours = stepwise(lm, arrangement, variants=[(nothing, -2.0), (condition, 3.0)])
        parts = [stepwise(lm, arrangement, variants=[(part, 1.0)]) for part in (nothing, condition)]
    expected = parts[0] * -2 + parts[1] * 3
    valid = expected.isfinite()
    torch.testing.assert_close(ours[valid], expected[valid], atol=1e-4, rtol=0)


# -- the generator ------------------------------------------------------------------------------


def request(**changes: Any) -> CodesRequest:
    x, lens = prompts()
    right = torch.randint(9, (3, K, 7), generator=torch.Generator().manual_seed(5))
    values: dict[str, Any] = {
        "left": x.transpose(1, 2),
        "left_lens": lens,
        "right": right,
        "right_lens": torch.tensor([7, 3, 5]),
        "max_frames": torch.tensor([6, 8, 5]),
        "seeds": [0, 1, 2],
        "variants": [(None, 1.0)],
        "exact": True,
    }
    return CodesRequest(**{**values, **changes})


def onward(*frames: int) -> CodesRequest:
    x, lens = prompts()
    return CodesRequest.onward(
        x.transpose(1, 2),
        lens,
        max_frames=torch.tensor(frames),
        seeds=[0, 1, 2],
        variants=[(None, 1.0)],
    )


def generator_of(lm: AudioLM, **changes: Any) -> CodesGenerator:
    sampling = SamplingSettings(**{"top_k": 0, **changes.pop("sampling", {})})
    return CodesGenerator(lm, sampling=sampling, **changes)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_lies_between_is_the_most_probable_one_without_a_cache(shape: dict) -> None:
    lm = build(**shape)
    wanted = request()
    made = generator_of(lm, sampling={"temperature": 0.0}).generate(wanted)
    assert torch.equal(made.lens, wanted.max_frames)
    ends = wanted.left_lens + made.lens
    lens = ends + wanted.right_lens
    codes = torch.zeros(3, K, int(lens.max()), dtype=torch.long)
    for row in range(3):
        begin, end = int(wanted.left_lens[row]), int(ends[row])
        codes[row, :, :begin] = wanted.left[row, :, :begin]
        codes[row, :, begin:end] = made.codes[row, :, : end - begin]
        codes[row, :, end : int(lens[row])] = wanted.right[row, :, : int(lens[row]) - end]
    arrangement = with_target(codes, lens, wanted.left_lens, ends)
    with torch.no_grad():
        score = lm.ar.score(arrangement)
        assert torch.equal(score.logits[:, :-1].argmax(1), score.labels)
        for stage in [] if lm.nar is None else lm.nar.stages:
            score = lm.nar.score(arrangement, stage)
            assert torch.equal(score.logits.argmax(1), score.labels)


@pytest.mark.parametrize("shape", [{}, {"ar_group": 4}, {"ar_quantizers": K}], ids=str)
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_a_stream_is_the_whole(shape: dict, chunk: int) -> None:
    lm = build(**shape)
    lm.ar.logit_bias[: lm.ar_group, SIZE] += 2
    generator = generator_of(lm, chunk_frames=chunk, nar_temperature=0.5)
    wanted = onward(20, 8, 17)
    made = generator.generate(wanted)
    pieces = list(generator.stream(wanted))
    assert all(codes.shape[2] <= chunk for codes, _ in pieces)
    for row in range(3):
        joined = torch.cat([codes[row, :, : int(lens[row])] for codes, lens in pieces], dim=1)
        assert torch.equal(joined, made.codes[row, :, : int(made.lens[row])])


def test_the_second_half_sees_finished_chunks_with_all_quantizers() -> None:
    lm, wanted = build(), onward(8, 8, 8)
    greedy = {"sampling": {"temperature": 0.0}, "stop_on_eos": False}
    made = generator_of(lm, chunk_frames=4, **greedy).generate(wanted)
    for row, length in enumerate(wanted.left_lens.tolist()):
        left = torch.cat((wanted.left[row, :, :length], made.codes[row, :, :4]), dim=1)
        codes = torch.cat((left, made.codes[row, :, 4:]), dim=1)[None]
        begin = torch.tensor([length + 4])
        arrangement = with_target(codes, begin + 4, begin)
        with torch.no_grad():
            for stage in lm.nar.stages:
                score = lm.nar.score(arrangement, stage)
                assert torch.equal(score.logits.argmax(1), score.labels)


def test_the_best_candidate_is_taken_and_can_be_made_again() -> None:
    lm = build()
    wanted, generator = request(), generator_of(lm, nar_temperature=0.5)
    made = generator.generate(wanted, num_candidates=4)
    assert made.candidate_seeds[:, 0].tolist() == wanted.seeds
    assert torch.equal(made.best, made.candidate_log_probs.argmax(1))
    assert made.best.any()
    again = request(seeds=made.candidate_seeds.gather(1, made.best[:, None])[:, 0].tolist())
    alone = generator.generate(again)
    assert torch.equal(alone.codes, made.codes)
    torch.testing.assert_close(
        alone.candidate_log_probs[:, 0], made.candidate_log_probs.amax(1), atol=1e-5, rtol=0
    )


def test_candidates_that_end_at_once_lose() -> None:
    lm = build()
    lm.ar.logit_bias[0, SIZE] += 3
    wanted = CodesRequest(**{**vars(request()), "exact": False})
    made = generator_of(lm).generate(wanted, num_candidates=12)
    assert made.candidate_log_probs.isinf().any()
    assert (made.lens > 0).all()


def test_the_mean_log_probability_is_that_of_the_codes() -> None:
    lm = build(ar_quantizers=2)
    made = generator_of(lm, stop_on_eos=False).generate(onward(6, 6, 6))
    with torch.no_grad():
        score = lm(*prompts(), made.codes.transpose(1, 2), made.lens).ar
    log_probs = score.logits.log_softmax(1).gather(1, score.labels[:, None])
    expected = log_probs.view(2, 3, 6).mean((0, 2))
    torch.testing.assert_close(made.candidate_log_probs[:, 0], expected, atol=1e-5, rtol=0)


# -- borders ------------------------------------------------------------------------------------


def test_generation_leaves_no_trace() -> None:
    lm = build().train()
    lm.nar.eval()
    x, lens = prompts()
    y = lm.inference(x, lens, 4, seeds=0, stop_on_eos=False)
    assert lm.training
    assert lm.ar.training
    assert not lm.nar.training
    assert not y.requires_grad
    assert torch.equal(y, lm.eval().inference(x, lens, 4, seeds=0, stop_on_eos=False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` must be at least 1, but is 0"),
        ({"temperature": -1.0}, "`temperature` must be finite and at least 0, but is -1.0"),
        ({"seeds": [1, 2]}, "`seeds` must have one entry for each of 3 rows, but has 2"),
        ({"x": torch.zeros(3, 5, 2, dtype=torch.long)}, "`x` must have 4 quantizers, but has 2"),
        ({"x": torch.full((3, 11, K), SIZE)}, "must hold codes from 0 to 15 for quantizer 0"),
    ],
)
def test_wrong_values_are_refused(changes: dict[str, Any], message: str) -> None:
    x, x_lens = prompts()
    with pytest.raises(ValueError, match=message):
        build().inference(**{"x": x, "x_lens": x_lens, "max_new_tokens": 4, **changes})
