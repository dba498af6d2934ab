"""The backbone takes stable-audio-tools' keys and the specification's, and its masks hold."""

from typing import Any

import pytest
import torch

from whalesong.models.codec_lm.backbone import ContinuousTransformerAudioLMBackbone, padding_first
from whalesong.models.codec_lm.backbone_config import ContinuousTransformerConfig
from whalesong.modules.conditioning.conditioner import Condition

SMALL = {"embed_dim": 64, "depth": 2, "dim_heads": 32}
ALL = SMALL | {
    "cross_attn_cond_dim": 6,
    "project_cross_attn_cond": True,
    "prepend_cond_dim": 5,
    "global_cond_dim": 4,
    "num_memory_tokens": 2,
}
KEEP = torch.tensor([[True, False, True], [False, True, False], [False, False, False]])


def build(**config: Any) -> ContinuousTransformerAudioLMBackbone:
    """A backbone whose parameters are all random."""
    torch.manual_seed(0)
    backbone = ContinuousTransformerAudioLMBackbone(**config).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone


def condition(width: int) -> Condition:
    return Condition(torch.randn(3, 3, width) * KEEP[..., None], KEEP)


def conditions() -> dict[str, Any]:
    return {"prepend": condition(5), "memory": condition(6), "global_cond": torch.randn(3, 4)}


def close(given: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(given, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("sizes", [[1] * 6, [4, 2]], ids=str)
@torch.no_grad()
def test_cached_equals_uncached(sizes: list[int]) -> None:
    backbone, x, given = build(**ALL), torch.randn(3, 6, 64), conditions()
    cache = backbone.init_cache(3, 6, **given)
    pieces = x.split(sizes, dim=1)
    out = [backbone(pieces[0], prepend=given["prepend"], cache=cache)]
    out += [backbone(piece, cache=cache) for piece in pieces[1:]]
    close(torch.cat(out, dim=1), backbone(x, **given))
    assert cache.length == cache.max_len == 6 + 3 + 2


@torch.no_grad()
def test_a_row_alone_equals_the_row_in_its_batch() -> None:
    backbone, x, given = build(**ALL), torch.randn(3, 6, 64), conditions()
    together = backbone(x, **given)
    for row in range(3):
        at, keep = slice(row, row + 1), KEEP[row]
        alone = {
            name: Condition(given[name].embeds[at, keep], given[name].mask[at, keep])
            for name in ("prepend", "memory")
            if keep.any()
        }
        close(together[at], backbone(x[at], global_cond=given["global_cond"][at], **alone))


@torch.no_grad()
def test_every_condition_and_its_order_matter() -> None:
    backbone, x, given = build(**ALL), torch.randn(3, 6, 64), conditions()
    whole = backbone(x, **given)
    for name in given:
        without = backbone(x, **{key: value for key, value in given.items() if key != name})
        assert (without - whole)[0].abs().max() > 1e-3
    turned = Condition(given["prepend"].embeds.flip(1), given["prepend"].mask.flip(1))
    assert (backbone(x, **given | {"prepend": turned}) - whole)[0].abs().max() > 1e-3


def test_padding_first_keeps_the_order() -> None:
    embeds = torch.arange(9.0).view(3, 3, 1)
    moved = padding_first(Condition(embeds, KEEP))
    assert moved.mask.tolist() == [[False, True, True], [False, False, True], [False] * 3]
    assert moved.embeds[moved.mask].flatten().tolist() == [0.0, 2.0, 4.0]


def test_both_spellings_describe_the_same() -> None:
    native = ContinuousTransformerConfig(embed_dim=256, depth=3, dim_heads=64)
    alias = ContinuousTransformerConfig(d_model=256, n_layers=3, n_heads=4, causal=True)
    both = ContinuousTransformerConfig(**native.model_dump(exclude_none=True), n_heads=4)
    shapes = [(f.embed_dim, f.d_model, f.depth, f.n_layers, f.dim_heads) for f in (native, alias)]
    assert shapes == [(256, 256, 3, 3, 64)] * 2 and both.dim_heads == 64


def test_musicgens_shape_can_be_described() -> None:
    fields = {
        "rotary_pos_emb": False,
        "use_sinusoidal_emb": True,
        "activation": "gelu",
        "ff_kwargs": {"mult": 2.5, "glu": False, "no_bias": True},
        "norm_kwargs": {"bias": True},
    }
    names = set(build(embed_dim=64, depth=1, dim_heads=16, **fields).state_dict())
    layer = {name.removeprefix("transformer.layers.0.") for name in names}
    assert "feed_forward.up_proj.bias" not in layer and "ff_norm.bias" in layer


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"embed_dim": 64}, "`depth` must be given, here or as `n_layers`"),
        (SMALL | {"d_model": 128}, "`d_model` must be `embed_dim` (64), but is 128"),
        (SMALL | {"n_layers": 4}, "`n_layers` must be `depth` (2), but is 4"),
        (SMALL | {"n_heads": 1}, "`dim_heads` must be 64, as `n_heads` says, but is 32"),
        ({"d_model": 100, "n_heads": 3, "depth": 1}, "d_model must be divisible by n_heads"),
        ({"embed_dim": 96, "depth": 1}, "multiple of the head size `dim_heads` (64), but is 96"),
        ({"embed_dim": 64, "depth": 1, "dim_heads": 16}, "the head size must be at least 32"),
        (SMALL | {"causal": False}, "causal"),
        (SMALL | {"conformer": True}, "conformer"),
        (SMALL | {"sliding_window": [8, 0]}, "sliding_window"),
        (SMALL | {"attn_kwargs": {"differential": True}}, "attn_kwargs.differential"),
        (SMALL | {"ff_kwargs": {"use_conv": True}}, "what it asks for is not supported"),
        (SMALL | {"activation": "gelu"}, "must be 'silu' with `ff_kwargs.glu`"),
        (SMALL | {"deepth": 1}, "deepth"),
    ],
)
def test_wrong_fields_are_named(config: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        ContinuousTransformerAudioLMBackbone(**config)
    assert text in str(caught.value)


@pytest.mark.parametrize("name", ["prepend", "memory", "global_cond"])
def test_conditions_without_a_place_are_refused(name: str) -> None:
    given = conditions()[name]
    with pytest.raises(ValueError, match="cond_dim` must be the width .* but is 0"):
        build(**SMALL)(torch.randn(3, 2, 64), **{name: given})
