"""What arlm learns: a few graphs by heart, and to copy from many but not to look ahead."""

import pytest
from fixtures.star_training import StarTraining


def test_a_few_graphs_are_learned_by_heart() -> None:
    training = StarTraining("arlm")
    graphs = training.graphs("train", 8)
    assert training.steps_to_learn(graphs, num_steps=400, lr=3e-3, batch_size=8)


@pytest.mark.slow
def test_one_line_of_three_is_guessed() -> None:
    training = StarTraining("arlm", ff_mult=2)
    graphs = training.graphs("train", 50_000)
    list(training.train(graphs, num_steps=1500, lr=2e-3, batch_size=64))
    assert 0.25 <= training.exact_match(training.graphs("test", 1000)) <= 0.42
