"""The step decoder gives what the transformer gives, in both of its forms."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from whalesong.modules.attention import prompt_target_mask
from whalesong.modules.generation import packed_linear
from whalesong.modules.generation.decoder import StepDecoder
from whalesong.modules.generation.packed_linear import effective_weight, pack_linear
from whalesong.modules.lora import add_lora
from whalesong.modules.transformer import Transformer

WIDTH, MEMORY, CONDITION = 32, 12, 5

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"ff_bias": True, "attention_bias": True},
    "rotary": {"rotary_dim": 4, "norm": "rms_norm", "activation": "swiglu"},
    "sinusoidal": {"positions": "sinusoidal", "memory_dim": MEMORY},
    "learned": {"positions": "learned", "max_positions": 32, "layer_scale": True},
    "memory": {"memory_dim": MEMORY, "num_memory_layers": 1, "layer_scale": True},
    "everything": {
        "memory_dim": MEMORY,
        "condition_dim": CONDITION,
        "rotary_dim": 8,
        "attention_bias": True,
        "ff_bias": True,
        "layer_scale": True,
        "qk_norm": "layer",
    },
    "condition": {"condition_dim": CONDITION, "qk_norm": "l2", "head_dim": 16, "rotary_dim": 6},
}


def build(**fields: Any) -> Transformer:
    """A transformer whose parameters are all random: no branch starts at the identity."""
    torch.manual_seed(0)
    transformer = Transformer(d_model=WIDTH, num_layers=2, num_heads=4, **fields).eval()
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return transformer


def conditions(fields: dict[str, Any], rows: int, times: int = 1) -> dict[str, Tensor]:
    """A memory of which one row is empty, and a global condition, where there are any."""
    given = {}
    if "memory_dim" in fields:
        keep = torch.tensor([[True, True, False, True], [True] * 4, [False] * 4])
        mask = keep[:rows].repeat(1, times)
        given |= {"memory": torch.randn(*mask.shape, MEMORY), "memory_mask": mask}
    if "condition_dim" in fields:
        given["condition"] = torch.randn(rows, CONDITION)
    return given


def close(given: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(given, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("static", [False, True], ids=["sliced", "static"])
@pytest.mark.parametrize("padding", [None, [2, 0, 1]], ids=["full rows", "left padding"])
@torch.no_grad()
def test_steps_equal_the_whole(
    kind: str, rows: int, static: bool, padding: list[int] | None
) -> None:
    transformer = build(**KINDS[kind])
    x, given = torch.randn(rows, 8, WIDTH), conditions(KINDS[kind], rows)
    keep = torch.arange(8) >= torch.tensor((padding or [0, 0, 0])[:rows])[:, None]
    whole = transformer(x, mask=keep if padding else None, **given)
    cache = transformer.init_cache(rows, 9, **given)
    transformer(x[:, :3], mask=keep[:, :3] if padding else None, cache=cache)
    decoder = StepDecoder(transformer, num_rows=rows)
    steps = decoder.begin(cache, static=static)
    out = torch.stack([decoder.step(x[:, at], steps) for at in range(3, 8)], dim=1)
    close(out, whole[:, 3:])
    assert cache.length == 8


@pytest.mark.parametrize("kind", ["rotary", "sinusoidal", "learned", "everything"])
@pytest.mark.parametrize("static", [False, True], ids=["sliced", "static"])
@pytest.mark.parametrize("lens", [[3, 3, 3], [3, 1, 0]], ids=["full rows", "left padding"])
@pytest.mark.parametrize("first", ["restart", "alike", "later"])
@torch.no_grad()
def test_steps_count_on_from_given_positions(
    kind: str, static: bool, lens: list[int], first: str
) -> None:
    """A prompt that sees itself whole, then a target whose positions do not follow from it."""
    transformer, x = build(**KINDS[kind]), torch.randn(3, 9, WIDTH)
    given = conditions(KINDS[kind], 3)
    slots, prompt_lens = torch.arange(9), torch.tensor(lens)
    keep = slots >= 3 - prompt_lens[:, None]
    is_prompt = (slots < 3).expand(3, -1)
    seen = prompt_target_mask(is_prompt, keep, causal_target=True)
    starts = {
        "restart": prompt_lens * 0,
        "alike": prompt_lens * 0 + 2,
        "later": prompt_lens * 2 + 4,
    }
    in_prompt = (slots - 3 + prompt_lens[:, None]).clamp(min=0)
    positions = torch.where(is_prompt, in_prompt, slots - 3 + starts[first][:, None])
    whole = transformer(x, seen=seen, positions=positions, **given)
    cache = transformer.init_cache(3, 9, **given)
    transformer(
        x[:, :4],
        mask=keep[:, :4] if len(set(lens)) > 1 else None,
        seen=seen[:, :, :4, :4],
        positions=positions[:, :4],
        cache=cache,
    )
    decoder = StepDecoder(transformer, num_rows=3)
    steps = decoder.begin(cache, static=static)
    out = torch.stack([decoder.step(x[:, at], steps) for at in range(4, 9)], dim=1)
    torch.testing.assert_close(out, whole[:, 4:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_a_long_memory_and_one_without_mask(rows: int, masked: bool) -> None:
    fields = {"memory_dim": MEMORY, "attention_bias": True, "layer_scale": True}
    transformer, x = build(**fields), torch.randn(rows, 6, WIDTH)
    for times in (1, 5):
        given = conditions(fields, rows, times)
        if not masked:
            del given["memory_mask"]
        cache = transformer.init_cache(rows, 6, **given)
        transformer(x[:, :2], cache=cache)
        decoder = StepDecoder(transformer, num_rows=rows)
        steps = decoder.begin(cache)
        out = torch.stack([decoder.step(x[:, at], steps) for at in range(2, 6)], dim=1)
        close(out, transformer(x, **given)[:, 2:])


@torch.no_grad()
def test_what_lies_in_an_unused_buffer_does_not_matter() -> None:
    transformer, x = build(rotary_dim=8), torch.randn(2, 5, WIDTH)
    outs = []
    for fill in (0.0, 1e4):
        cache = transformer.init_cache(2, 6)
        cache.buffer.fill_(fill)
        transformer(x[:, :1], cache=cache)
        decoder = StepDecoder(transformer, num_rows=2)
        steps = decoder.begin(cache, static=True)
        outs.append(torch.stack([decoder.step(x[:, at], steps) for at in range(1, 5)]))
    assert torch.equal(*outs)


@pytest.mark.parametrize(
    ("weight_dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2), ("int8", 3e-2)]
)
@torch.no_grad()
def test_short_weights_are_near(weight_dtype: Any, tolerance: float) -> None:
    linear, x, residual = nn.Linear(64, 48), torch.randn(2, 64), torch.randn(2, 48)
    packed = pack_linear(linear, num_rows=2, weight_dtype=weight_dtype)
    error = (packed(x) - linear(x)).norm() / linear(x).norm()
    assert 0 < float(error) < tolerance
    close(packed.add_to(residual, x), residual + packed(x))


@pytest.mark.parametrize("available", [packed_linear.IntegerLinear.is_available(), False])
@torch.no_grad()
def test_large_weights_in_8_bits_keep_rows_apart(
    available: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_linear, "LARGE", 1)
    monkeypatch.setattr(packed_linear.IntegerLinear, "is_available", lambda: available)
    engine, linear = torch.backends.quantized.engine, nn.Linear(64, 48)
    packed = pack_linear(linear, num_rows=4, weight_dtype="int8")
    assert type(packed).__name__ == ("IntegerLinear" if available else "ByteLinear")
    assert torch.backends.quantized.engine == engine
    x = torch.randn(4, 64) * torch.tensor([1.0, 1e-4, 1e4, 0.0])[:, None]
    for row, expected in enumerate(linear(x)):
        given = packed(x[row : row + 1])
        assert torch.equal(packed(x)[row], given[0])
        assert float((given - expected).norm() / expected.norm()) < (0.008 if available else 0.012)
    close(packed.add_to(expected.expand(4, -1), x), expected + packed(x))


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_every_layout_keeps_a_linear_layer(
    rows: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear, x, residual = nn.Linear(24, 40, bias=bias), torch.randn(rows, 24), torch.randn(rows, 40)
    scale = torch.rand(40)
    for large in (1, 10**6):
        monkeypatch.setattr(packed_linear, "LARGE", large)
        for copy in (True, False):
            packed = pack_linear(linear, num_rows=rows, scale=scale, copy_large=copy)
            close(packed(x), linear(x) * scale)
            close(packed.add_to(residual, x), residual + linear(x) * scale)


@pytest.mark.parametrize("merged", [False, True])
@torch.no_grad()
def test_lora_is_part_of_a_packed_weight(merged: bool) -> None:
    model = add_lora(nn.Sequential(nn.Linear(8, 6)), {"target_modules": ["0"], "r": 2})
    model[0].lora_B["default"].weight.normal_()
    x = torch.randn(2, 8)
    expected = model(x)
    if merged:
        model[0].merge()
    assert not torch.equal(effective_weight(model[0])[0], model[0].weight) or merged
    close(pack_linear(model[0], num_rows=2)(x), expected)


@torch.no_grad()
def test_a_full_cache_is_named() -> None:
    transformer = build()
    decoder, cache = StepDecoder(transformer, num_rows=1), transformer.init_cache(1, 1)
    steps = decoder.begin(cache)
    decoder.step(torch.randn(1, WIDTH), steps)
    with pytest.raises(ValueError, match="must be at least 2, but is 1"):
        decoder.step(torch.randn(1, WIDTH), steps)
