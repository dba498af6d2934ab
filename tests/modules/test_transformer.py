"""Laws of the transformer: cached = uncached, masks that hold, conditions in every block."""

from typing import Any

import pytest
import torch
from torch import Tensor

from whalesong.modules.attention import prompt_target_mask, sequence_mask, visible
from whalesong.modules.embeddings import SinusoidalPositions
from whalesong.modules.transformer import Transformer

WIDTH, MEMORY, CONDITION = 32, 12, 5

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotary": {"rotary_dim": 8},
    "sinusoidal": {"positions": "sinusoidal"},
    "learned": {"positions": "learned", "max_positions": 32},
    "memory": {"memory_dim": MEMORY, "rotary_dim": 4},
    "some layers attend to the memory": {"memory_dim": MEMORY, "num_memory_layers": 1},
    "condition": {"condition_dim": CONDITION, "rotary_dim": 8},
    "memory and condition": {"memory_dim": MEMORY, "condition_dim": CONDITION},
    "gated": {"activation": "swiglu", "norm": "rms_norm", "ff_bias": True, "layer_scale": True},
    "layer norm of heads": {"qk_norm": "layer", "rotary_dim": 8, "memory_dim": MEMORY},
    "unit norm of heads": {"qk_norm": "l2", "attention_bias": True, "memory_dim": MEMORY},
    "wide heads": {"head_dim": 24, "rotary_dim": 16, "ff_dim": 20, "norm_bias": False},
}
CAUSAL_KINDS = KINDS | {
    "window": {"window": 3, "rotary_dim": 8},
    "window of one": {"window": 1, "memory_dim": MEMORY},
}


def build(**fields: Any) -> Transformer:
    """A transformer whose parameters are all random: no branch starts at the identity."""
    torch.manual_seed(0)
    transformer = Transformer(d_model=WIDTH, num_layers=2, num_heads=4, **fields).eval()
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return transformer


def conditions(fields: dict[str, Any], rows: int) -> dict[str, Tensor]:
    """A memory of which one row is empty, and a global condition, where there are any."""
    given = {}
    if "memory_dim" in fields:
        keep = torch.tensor([[True] * 6, [True, True, False, True, False, False], [False] * 6])
        given |= {"memory": torch.randn(rows, 6, MEMORY), "memory_mask": keep[:rows]}
    if "condition_dim" in fields:
        given["condition"] = torch.randn(rows, CONDITION)
    return given


def close(given: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(given, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", CAUSAL_KINDS)
@pytest.mark.parametrize("sizes", [[1] * 7, [3, 4], [4, 1, 2]], ids=str)
@pytest.mark.parametrize("padding", [None, [0, 2, 5]], ids=["full rows", "left padding"])
@torch.no_grad()
def test_cached_equals_uncached(kind: str, sizes: list[int], padding: list[int] | None) -> None:
    transformer = build(**CAUSAL_KINDS[kind])
    x, given = torch.randn(3, 7, WIDTH), conditions(CAUSAL_KINDS[kind], 3)
    keep = torch.arange(7) >= torch.tensor(padding or [0, 0, 0])[:, None]
    mask = keep if padding else None
    whole = transformer(x, mask=mask, **given)
    cache = transformer.init_cache(3, 7, **given)
    pieces, start = [], 0
    for size in sizes:
        # A step needs no mask once all rows have begun.
        piece = keep[:, start : start + size] if padding and start < 6 else None
        pieces.append(transformer(x[:, start : start + size], mask=piece, cache=cache))
        start += size
    close(torch.cat(pieces, dim=1)[keep], whole[keep])


@pytest.mark.parametrize("kind", CAUSAL_KINDS)
@torch.no_grad()
def test_selected_rows_of_a_cache_go_on_as_before(kind: str) -> None:
    transformer, rows = build(**CAUSAL_KINDS[kind]), torch.tensor([2, 0])
    x, given = torch.randn(3, 7, WIDTH), conditions(CAUSAL_KINDS[kind], 3)
    mask = torch.arange(7) >= torch.tensor([[0], [1], [3]])
    whole = transformer(x, mask=mask, **given)
    cache = transformer.init_cache(3, 7, **given)
    transformer(x[:, :4], mask=mask[:, :4], cache=cache)
    cache.select(rows)
    close(transformer(x[rows, 4:], cache=cache), whole[rows, 4:])


@pytest.mark.parametrize("kind", ["rotary", "sinusoidal", "learned"])
@torch.no_grad()
def test_given_masks_and_positions_replace_the_counted_ones(kind: str) -> None:
    transformer = build(**KINDS[kind])
    x, mask = torch.randn(2, 7, WIDTH), torch.arange(7) >= torch.tensor([[0], [3]])
    given = {
        "seen": sequence_mask(mask, causal=True),
        "positions": (torch.arange(7) - torch.tensor([[0], [3]])).clamp(min=0),
    }
    close(transformer(x, **given)[mask], transformer(x, mask=mask)[mask])


@pytest.mark.parametrize("kind", ["plain", "rotary", "sinusoidal", "learned"])
@pytest.mark.parametrize("restart", [False, True])
@torch.no_grad()
def test_cached_equals_uncached_behind_a_prompt_that_sees_itself(kind: str, restart: bool) -> None:
    """Rows of prompts of 4, 2 and 0 positions at the left of 5 positions of target."""
    transformer = build(**KINDS[kind])
    lens, index = torch.tensor([[4], [2], [0]]), torch.arange(9)
    x, mask = torch.randn(3, 9, WIDTH), index >= 4 - lens
    seen = prompt_target_mask(index.expand(3, -1) < 4, mask, causal_target=True)
    positions = (index - (4 - lens)).clamp(min=0)
    if restart:
        positions[:, 4:] = index[4:] - 4
    whole = transformer(x, seen=seen, positions=positions)
    cache = transformer.init_cache(3, 9)
    begin = slice(0, 5)
    pieces = [
        transformer(
            x[:, begin],
            mask=mask[:, begin],
            seen=seen[:, :, begin, begin],
            positions=positions[:, begin],
            cache=cache,
        )
    ]
    pieces += [transformer(x[:, step : step + 1], cache=cache) for step in range(5, 9)]
    close(torch.cat(pieces, dim=1)[mask], whole[mask])


def test_a_prompt_never_sees_its_target_and_is_seen_by_all_of_it() -> None:
    prompt = torch.tensor([[True, True, False, False, True, False]])
    mask = torch.tensor([[True, True, True, True, True, False]])
    both, causal = (
        prompt_target_mask(prompt, mask, causal_target=causal)[0, 0].int().tolist()
        for causal in (False, True)
    )
    assert both[:5] == [[1, 1, 0, 0, 1, 0]] * 2 + [[1, 1, 1, 1, 1, 0]] * 2 + [[1, 1, 0, 0, 1, 0]]
    assert causal[2:4] == [[1, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 0]]
    inward = prompt_target_mask(prompt, mask, causal_prompt=True, causal_target=True)[0, 0].int()
    assert inward.tolist()[:2] == [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("kind", "causal"),
    [(kind, True) for kind in CAUSAL_KINDS] + [(kind, False) for kind in KINDS],
)
@torch.no_grad()
def test_a_row_alone_equals_the_row_in_its_batch(kind: str, causal: bool) -> None:
    transformer = build(causal=causal, **CAUSAL_KINDS[kind])
    x, given = torch.randn(3, 7, WIDTH), conditions(CAUSAL_KINDS[kind], 3)
    for left in (True, False):
        lens = torch.tensor([7, 4, 1])
        index = torch.arange(7)
        mask = index >= 7 - lens[:, None] if left else index < lens[:, None]
        together = transformer(x, mask=mask, **given)
        assert together.isfinite().all()
        for row in range(3):
            alone = {name: value[row : row + 1] for name, value in given.items()}
            if "memory" in alone:
                keep = alone.pop("memory_mask")[0]
                alone["memory"] = alone["memory"][:, keep] if keep.any() else None
            close(together[row, mask[row]], transformer(x[row : row + 1, mask[row]], **alone)[0])


@torch.no_grad()
def test_what_a_memory_mask_hides_changes_nothing() -> None:
    fields = {"memory_dim": MEMORY, "attention_bias": True}
    transformer, x, given = build(**fields), torch.randn(3, 5, WIDTH), conditions(fields, 3)
    hidden = ~given["memory_mask"]
    changed = given | {"memory": given["memory"].masked_fill(hidden[..., None], 1e4)}
    assert torch.equal(transformer(x, **changed), transformer(x, **given))


@torch.no_grad()
def test_a_row_without_memory_gets_exactly_nothing_from_it() -> None:
    transformer = build(memory_dim=MEMORY, attention_bias=True)
    attention = transformer.layers[0].memory_attention
    mask = torch.tensor([[True, False], [False, False]])
    projected = attention.project(torch.randn(2, 2, MEMORY), mask)
    out = attention(torch.randn(2, 3, WIDTH), projected, visible(mask))
    assert out[0].abs().min() > 0 and (out[1] == 0).all()


@torch.no_grad()
def test_causal_attention_sees_no_future_and_all_of_the_memory() -> None:
    transformer = build(memory_dim=MEMORY, rotary_dim=8)
    x, memory = torch.randn(1, 6, WIDTH), torch.randn(1, 9, MEMORY)
    before = transformer(x, memory=memory)
    changed = x.clone()
    changed[:, 4] += 1
    assert torch.equal(transformer(changed, memory=memory)[:, :4], before[:, :4])
    memory[:, 8] += 1
    assert ((transformer(x, memory=memory) - before).abs().amax(dim=-1) > 1e-3).all()


def test_a_global_condition_starts_as_the_identity_and_reaches_every_block() -> None:
    torch.manual_seed(0)
    fields = {"d_model": WIDTH, "num_layers": 3, "num_heads": 4, "condition_dim": CONDITION}
    transformer = Transformer(**fields)
    x, condition = torch.randn(2, 4, WIDTH), torch.randn(2, CONDITION)
    out = transformer(x, condition=condition)
    assert torch.equal(out, transformer(x))
    out.square().sum().backward()
    for layer in transformer.layers:
        assert (layer.modulation.proj.weight.grad.unflatten(0, (6, -1)).abs().sum((1, 2)) > 0).all()


@pytest.mark.parametrize("layer_scale", [True, False])
@torch.no_grad()
def test_zero_init_branch_outputs_start_as_the_last_norm(layer_scale: bool) -> None:
    transformer = Transformer(
        d_model=WIDTH,
        num_layers=2,
        num_heads=4,
        memory_dim=MEMORY,
        ff_bias=True,
        layer_scale=layer_scale,
        zero_init_branch_outputs=True,
    )
    x = torch.randn(2, 3, WIDTH)
    close(transformer(x, memory=torch.randn(2, 3, MEMORY)), transformer.norm(x))


def test_checkpointing_changes_no_gradient() -> None:
    fields = {"memory_dim": MEMORY, "condition_dim": CONDITION, "rotary_dim": 8, "dropout": 0.1}
    x, given = torch.randn(3, 5, WIDTH), conditions(fields, 3)
    given["memory"].requires_grad_()
    gradients = []
    for checkpointing in (False, True):
        transformer = build(checkpointing=checkpointing, **fields).train()
        torch.manual_seed(1)
        loss = transformer(x, **given).square().mean()
        gradients.append(torch.autograd.grad(loss, [given["memory"], *transformer.parameters()]))
    for plain, again in zip(*gradients, strict=True):
        close(again, plain)


@torch.no_grad()
def test_rotary_attention_depends_on_distances_only() -> None:
    transformer, x = build(rotary_dim=8), torch.randn(1, 5, WIDTH)
    cache = transformer.init_cache(1, 45)
    mask = torch.arange(45)[None] >= 40
    padded = torch.cat((torch.randn(1, 40, WIDTH), x), dim=1)
    close(transformer(padded, mask=mask, cache=cache)[:, 40:], transformer(x))
    assert not torch.allclose(transformer(x.flip(1)).flip(1), transformer(x), atol=1e-3)


@torch.no_grad()
def test_sinusoidal_positions_are_those_of_musicgen() -> None:
    from transformers.models.musicgen.modeling_musicgen import (
        MusicgenSinusoidalPositionalEmbedding,
    )

    expected = MusicgenSinusoidalPositionalEmbedding.get_embedding(100, 24)
    close(SinusoidalPositions(24)(torch.arange(100)), expected)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"d_model": 30}, "`num_heads` must divide `d_model` (30), but is 4."),
        ({"rotary_dim": 10}, "at most the head size (8), but is 10."),
        ({"rotary_dim": 3}, "`rotary_dim` must be even"),
        ({"positions": "alibi"}, "'none', 'sinusoidal' or 'learned', but is 'alibi'."),
        ({"activation": "tanh"}, "'gelu_new', 'relu', 'silu', 'swiglu', but is 'tanh'."),
        ({"qk_norm": "dyt"}, "'none', 'layer' or 'l2', but is 'dyt'."),
        ({"window": 0}, "`window` must be at least 1, but is 0."),
        ({"window": 3, "causal": False}, "`causal` must be true with a `window`, but is false."),
        ({"norm": "dyt"}, "'layer_norm' or 'rms_norm', but is 'dyt'."),
    ],
)
def test_wrong_settings_are_named(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        Transformer(**{"d_model": 32, "num_layers": 1, "num_heads": 4} | fields)
    assert text in str(caught.value)


def test_wrong_uses_of_a_cache_are_named() -> None:
    transformer, x = build(memory_dim=MEMORY), torch.randn(1, 3, WIDTH)
    cache = transformer.init_cache(1, 4)
    with pytest.raises(ValueError, match="must be given to `init_cache`"):
        transformer(x, memory=torch.randn(1, 2, MEMORY), cache=cache)
    transformer(x, cache=cache)
    with pytest.raises(ValueError, match="must be at least 6, but is 4"):
        transformer(x, cache=cache)
    with pytest.raises(ValueError, match="`causal` must be true"):
        build(causal=False).init_cache(1, 4)
    with pytest.raises(ValueError, match="`max_len` must be given"):
        transformer.init_cache(1)
    learned = build(positions="learned", max_positions=4)
    for use in (lambda: learned.init_cache(1, 5), lambda: learned(torch.randn(1, 5, WIDTH))):
        with pytest.raises(ValueError, match="at most 4 positions, .* but has 5"):
            use()


def test_a_known_length_within_the_window_takes_no_more_memory() -> None:
    network = Transformer(d_model=16, num_layers=1, num_heads=2, rotary_dim=8, window=100).eval()
    x = torch.randn(2, 7, 16)
    cache = network.init_cache(2, 7)
    steps = torch.cat([network(x[:, t : t + 1], cache=cache) for t in range(7)], dim=1)
    torch.testing.assert_close(steps, network(x), atol=1e-5, rtol=0)
    assert cache.buffer.shape[4] == 7
    with pytest.raises(ValueError, match="`max_len` of the cache must be at least 8"):
        network(x[:, :1], cache=cache)
