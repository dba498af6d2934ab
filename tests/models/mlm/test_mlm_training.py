"""What mlm learns: a few graphs by heart, and to find the way in others."""

import pytest
from fixtures.star_training import StarTraining


def test_a_few_graphs_are_learned_by_heart() -> None:
    training = StarTraining("mlm")
    graphs = training.graphs("train", 8)
    assert training.steps_to_learn(graphs, num_steps=400, lr=3e-3, batch_size=8)


@pytest.mark.slow
def test_the_way_is_found() -> None:
    training = StarTraining("mlm", ff_mult=2)
    graphs = training.graphs("train", 50_000)
    list(training.train(graphs, num_steps=3000, lr=3e-3, batch_size=64))
    assert training.exact_match(training.graphs("test", 1000)) >= 0.9
