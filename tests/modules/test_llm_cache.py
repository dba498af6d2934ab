"""An LLM step by step equals the LLM on the whole, with a window and without."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from whalesong.modules.llm import (
    hidden_states,
    init_cache,
    load_llm,
    max_positions,
    next_hidden_states,
)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("window", [None, 2, 7, 29, 30, 64])
def test_cached_equals_uncached(
    architecture: str, window: int | None, tiny_llm: Callable[..., Path]
) -> None:
    llm = load_llm(str(tiny_llm(architecture))).eval()
    torch.manual_seed(0)
    embeds = torch.randn(2, 30, llm.get_input_embeddings().embedding_dim)
    with torch.no_grad():
        whole = hidden_states(llm, embeds, torch.ones(2, 30).bool(), window=window)
        cache = init_cache(llm, window=window)
        steps = [next_hidden_states(llm, embeds[:, t : t + 1], cache) for t in range(30)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=0)
    held = cache.layers[0].keys.shape[2]
    assert held == (30 if window is None else min(30, window - 1))


def test_a_window_hides_what_is_before_it(tiny_llm: Callable[..., Path]) -> None:
    """Through two layers a position depends on twice the window."""
    llm = load_llm(str(tiny_llm())).eval()
    embeds = torch.randn(1, 30, llm.get_input_embeddings().embedding_dim)
    changed = embeds.clone()
    changed[:, :10] += 1
    with torch.no_grad():
        before, after = (
            hidden_states(llm, x, torch.ones(1, 30).bool(), window=5) for x in (embeds, changed)
        )
    same = (before - after).abs().amax(dim=2)[0] < 1e-6
    assert llm.config.num_hidden_layers == 2
    assert not same[10:18].any() and same[18:].all()


@pytest.mark.parametrize(
    ("architecture", "window", "expected"),
    [("llama", 8, None), ("llama", None, 4096), ("gpt2", 8, 4096)],
)
def test_positions_end_unless_attention_is_relative_within_a_window(
    architecture: str, window: int | None, expected: int | None, tiny_llm: Callable[..., Path]
) -> None:
    llm = load_llm(str(tiny_llm(architecture)))
    assert max_positions(llm, window=window) == expected
