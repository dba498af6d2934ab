"""Exact match and token accuracy over rows of ids."""

from whalesong.metrics.exact_match import ExactMatch, TokenAccuracy

ROWS = [
    {"ids": [1, 2, 3], "target_ids": [1, 2, 3]},
    {"ids": [1, 2, 0], "target_ids": [1, 2, 3]},
    {"ids": [9], "target_ids": [1, 2]},
    {"ids": [7, 7]},
]


def value(metric, rows):
    metric.update(rows)
    return metric.compute(metric.totals())


def test_a_row_counts_only_when_every_position_is_right():
    assert value(ExactMatch(), ROWS) == {"exact_match": 1 / 3}


def test_token_accuracy_is_the_mean_of_the_shares_of_rows():
    assert value(TokenAccuracy(), ROWS) == {"token_accuracy": (1 + 2 / 3 + 0) / 3}


def test_sums_over_ranks_give_what_one_rank_gives():
    for build in (ExactMatch, TokenAccuracy):
        parts = []
        for rows in (ROWS[:1], ROWS[1:]):
            metric = build()
            metric.update(rows)
            parts.append(metric.totals())
        summed = [sum(column) for column in zip(*parts, strict=True)]
        assert build().compute(summed) == value(build(), ROWS)


def test_nothing_gives_no_value_and_reset_forgets():
    metric = ExactMatch()
    assert value(metric, ROWS[3:]) == {}
    metric.update(ROWS)
    metric.reset()
    assert metric.totals() == [0.0, 0.0]
