"""Laws of the batch plan."""

import logging
import shutil
from collections import Counter
from itertools import islice

import pytest

from whalesong.core.errors import ConfigError, DataError
from whalesong.data.batching import estimate_bins, seconds_of

ALL = {f"utt{i}" for i in range(24)}


def ids(batches):
    return [[example.id for example in batch] for batch in batches]


def flat(batches):
    return [id for batch in ids(batches) for id in batch]


@pytest.mark.parametrize(
    "keys",
    [
        {"batch_size": 5},
        {"batch_duration": 1.2},
        {"batch_size": 4, "batch_duration": 1.5, "quadratic_duration": 0.4},
        {"batch_duration": 1.2, "use_bucketing": True, "num_buckets": 3},
        {"batch_size": 3, "use_bucketing": True, "bucket_duration_bins": [0.2, 0.3]},
        {"bucket_batch_size": [6, 4, 2], "use_bucketing": True, "bucket_duration_bins": [0.2, 0.4]},
        {"batch_size": 7, "shuffle": False},
        {"batch_size": 5, "shuffle_buffer_size": 3},
    ],
)
def test_every_cut_once_an_epoch_and_a_function_of_seed_and_epoch(plan_of, corpus, keys):
    first, second = (ids(plan_of(shar_path=str(corpus), **keys).batches(3)) for _ in range(2))
    assert first == second
    assert Counter(id for batch in first for id in batch) == Counter(ALL)


def test_other_epochs_and_seeds_have_other_orders(plan_of, corpus):
    plan = plan_of(shar_path=str(corpus), batch_size=4)
    other = plan_of(shar_path=str(corpus), batch_size=4, seed=1)
    orders = [flat(plan.batches(0)), flat(plan.batches(1)), flat(other.batches(0))]
    assert len({tuple(order) for order in orders}) == 3
    shards = [{int(id[3:]) // 6 for id in order[:6]} for order in orders]
    assert all(len(shard) > 1 for shard in shards), "shards must mix in the shuffle buffer"


def test_the_order_does_not_depend_on_where_the_corpus_lies(plan_of, corpus, tmp_path):
    moved = shutil.copytree(corpus, tmp_path / "elsewhere")
    here, there = (plan_of(shar_path=str(path), batch_size=4) for path in (corpus, moved))
    assert ids(here.batches(0)) == ids(there.batches(0))


def test_without_shuffle_the_order_is_that_of_the_files(plan_of, corpus):
    plan = plan_of(shar_path=str(corpus), batch_size=5, shuffle=False)
    assert flat(plan.batches(0)) == [f"utt{i}" for i in range(24)]


def test_shard_seed(plan_of, corpus):
    def order(shard_seed, seed=0):
        plan = plan_of(shar_path=str(corpus), batch_size=4, seed=seed, shard_seed=shard_seed)
        return flat(plan.batches(0))

    assert order(7, seed=0) == order(7, seed=1) != order("randomized")
    assert order("trng") != order("trng")


def test_batches_keep_their_limits_and_are_not_needlessly_small(plan_of, corpus):
    keys = {"shar_path": str(corpus), "batch_duration": 1.2, "batch_size": 6}
    batches = list(plan_of(**keys).batches(0))
    for batch, following in zip(batches, batches[1:], strict=False):
        longest = max(cut.duration for cut in batch)
        assert len(batch) <= 6 and longest * len(batch) <= 1.2
        grown = max(longest, following[0].duration) * (len(batch) + 1)
        assert len(batch) == 6 or grown > 1.2


def test_an_example_above_the_limit_is_a_batch_of_its_own(plan_of, corpus):
    assert {len(b) for b in plan_of(shar_path=str(corpus), batch_duration=0.01).batches(0)} == {1}


def test_batches_of_tokens(plan_of, corpus):
    plan = plan_of(
        shar_path=str(corpus),
        batch_tokens=60,
        max_tokens=40,
        measure_tokens=lambda cut: round(cut.duration * 100),
    )
    batches = list(plan.batches(0))
    assert all(max(round(c.duration * 100) for c in b) * len(b) <= 60 for b in batches)
    kept = len(flat(batches))
    assert (
        0 < kept < 24 and plan.filters.summary() == f"{24 - kept} more tokens than max_tokens (40)"
    )


def test_tokens_without_a_measure_are_refused(plan_of, corpus):
    with pytest.raises(ConfigError, match=r"`data.train_ds.batch_tokens` needs lengths in tokens"):
        plan_of(shar_path=str(corpus), batch_tokens=60)


def test_nothing_limits_a_batch(plan_of, corpus):
    with pytest.raises(ConfigError, match=r"`data.train_ds` must limit its batches"):
        plan_of(shar_path=str(corpus))


def test_bucketing_pads_less(plan_of, corpus):
    def padding(**keys):
        batches = list(plan_of(shar_path=str(corpus), batch_size=4, **keys).batches(0))
        padded = sum(max(c.duration for c in batch) * len(batch) for batch in batches)
        return padded - sum(c.duration for batch in batches for c in batch)

    assert padding(use_bucketing=True, num_buckets=4) < 0.6 * padding()


def test_bucket_batch_size_is_that_of_the_bucket(plan_of, corpus):
    keys = {"use_bucketing": True, "bucket_duration_bins": [0.25, 0.4]}
    plan = plan_of(shar_path=str(corpus), bucket_batch_size=[5, 2], drop_last=True, **keys)
    for batch in plan.batches(0):
        short = max(c.duration for c in batch) <= 0.25
        assert len(batch) == (5 if short else 2)
        assert short or min(c.duration for c in batch) > 0.25
    assert "longer than the last bucket (0.4)" in plan.filters.summary()


def test_drop_last_drops_the_incomplete_batch_only(plan_of, corpus):
    sizes = [
        len(b) for b in plan_of(shar_path=str(corpus), batch_size=7, drop_last=True).batches(0)
    ]
    assert sizes == [7, 7, 7]


def test_estimated_bins_hold_about_the_same_length():
    lengths = [i / 100 for i in range(100, 2000, 7)]
    bins = estimate_bins(lengths, 5)
    edges = [0.0, *bins, float("inf")]
    totals = [
        sum(x for x in lengths if low < x <= high)
        for low, high in zip(edges, edges[1:], strict=False)
    ]
    assert len(bins) == 4 and max(totals) < 1.1 * min(totals)
    assert estimate_bins([2.0] * 10, 5) == (2.0,)


def test_filters_count_and_tell_what_they_leave_out(plan_of, corpus, caplog):
    caplog.set_level(logging.INFO, logger="whalesong")
    plan = plan_of(shar_path=str(corpus), batch_size=4, min_duration=0.2, max_duration=0.4)
    for epoch in range(2):
        kept = [c for batch in plan.batches(epoch) for c in batch]
        assert kept and all(0.2 <= c.duration <= 0.4 for c in kept)
        assert sum(plan.filters.dropped.values()) == 24 - len(kept)
    [message] = caplog.messages
    assert "`data.train_ds`: filtered out in epoch 0:" in message
    assert "longer than max_duration (0.4 s)" in message


@pytest.mark.parametrize("weight", [{}, {"weight": 1.0}])
@pytest.mark.parametrize("bucketing", [False, True])
def test_a_filter_that_leaves_nothing_ends_at_once(plan_of, corpus, weight, bucketing):
    items = [{"type": "lhotse_shar", "shar_path": str(corpus), **weight} for _ in range(2)]
    plan = plan_of(input_cfg=items, batch_size=4, min_duration=100, use_bucketing=bucketing)
    with pytest.raises(DataError, match=r"no example is left: .*24 shorter|48 shorter"):
        next(plan.batches(0))


def test_weights_are_the_shares_of_the_draws(plan_of, make_corpus, tmp_path):
    paths = [make_corpus(tmp_path / name, count=8, prefix=name) for name in "ab"]
    items = [
        {"type": "lhotse_shar", "shar_path": str(path), "weight": weight}
        for path, weight in zip(paths, (0.75, 0.25), strict=True)
    ]
    plan = plan_of(input_cfg=items, batch_size=1)
    drawn = [id for epoch in range(40) for id in flat(plan.batches(epoch))]
    assert 0.7 < sum(id[0] == "a" for id in drawn) / len(drawn) < 0.8
    epoch = Counter(flat(plan.batches(0)))
    assert {f"{n}{i}" for n in "ab" for i in range(8)} == set(epoch)
    assert max(count for id, count in epoch.items() if id[0] == "b") == 1
    assert ids(islice(plan.batches(0), 9)) == ids(islice(plan.batches(0), 9))


def test_without_weights_sources_are_interleaved_in_proportion(plan_of, make_corpus, tmp_path):
    paths = [
        make_corpus(tmp_path / name, count=n, prefix=name) for name, n in (("a", 60), ("b", 20))
    ]
    items = [{"type": "lhotse_shar", "shar_path": str(path)} for path in paths]
    order = flat(plan_of(input_cfg=items, batch_size=8).batches(0))
    assert Counter(order) == Counter([f"a{i}" for i in range(60)] + [f"b{i}" for i in range(20)])
    assert 5 <= sum(id[0] == "b" for id in order[:40]) <= 15


def test_text_has_the_length_of_saying_it():
    from whalesong.data.conversation import make_conversation

    assert seconds_of(make_conversation("t", [("user", "a" * 30)])) == 2.0


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"min_duration": 100}, r"24 shorter than min_duration \(100\.0 s\), which have 0\."),
        ({"max_duration": 0.05}, r"24 longer than max_duration \(0\.05 s\), which have .* s\."),
        ({"min_tokens": 50}, r"24 fewer tokens than min_tokens \(50\), which have 7 tokens\."),
        ({"max_tokens": 5}, r"24 more tokens than max_tokens \(5\), which have 7 tokens\."),
        ({"min_tps": 1e3}, r"24 fewer tokens a second .*, which have .* to .* tokens/s\."),
        ({"keep": "never"}, r"24 validation_status is not never\.$"),
    ],
)
def test_a_filter_that_leaves_nothing_tells_what_the_examples_have(plan_of, corpus, keys, words):
    if "keep" in keys:
        items = [{"type": "lhotse_shar", "shar_path": str(corpus)}]
        items[0]["tags"] = {"validation_status": "bad"}
        keys = {**keys, "input_cfg": items}
    else:
        keys = {**keys, "shar_path": str(corpus)}
    plan = plan_of(batch_size=4, measure_tokens=lambda example: 7, **keys)
    with pytest.raises(DataError, match=words):
        list(plan.batches(0))
