"""Guided decoding step by step gives what whole passes without a cache give."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from whalesong.models.codec_lm.backbone import ContinuousTransformerAudioLMBackbone
from whalesong.models.codec_lm.model import AudioLanguageModel
from whalesong.models.codec_lm.step_model import (
    GuidedStepModel,
    PackedWeights,
    Variant,
)
from whalesong.modules.codebook_patterns import build_pattern
from whalesong.modules.conditioning.conditioner import Condition
from whalesong.modules.generation.generate import generate_codes
from whalesong.modules.generation.sampling import SamplingSettings

CODEBOOKS, SIZE = 3, 11
ROUTES = {
    "none": {},
    "cross-attention": {"cross_attention_cond_ids": ["text"]},
    "prepended": {"prepend_cond_ids": ["text", "style"]},
    "global": {"global_cond_ids": ["style"]},
    "all": {
        "cross_attention_cond_ids": ["text"],
        "prepend_cond_ids": ["style"],
        "global_cond_ids": ["style"],
    },
}
PATTERNS = ("parallel", "delay", "unroll", "musiclm", "coarse_first")


def build(route: str = "all", pattern: str = "delay") -> AudioLanguageModel:
    """A small model whose parameters are all random."""
    torch.manual_seed(0)
    ids = ROUTES[route]
    backbone = ContinuousTransformerAudioLMBackbone(
        embed_dim=64,
        depth=2,
        dim_heads=32,
        cross_attn_cond_dim=8 if "cross_attention_cond_ids" in ids else 0,
        prepend_cond_dim=8 if "prepend_cond_ids" in ids else 0,
        global_cond_dim=8 if "global_cond_ids" in ids else 0,
    )
    model = AudioLanguageModel(
        pattern_provider=build_pattern(pattern, CODEBOOKS),
        backbone=backbone,
        codebook_size=SIZE,
        **ids,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def conditions(rows: int, lens: Sequence[int], seed: int) -> dict[str, Condition]:
    """A text of these lengths and a style of one vector, for each row."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lens) + 1) < torch.tensor(lens)[:, None]
    text = torch.randn(rows, max(lens) + 1, 8, generator=generator) * mask[..., None]
    style = torch.randn(rows, 1, 8, generator=generator)
    return {
        "text": Condition(text, mask),
        "style": Condition(style, torch.ones(rows, 1, dtype=torch.bool)),
    }


def variants(rows: int) -> list[Variant]:
    """Null, negative and full conditions, of different lengths."""
    full = conditions(rows, [4, 2, 0][:rows], seed=1)
    null = {name: condition.null() for name, condition in full.items()}
    return [(null, -0.7), (conditions(rows, [1, 6, 2][:rows], seed=2), -1.3), (full, 3.0)]


class WholePasses:
    """The plain way: no cache, one pass for each variant, logits mixed behind the heads."""

    num_codebooks, codebook_size = CODEBOOKS, SIZE

    def __init__(self, lm: AudioLanguageModel, parts: Sequence[Variant]) -> None:
        self.lm, self.parts = lm, parts

    @torch.no_grad()
    def prefill(self, tokens: Tensor, *, codebooks: slice | None = None) -> Tensor:
        self.tokens, logits = tokens, 0
        for given, weight in self.parts:
            routed = self.lm.route(given)
            hidden = self.lm.backbone(self.lm.embed(tokens), **vars(routed))[:, -1]
            logits = logits + weight * self.lm.heads(hidden).view(len(tokens), CODEBOOKS, SIZE)
        return logits[:, codebooks or slice(None)]

    def step(self, tokens: Tensor, *, codebooks: slice | None = None) -> Tensor:
        return self.prefill(torch.cat((self.tokens, tokens[..., None]), 2), codebooks=codebooks)


def close(given: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("prompt", [1, 4])
def test_steps_equal_whole_passes(route: str, prompt: int) -> None:
    lm, parts = build(route), variants(3)
    tokens = torch.randint(SIZE + 1, (3, CODEBOOKS, 9))
    fast = GuidedStepModel(lm, parts, batch_size=3, max_steps=9)
    plain = WholePasses(lm, parts)
    for _ in range(2):  # a second sequence begins anew
        close(fast.prefill(tokens[..., :prompt]), plain.prefill(tokens[..., :prompt]))
        for at in range(prompt, 8):
            books = slice(1, 2) if at == 6 else None
            given = fast.step(tokens[..., at], codebooks=books)
            close(given, plain.step(tokens[..., at], codebooks=books))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("prompt", [0, 3])
def test_generated_codes_are_those_of_whole_passes(pattern: str, prompt: int) -> None:
    lm, parts = build(pattern=pattern), variants(2)
    known = torch.full((2, CODEBOOKS, 6), -1)
    known[:, :, :prompt] = torch.randint(SIZE, (2, CODEBOOKS, prompt))
    arguments: dict[str, Any] = {
        "known": known,
        "lens": [6, 5],
        "seeds": [3, 4],
        "settings": SamplingSettings(temperature=1.0),
    }
    steps = lm.pattern_provider.layout(6).num_steps
    fast = GuidedStepModel(lm, parts, batch_size=2, max_steps=steps)
    given = generate_codes(fast, lm.pattern_provider, **arguments)
    expected = generate_codes(WholePasses(lm, parts), lm.pattern_provider, **arguments)
    assert torch.equal(given.codes, expected.codes)


def test_a_row_alone_equals_the_row_in_its_batch() -> None:
    lm, parts = build(), variants(3)
    tokens = torch.randint(SIZE + 1, (3, CODEBOOKS, 5))
    together = GuidedStepModel(lm, parts, batch_size=3, max_steps=5)
    logits = [together.prefill(tokens[..., :2]), together.step(tokens[..., 2])]
    for row in range(3):
        at = slice(row, row + 1)
        own = [
            ({name: Condition(c.embeds[at], c.mask[at]) for name, c in given.items()}, weight)
            for given, weight in parts
        ]
        alone = GuidedStepModel(lm, own, batch_size=1, max_steps=5)
        close(alone.prefill(tokens[at, :, :2]), logits[0][at])
        close(alone.step(tokens[at, :, 2]), logits[1][at])


def test_short_weights_are_near() -> None:
    lm, parts = build(), variants(2)
    tokens = torch.randint(SIZE + 1, (2, CODEBOOKS, 3))
    exact = GuidedStepModel(lm, parts, batch_size=2, max_steps=3)
    exact.prefill(tokens[..., :2])
    expected = exact.step(tokens[..., 2])
    for weight_dtype in ("float16", "bfloat16", "int8"):
        near = GuidedStepModel(lm, parts, batch_size=2, max_steps=3, weight_dtype=weight_dtype)
        near.prefill(tokens[..., :2])
        error = (near.step(tokens[..., 2]) - expected).norm() / expected.norm()
        assert 0 < float(error) < 0.1


def test_autocast_around_it_changes_nothing() -> None:
    lm, parts = build(), variants(2)
    tokens = torch.randint(SIZE + 1, (2, CODEBOOKS, 3))
    logits = []
    for enabled in (False, True):
        model = GuidedStepModel(lm, parts, batch_size=2, max_steps=3)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logits.append((model.prefill(tokens[..., :2]), model.step(tokens[..., 2])))
    assert all(torch.equal(*pair) for pair in zip(*logits, strict=True))


def test_packed_weights_serve_many_times() -> None:
    lm, parts = build(), variants(2)
    tokens = torch.randint(SIZE + 1, (2, CODEBOOKS, 3))
    packed = PackedWeights(lm, batch_size=2, num_variants=3)
    for guided in (parts, [(given, 1.0 / 3) for given, _ in parts]):
        fast = GuidedStepModel(lm, guided, batch_size=2, max_steps=3, packed=packed)
        plain = WholePasses(lm, guided)
        for model in (fast, plain):
            model.prefill(tokens[..., :2])
        close(fast.step(tokens[..., 2]), plain.step(tokens[..., 2]))
    with pytest.raises(ValueError, match="must be for \\(2, 2\\) rows"):
        GuidedStepModel(lm, parts[1:], batch_size=2, max_steps=3, packed=packed)
