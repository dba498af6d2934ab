"""AudioLM as a plain module: its masks, its alignment, and what a batch may not change."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from whalesong.models.audiolm import AudioLM
from whalesong.models.audiolm.ar import IGNORED
from whalesong.models.audiolm.arrangement import Arrangement, arrange, with_target

SIZE = 24
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two frames a step": {"ar_group": 2},
    "three quantizers a step": {"ar_quantizers": 3},
    "two delayed quantizers": {"ar_quantizers": 2, "ar_pattern": "delayed"},
    "two quantizers of two frames": {"ar_quantizers": 2, "ar_group": 2},
    "autoregressive only": {"ar_quantizers": 4},
    "sinusoidal, restarting": {"positions": "sinusoidal", "position_mode": "restart"},
    "causal prompt": {"prompt_attention": "causal"},
    "own sizes": {"codebook_size": [24, 16, 20, 8], "nar": {"d_model": 24, "num_layers": 1}},
}


def build(num_layers: int = 2, **options: Any) -> AudioLM:
    torch.manual_seed(0)
    model = AudioLM(32, 4, num_layers, 4, **{"codebook_size": SIZE, **options}).eval()
    for parameter in model.parameters():  # so that adaLN and heads say something
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def random_codes(model: AudioLM, rows: int, frames: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(rows, 4, frames, generator=generator)
    return (noise * torch.tensor(model.codebook_sizes)[:, None]).long()


def one_row(model: AudioLM, prompt: int = 6, target: int = 6, seed: int = 1) -> Arrangement:
    codes = random_codes(model, 1, prompt + target, seed)
    return with_target(codes, torch.tensor([prompt + target]), torch.tensor([prompt]))


def infill_row(model: AudioLM) -> Arrangement:
    """Frames 4 to 9 between a prompt on both sides."""
    codes = random_codes(model, 1, 13)
    return with_target(codes, torch.tensor([13]), torch.tensor([4]), torch.tensor([9]))


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda name: name.replace(" ", "-"))
def model(request: pytest.FixtureRequest) -> AudioLM:
    return build(**VARIANTS[request.param])


# -- what sees what -----------------------------------------------------------------------------


def changed(arrangement: Arrangement, quantizer: int, frame: int, size: int) -> Arrangement:
    codes = arrangement.codes.clone()
    codes[0, quantizer, frame] = (codes[0, quantizer, frame] + 1) % size
    return with_target(codes, arrangement.lens, arrangement.begins, arrangement.ends)


def moved(before: Tensor, after: Tensor) -> list[int]:
    change = before.nan_to_num(neginf=0.0) - after.nan_to_num(neginf=0.0)
    return (change.abs().amax(-1) > 1e-6).nonzero().flatten().tolist()


@pytest.mark.parametrize("arrange_row", [one_row, infill_row])
@pytest.mark.parametrize("prompt_attention", ["bidirectional", "causal"])
def test_a_code_moves_exactly_the_predictions_of_later_frames(
    arrange_row: Any, prompt_attention: str
) -> None:
    model = build(prompt_attention=prompt_attention)
    row = arrange_row(model)
    begin, end = int(row.begins), int(row.ends)
    before = model.ar.score(row).logits
    for frame in range(row.codes.shape[2]):
        after = model.ar.score(changed(row, 0, frame, SIZE)).logits
        in_target = begin <= frame < end
        first = frame - begin + 1 if in_target else 0
        assert moved(before, after) == list(range(first, end - begin)), frame


def test_the_autoregressive_half_reads_all_quantizers_of_the_prompt_and_its_own_of_the_target() -> (
    None
):
    model = build()
    row = one_row(model)
    before = model.ar.score(row).logits
    for quantizer in range(1, 4):
        assert moved(before, model.ar.score(changed(row, quantizer, 2, SIZE)).logits)
        assert not moved(before, model.ar.score(changed(row, quantizer, 8, SIZE)).logits)


def reach(transformer: torch.nn.Module, call: Callable[[], Any]) -> list[list[int]]:
    """For each slot of a transformer's input, the slots of its output that a change of it moves."""

    def run(slot: int | None) -> Tensor:
        outputs: list[Tensor] = []

        def add(module: Any, args: tuple[Tensor], kwargs: Any) -> Any:
            x = args[0].clone()
            if slot is not None:
                x[:, slot] += torch.linspace(-1, 1, x.shape[2])
            return (x,), kwargs

        hooks = [
            transformer.register_forward_pre_hook(add, with_kwargs=True),
            transformer.register_forward_hook(lambda m, a, out: outputs.append(out)),
        ]
        try:
            call()
        finally:
            for hook in hooks:
                hook.remove()
        return outputs[0][0]

    plain = run(None)
    return [moved(plain, run(slot)) for slot in range(len(plain))]


def test_masks_are_the_two_tables_of_the_specification() -> None:
    """P1 P2 P3 see P1 P2 P3 and nothing else; T1 T2 T3 see the prompt and, in the first half, the
    targets up to themselves; in the second all. The separator is the first step of the target."""
    model = build(num_layers=1)
    row = one_row(model, prompt=3, target=3)
    ar = reach(model.ar.transformer, lambda: model.ar.score(row))
    assert ar == [[0, 1, 2, 3, 4, 5]] * 3 + [[3, 4, 5], [4, 5], [5]]
    nar = reach(model.nar.transformer, lambda: model.nar.hidden(row, 1))
    assert nar == [[0, 1, 2, 3, 4, 5]] * 3 + [[3, 4, 5]] * 3


def test_a_stage_reads_the_quantizers_below_it_and_all_of_the_prompt() -> None:
    model = build()
    row = one_row(model)
    for stage in model.nar.stages:
        before = model.nar.logits(row, stage)[0]
        for quantizer in range(4):
            in_prompt = changed(row, quantizer, 2, SIZE)
            assert moved(before, model.nar.logits(in_prompt, stage)[0]) == list(range(12))
            in_target = changed(row, quantizer, 8, SIZE)
            reached = moved(before, model.nar.logits(in_target, stage)[0])
            assert reached == (list(range(6, 12)) if quantizer < stage else [])


def test_delayed_quantizers_see_the_ones_before_them_in_the_same_frame() -> None:
    model = build(ar_quantizers=2, ar_pattern="delayed")
    row = one_row(model)
    before = model.ar.score(row).logits.unflatten(0, (2, 6))
    after = model.ar.score(changed(row, 0, 8, SIZE)).logits.unflatten(0, (2, 6))
    assert moved(before[0], after[0]) == [3, 4, 5]
    assert moved(before[1], after[1]) == [2, 3, 4, 5]


# -- where it starts ----------------------------------------------------------------------------


@pytest.mark.parametrize("width", [32, 256])
def test_every_head_starts_near_the_uniform_distribution(width: int) -> None:
    torch.manual_seed(0)
    model = AudioLM(width, 4, 2, 4, codebook_size=256).eval()
    codes = torch.randint(256, (4, 60, 4))
    lens = torch.full((4,), 60)
    out = model(codes[:, :20], lens - 40, codes[:, 20:], lens - 20)
    for score in [out.ar, *out.nar]:
        assert abs(cross_entropy(score.logits, score.labels).item() - math.log(256)) < 0.7


def test_stages_start_as_the_identity() -> None:
    torch.manual_seed(0)
    model = AudioLM(32, 4, 2, 4, codebook_size=SIZE).eval()
    row = one_row(model)
    with torch.no_grad():
        before = model.nar.hidden(row, 1)
        for vector in model.nar.stage_vectors:
            vector.add_(1.0)
        assert torch.equal(model.nar.hidden(row, 1), before)


def test_halves_share_no_parameter_and_only_the_second_ties_its_heads(model: AudioLM) -> None:
    ar = {id(parameter) for parameter in model.ar.parameters()}
    nar = set() if model.nar is None else {id(p) for p in model.nar.parameters()}
    assert not ar & nar
    assert len(ar) + len(nar) == len(list(model.parameters()))
    if model.nar is not None:
        assert not [name for name, _ in model.nar.named_parameters() if "head" in name]


def test_ids_beyond_a_quantizers_size_are_impossible() -> None:
    model = build(codebook_size=[24, 16, 20, 8])
    row = one_row(model)
    assert model.ar.score(row).logits[:, :24].isfinite().all()
    for stage, size in ((1, 16), (2, 20), (3, 8)):
        probs = model.nar.logits(row, stage).softmax(-1)
        assert not probs[..., size:].any()
        assert probs[..., :size].all()


# -- batches ------------------------------------------------------------------------------------


def ragged(model: AudioLM, rows: int = 3) -> dict[str, Tensor]:
    codes = random_codes(model, rows, 17)
    lens = torch.tensor([17, 11, 14])[:rows]
    spans = torch.tensor([[7, 17], [3, 8], [0, 14]])[:rows]
    copied = torch.zeros(rows, 2, dtype=torch.long)
    closes = torch.tensor([True, False, True])[:rows]
    return {
        "codes": codes,
        "codes_lens": lens,
        "target_span": spans,
        "copied_span": copied,
        "closes": closes,
    }


def rows_of(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    rows = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(3)]
    for row in rows:
        row["codes"] = row["codes"][:, :, : int(row["codes_lens"])]
    return rows


def losses(model: AudioLM, batch: dict[str, Tensor]) -> list[Tensor]:
    arrangement = arrange(batch)
    scores = [model.ar.score(arrangement)]
    scores += [] if model.nar is None else [model.nar.score(arrangement, s) for s in (3,)]
    return [cross_entropy(s.logits, s.labels, reduction="sum") for s in scores]


def test_a_batch_sums_what_its_rows_give_alone(model: AudioLM) -> None:
    batch = ragged(model)
    alone = [losses(model, row) for row in rows_of(batch)]
    for whole, *parts in zip(losses(model, batch), *alone, strict=True):
        torch.testing.assert_close(whole, sum(parts), rtol=1e-5, atol=1e-5)


def test_padding_changes_nothing(model: AudioLM) -> None:
    batch = ragged(model)
    padded = {**batch, "codes": torch.nn.functional.pad(batch["codes"], (0, 9), value=3)}
    for plain, wide in zip(losses(model, batch), losses(model, padded), strict=True):
        torch.testing.assert_close(plain, wide, rtol=1e-5, atol=1e-5)


def test_a_stage_for_each_row_is_each_stage_alone() -> None:
    model = build()
    batch = ragged(model)
    stages = torch.tensor([3, 1, 3])
    mixed = model.nar.score(arrange(batch), stages)
    total = cross_entropy(mixed.logits, mixed.labels, reduction="sum")
    parts = 0.0
    for row, stage in zip(rows_of(batch), stages.tolist(), strict=True):
        score = model.nar.score(arrange(row), stage)
        parts = parts + cross_entropy(score.logits, score.labels, reduction="sum")
    torch.testing.assert_close(total, parts, rtol=1e-5, atol=1e-5)


def test_no_rows_give_no_labels_and_finite_zero_gradients() -> None:
    model = build().train()
    nothing = {
        "codes": torch.zeros(1, 4, 0, dtype=torch.long),
        "codes_lens": torch.zeros(1, dtype=torch.long),
        "target_span": torch.zeros(1, 2, dtype=torch.long),
        "copied_span": torch.zeros(1, 2, dtype=torch.long),
        "closes": torch.zeros(1, dtype=torch.bool),
    }
    scores = [model.ar.score(arrange(nothing)), model.nar.score(arrange(nothing), 2)]
    assert [len(score.labels) for score in scores] == [0, 0]
    sum(score.logits.sum() for score in scores).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


# -- what is learned ----------------------------------------------------------------------------


def test_each_code_of_the_target_is_learned_once(model: AudioLM) -> None:
    batch = ragged(model)
    arrangement = arrange(batch)
    frames = int(arrangement.target_lens.sum())
    score = model.ar.score(arrangement)
    codes = score.labels != model.codebook_size
    assert codes.sum() == frames * model.ar_quantizers
    assert (~codes).sum() == 2  # the two recordings that end
    assert (score.quantizers[~codes] == 0).all()
    if model.nar is not None:
        assert len(model.nar.score(arrangement, 3).labels) == frames


def test_a_label_is_the_code_of_its_frame(model: AudioLM) -> None:
    row = one_row(model, prompt=5, target=7)
    target = model.ar.target(row)
    frames = model.ar.from_columns(target.labels)
    codes = row.codes[:, : model.ar_quantizers, 5:]
    assert torch.equal(frames[:, :, :7], codes)
    assert (frames[:, :, 7:] == IGNORED).all()


def test_the_end_follows_the_last_frame(model: AudioLM) -> None:
    for length in (5, 6, 7, 8):
        row = one_row(model, prompt=5, target=length)
        closed = Arrangement(
            row.codes, row.lens, row.begins, row.ends, row.scored_mask, torch.tensor([True])
        )
        frames = model.ar.from_columns(model.ar.target(closed).labels)
        assert frames[0, 0, length] == model.codebook_size
        assert (frames == model.codebook_size).sum() == 1


def test_without_ends_the_end_is_impossible() -> None:
    model = build(predict_eos=False)
    assert (model.ar.score(one_row(model)).logits[:, SIZE] == -torch.inf).all()


# -- arrangements -------------------------------------------------------------------------------


def test_a_copied_piece_stands_in_front_and_is_not_learned() -> None:
    model = build()
    batch = ragged(model)
    batch["target_span"] = torch.stack([torch.zeros(3, dtype=torch.long), batch["codes_lens"]], 1)
    batch["copied_span"] = torch.tensor([[4, 9], [0, 3], [10, 14]])
    arrangement = arrange(batch)
    assert arrangement.lens.tolist() == [22, 14, 18]
    assert arrangement.begins.tolist() == [5, 3, 4]
    assert arrangement.scored_mask.sum(1).tolist() == [12, 8, 10]
    for row, (begin, end) in enumerate(batch["copied_span"].tolist()):
        length, clip = end - begin, batch["codes"][row]
        own = arrangement.codes[row, :, : int(arrangement.lens[row])]
        assert torch.equal(own[:, :length], clip[:, begin:end])
        assert torch.equal(own[:, length:], clip[:, : int(batch["codes_lens"][row])])
        learned = arrangement.scored_mask[row, length : length + int(batch["codes_lens"][row])]
        assert learned.nonzero().flatten().tolist() == [
            frame for frame in range(int(batch["codes_lens"][row])) if not begin <= frame < end
        ]


def test_a_prompt_from_elsewhere_stands_in_front() -> None:
    model = build()
    batch = ragged(model)
    batch["target_span"] = torch.stack([torch.zeros(3, dtype=torch.long), batch["codes_lens"]], 1)
    batch["prompt_codes"] = random_codes(model, 3, 6, seed=5)
    batch["prompt_codes_lens"] = torch.tensor([6, 2, 5])
    arrangement = arrange(batch)
    assert arrangement.prompt_lens.tolist() == [6, 2, 5]
    assert torch.equal(arrangement.codes[1, :, :2], batch["prompt_codes"][1, :, :2])
    assert torch.equal(arrangement.codes[1, :, 2:13], batch["codes"][1, :, :11])
    assert torch.equal(arrangement.scored_mask, arrangement.target_mask)


# -- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ar_quantizers": 5}, "`ar_quantizers` must be from 1 to `num_quantizers` (4), but is 5."),
        ({"codebook_size": [8, 8]}, "one for each of 4 quantizers, but has 2."),
        ({"ar_pattern": "delayed", "ar_group": 2}, "`ar_pattern` must be 'parallel'"),
        ({"nar": {"nhead": 5}}, "`nhead` must divide `d_model` (32), but is 5."),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        build(**options)
    assert message in str(error.value)


def test_codes_that_cannot_be_are_refused_with_their_place() -> None:
    model = build(codebook_size=[24, 16, 20, 8])
    codes, lens = torch.zeros(2, 5, 4, dtype=torch.long), torch.tensor([5, 3])
    wrong = codes.clone()
    wrong[1, 2, 3] = 9
    with pytest.raises(ValueError, match="`y` must hold codes from 0 to 7 for quantizer 3, but "
                                         "row 1 has 9 at frame 2"):  # fmt: skip
        model(codes, lens, wrong, lens)
    wrong[1, 4] = 99  # behind the end of the row
    wrong[1, 2, 3] = 0
    model(codes, lens, wrong, lens)
    with pytest.raises(ValueError, match="`x` must have 4 quantizers, but has 3"):
        model(codes[..., :3], lens, codes, lens)
