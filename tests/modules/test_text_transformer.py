"""TextTransformer: padding, causality, cache, learned positions of the prompt."""

import pytest
import torch

from whalesong.modules.text_transformer import TextTransformer


def build(**changes):
    torch.manual_seed(0)
    settings = {"vocab_size": 17, "d_model": 16, "num_layers": 2, "num_heads": 2, "dropout": 0.0}
    return TextTransformer(**{**settings, "causal": True, **changes}).eval()


def padded(ids, *, left=0, right=0):
    """Ids (1, T) with padding of id 0, and the mask."""
    batch = torch.tensor([[0] * left + ids + [0] * right])
    mask = torch.tensor([[False] * left + [True] * len(ids) + [False] * right])
    return batch, mask


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("left", "right"), [(3, 0), (0, 3), (2, 2)])
def test_padding_changes_nothing(causal, left, right):
    model = build(causal=causal, prompt_positions=4)
    ids = [5, 6, 7, 8, 9]
    plain, mask = padded(ids)
    prompt = torch.tensor([[True, True, True, False, False]])
    expected = model(plain, mask, prompt_mask=prompt)
    batch, mask = padded(ids, left=left, right=right)
    shifted = torch.nn.functional.pad(prompt, (left, right))
    given = model(batch, mask, prompt_mask=shifted)[:, left : left + len(ids)]
    torch.testing.assert_close(given, expected)


def test_a_causal_model_does_not_see_the_future():
    model = build()
    ids = torch.randint(1, 17, (1, 8))
    changed = ids.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 17
    before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_a_model_of_both_sides_sees_the_future():
    model = build(causal=False)
    ids = torch.randint(1, 17, (1, 8))
    changed = ids.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 17
    assert not torch.allclose(model(ids)[:, 0], model(changed)[:, 0])


def test_cached_is_uncached_with_a_padded_prompt():
    model = build(prompt_positions=4)
    ids = torch.randint(1, 17, (2, 7))
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, :2] = False
    prompt = torch.zeros(2, 7, dtype=torch.bool)
    prompt[:, :4] = mask[:, :4]
    expected = model(ids, mask, prompt_mask=prompt)
    cache = model.init_cache(2, 7)
    pieces = [model(ids[:, :4], mask[:, :4], prompt_mask=prompt[:, :4], cache=cache)]
    pieces += [model(ids[:, index : index + 1], cache=cache) for index in range(4, 7)]
    given = torch.cat(pieces, dim=1)
    torch.testing.assert_close(given[mask], expected[mask], atol=1e-5, rtol=1e-5)


def test_learned_positions_tell_places_of_the_prompt_apart_and_nothing_else():
    without, learned = build(causal=False, rotary=False), None
    ids = torch.tensor([[5, 6, 5, 6]])
    assert torch.allclose(without(ids)[:, 0], without(ids)[:, 2])
    learned = build(causal=False, rotary=False, prompt_positions=2)
    prompt = torch.tensor([[True, True, False, False]])
    logits = learned(ids, prompt_mask=prompt)
    assert not torch.allclose(logits[:, 0], logits[:, 2])
    assert torch.allclose(learned(ids), learned(ids, prompt_mask=torch.zeros_like(prompt)))


def test_a_prompt_longer_than_learned_is_refused():
    model = build(prompt_positions=2)
    with pytest.raises(ValueError, match=r"at most `prompt_positions` \(2\) tokens, but has 3"):
        model(torch.ones(1, 3, dtype=torch.long), prompt_mask=torch.ones(1, 3, dtype=torch.bool))


def test_a_condition_changes_nothing_at_the_start_and_something_once_learned():
    model = build(causal=False, condition_dim=4)
    ids, condition = torch.randint(1, 17, (2, 5)), torch.randn(2, 4)
    torch.testing.assert_close(model(ids), model(ids, condition=condition))
    torch.nn.init.normal_(model.output_modulation[1].weight)
    assert not torch.allclose(model(ids), model(ids, condition=condition))


def test_a_head_of_zeros_makes_all_tokens_equally_likely():
    assert build(zero_init_head=True)(torch.ones(1, 3, dtype=torch.long)).eq(0).all()


def test_without_the_final_norm_the_last_block_is_read_as_it_is():
    model = build(final_norm=False)
    assert isinstance(model.transformer.norm, torch.nn.Identity)
    assert sum("norm" in name for name, _ in model.named_parameters()) < sum(
        "norm" in name for name, _ in build().named_parameters()
    )
