"""Laws of the speech decoder: cached = uncached beyond the window, constant cost, no leaks."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from whalesong.modules.generation.sampling import SamplingSettings, sample
from whalesong.modules.speech_decoder import InputCache, TransformerARSpeechDecoder

WIDTH, CODEBOOKS, VOCAB = 12, 3, 11


def build(**fields: Any) -> TransformerARSpeechDecoder:
    """A small decoder in eval mode, with weights large enough for every step to matter."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "n_layers": 2, "n_heads": 4, "d_kv": 6, "d_ff": 48, "max_seq_len": 5}
    decoder = TransformerARSpeechDecoder(
        **{"input_dim": WIDTH, "num_codebooks": CODEBOOKS, "vocab_size": VOCAB}
        | sizes
        | {"init_method_std": 0.3}
        | fields
    )
    return decoder.eval()


def inputs(rows: int, steps: int) -> tuple[Tensor, Tensor]:
    """Hidden states (B, T, D') and codes (B, K, T)."""
    return torch.randn(rows, steps, WIDTH), torch.randint(VOCAB, (rows, CODEBOOKS, steps))


def in_pieces(
    decoder: TransformerARSpeechDecoder, hidden: Tensor, codes: Tensor, sizes: list[int]
) -> Tensor:
    """Logits of all steps, `sizes` of them at a time, through a cache."""
    cache, pieces, start = decoder.init_cache(len(hidden)), [], 0
    for size in sizes:
        part = slice(start, start + size)
        pieces.append(decoder(hidden[:, part], codes[:, :, part], cache=cache))
        start += size
    return torch.cat(pieces, dim=1)


def close(given: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(given, expected, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("use_cache", [True, False], ids=["keys and values", "inputs"])
@pytest.mark.parametrize("window", [1, 2, 5, 64])
@pytest.mark.parametrize("sizes", [[1] * 33, [3, 7, 1, 1, 12, 2, 1, 5, 1], [33]], ids=str)
@torch.no_grad()
def test_cached_equals_uncached_far_beyond_the_window(
    use_cache: bool, window: int, sizes: list[int]
) -> None:
    decoder = build(max_seq_len=window, use_cache=use_cache)
    hidden, codes = inputs(2, 33)
    close(in_pieces(decoder, hidden, codes, sizes), decoder(hidden, codes))


@torch.no_grad()
def test_a_step_sees_the_window_and_nothing_else() -> None:
    """One layer: a change reaches the changed step and the four after it."""
    decoder = build(n_layers=1)
    hidden, codes = inputs(1, 12)
    before = decoder(hidden, codes)
    other = codes.clone()
    other[0, 1, 3] = (other[0, 1, 3] + 1) % VOCAB
    for changed in (
        decoder(hidden, other),
        decoder(hidden + (torch.arange(12) == 3)[:, None], codes),
    ):
        moved = (changed - before).abs().amax(dim=(0, 2, 3)) > 1e-6
        assert moved.nonzero().flatten().tolist() == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("sizes", [None, [1] * 14], ids=["whole", "cached"])
@torch.no_grad()
def test_a_batch_equals_its_rows_alone(sizes: list[int] | None) -> None:
    decoder = build()
    hidden, codes = inputs(3, 14)

    def logits(rows: slice) -> Tensor:
        if sizes is None:
            return decoder(hidden[rows], codes[rows])
        return in_pieces(decoder, hidden[rows], codes[rows], sizes)

    together = logits(slice(None))
    for row in range(3):
        close(together[row : row + 1], logits(slice(row, row + 1)))


@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_two_streams_do_not_meet_for_the_module_remembers_nothing(use_cache: bool) -> None:
    decoder = build(use_cache=use_cache)
    hidden, codes = inputs(2, 9)
    before = [dict(part.__dict__) for part in decoder.modules()]
    caches = [decoder.init_cache(1) for _ in range(2)]
    streams: list[list[Tensor]] = [[], []]
    for step in range(9):
        for row, cache in enumerate(caches):
            at = slice(row, row + 1), slice(step, step + 1)
            streams[row].append(decoder(hidden[at], codes[at[0], :, at[1]], cache=cache))
    close(torch.cat([torch.cat(steps, dim=1) for steps in streams]), decoder(hidden, codes))
    assert [dict(part.__dict__) for part in decoder.modules()] == before


@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_selected_rows_go_on_as_before(use_cache: bool) -> None:
    decoder = build(use_cache=use_cache)
    hidden, codes = inputs(3, 12)
    cache, rows = decoder.init_cache(3), torch.tensor([2, 0])
    decoder(hidden[:, :8], codes[:, :, :8], cache=cache)
    cache.select(rows)
    late = decoder(hidden[rows, 8:], codes[rows][:, :, 8:], cache=cache)
    close(late, decoder(hidden, codes)[rows, 8:])


@torch.no_grad()
def test_ten_minutes_of_frames_take_the_memory_and_time_of_the_first_ones() -> None:
    """7,500 frames of 80 ms, of which the last depend on the window only, and on its order."""
    decoder = build(max_seq_len=16)
    hidden, codes = inputs(1, 7500)
    cache, medians = decoder.init_cache(1), []
    size = cache.buffer.shape
    assert cache.buffer.numel() == 2 * 2 * 4 * 16 * 6
    for steps in ([1] * 500, [500] * 13, [1] * 500):
        spent, logits = [], []
        for count in steps:
            part, start = slice(cache.length, cache.length + count), time.perf_counter()
            logits.append(decoder(hidden[:, part], codes[:, :, part], cache=cache))
            spent.append(time.perf_counter() - start)
        medians.append(torch.tensor(spent).median())
    assert cache.length == 7500 and cache.buffer.shape == size
    assert medians[2] < 3 * medians[0]
    tail = decoder(hidden[:, -50:], codes[:, :, -50:])
    torch.testing.assert_close(torch.cat(logits[-10:], dim=1), tail[:, -10:], atol=2e-3, rtol=1e-3)


@torch.no_grad()
def test_kept_inputs_are_those_that_a_step_depends_on_and_no_more() -> None:
    decoder = build(use_cache=False, n_layers=3, max_seq_len=4)
    cache = decoder.init_cache(2)
    assert isinstance(cache, InputCache)
    for _ in range(40):
        decoder(*inputs(2, 1), cache=cache)
    assert cache.inputs.shape == (2, 3 * 3, 32) and cache.length == 40


@pytest.mark.parametrize("top_k", [1, 3])
@torch.no_grad()
def test_fault_8_draws_stay_among_the_top_k_of_every_codebook(top_k: int) -> None:
    """NeMo's sampler filtered by top-k, and then drew from the logits that it had not filtered."""
    logits = build(init_method_std=0.05)(*inputs(64, 1))[:, 0]
    kept = logits.topk(top_k).indices
    settings = SamplingSettings(temperature=1.0, top_k=top_k)
    drawn = torch.stack(
        [sample(logits, settings, noise) for noise in torch.rand(20, 64, CODEBOOKS)]
    )
    assert (drawn[..., None] == kept).any(dim=-1).all()
    assert len(drawn[:, 0, 0].unique()) == top_k


@torch.no_grad()
def test_fault_9_a_cached_step_computes_one_position() -> None:
    """NeMo's cache concatenated all inputs and ran the whole prefix at each step."""
    decoder, widths = build(max_seq_len=64), []
    for part in (decoder.head, decoder.transformer.layers[0].attention.qkv_proj):
        part.register_forward_hook(lambda module, given, out: widths.append(given[0].shape[1]))
    decoder.code_embedding.register_forward_hook(
        lambda module, given, out: widths.append(given[0].shape[2])
    )
    in_pieces(decoder, *inputs(1, 26), [1] * 26)
    assert widths == [1] * (3 * 26)


@torch.no_grad()
def test_a_row_without_its_hidden_states_depends_on_codes_only() -> None:
    decoder = build()
    hidden, codes = inputs(2, 6)
    without = torch.tensor([False, True])
    given = decoder(hidden, codes, is_conditioned=without)
    other = decoder(torch.randn_like(hidden), codes, is_conditioned=without)
    assert torch.equal(given[0], other[0]) and not torch.allclose(given[1], other[1])
    close(given[1], decoder(hidden, codes)[1])
    every = decoder(hidden, codes, is_conditioned=torch.tensor([True, True]))
    assert torch.equal(every, decoder(hidden, codes))


def test_training_drops_hidden_states_of_whole_rows_at_the_given_rate() -> None:
    decoder = build(unconditional_prob=0.25, dropout=0.0)
    hidden, codes = inputs(800, 2)
    with torch.no_grad():
        plain = decoder(hidden, codes)
        torch.manual_seed(1)
        trained = decoder.train()(hidden, codes)
        none = decoder(hidden, codes, is_conditioned=torch.zeros(800, dtype=torch.bool))
        dropped = torch.isclose(trained, none, atol=1e-5).flatten(1).all(dim=1)
        close(trained[dropped], none[dropped])
        close(trained[~dropped], plain[~dropped])
        torch.manual_seed(1)
        assert torch.equal(decoder(hidden, codes), trained)
    assert 0.2 < dropped.float().mean() < 0.3


@torch.no_grad()
def test_no_draw_is_spent_where_no_row_can_lose_its_hidden_states() -> None:
    state = torch.get_rng_state() if (decoder := build(dropout=0.0).train()) else None
    decoder(torch.ones(1, 2, WIDTH), torch.zeros(1, CODEBOOKS, 2, dtype=torch.long))
    assert torch.equal(torch.get_rng_state(), state)


@torch.no_grad()
def test_activations_are_those_that_their_names_say() -> None:
    x = torch.linspace(-4, 4, 101)[None, :, None].expand(1, 101, 32)
    for name, expected in (
        ("gelu_new", functional.gelu(x, approximate="tanh")),
        ("gelu", functional.gelu(x)),
        ("relu", x.relu()),
        ("silu", functional.silu(x)),
    ):
        feed_forward = build(activation_function=name, d_ff=32).transformer.layers[0].feed_forward
        for projection in (feed_forward.up_proj, feed_forward.down_proj):
            projection.weight.copy_(torch.eye(32))
        close(feed_forward(x), expected)


def test_weights_start_with_the_given_deviation() -> None:
    decoder = build(d_model=64, d_ff=256, vocab_size=200, init_method_std=0.07)
    for name, parameter in decoder.named_parameters():
        if parameter.dim() == 2:
            assert parameter.std().item() == pytest.approx(0.07, rel=0.1), name
        elif "norm" not in name:
            assert (parameter == 0).all(), name


def test_settings_reach_the_transformer_and_every_parameter_learns() -> None:
    decoder = build(layernorm_epsilon=0.5, dropout=0.25, n_layers=3)
    blocks = decoder.transformer.layers
    assert len(blocks) == 3 and blocks[0].attention.qkv_proj.weight.shape == (3 * 4 * 6, 32)
    assert blocks[2].ff_norm.eps == 0.5 and blocks[1].ff_end.dropout.p == 0.25
    decoder(*inputs(2, 4)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


@torch.no_grad()
def test_equal_widths_need_no_projection() -> None:
    assert not list(build(input_dim=32).input_proj.parameters())


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"d_kv": 7}, "`d_kv` must be even and at least 2, but is 7."),
        ({"max_seq_len": 0}, "`max_seq_len` must be at least 1, but is 0."),
        ({"activation_function": "gleu"}, "'gelu_new', 'gelu', 'relu', 'silu', but is 'gleu'."),
        ({"unconditional_prob": 1.5}, "between 0 and 1, but is 1.5."),
    ],
)
def test_wrong_settings_are_named(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        build(**fields)
    assert text in str(caught.value)


def test_codes_that_do_not_fit_are_named() -> None:
    hidden, codes = inputs(2, 4)
    with pytest.raises(ValueError, match=r"\(2, 3, 4\).* but have \(2, 4, 3\)"):
        build()(hidden, codes.transpose(1, 2))
