"""Parts get what they ask for by name; the YAML's own values win."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from whalesong.core.errors import ConfigError
from whalesong.core.instantiate import register_target
from whalesong.textlm.building import PartBuilder


@register_target
class Network(torch.nn.Module):
    def __init__(self, *, vocab_size, block_size, width=3):
        super().__init__()
        self.sizes = (vocab_size, block_size, width)


@register_target
class Asking:
    def __init__(self, *, model, tokenizer, noise_schedule):
        self.model, self.tokenizer, self.noise_schedule = model, tokenizer, noise_schedule


@register_target
class Silent:
    def loss_fn(self, batch):
        return {}


@register_target
class Schedule:
    def __init__(self, *, eps):
        self.eps = eps


def target(kind, **arguments):
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **arguments}


@pytest.fixture()
def builder(number_tokenizer):
    return PartBuilder(number_tokenizer, block_size=6, input_block_size=9)


def test_sizes_come_from_tokenizer_and_data(builder, number_tokenizer):
    assert builder.network(target(Network)).sizes == (len(number_tokenizer), 6, 3)


def test_what_the_yaml_gives_wins(builder):
    model = builder.network(target(Network, vocab_size=99, block_size=None, width=5))
    assert model.sizes == (99, 6, 5)


def test_parts_get_network_tokenizer_and_schedule(builder, number_tokenizer):
    schedule = builder.noise_schedule(target(Schedule, eps=0.5))
    model = builder.network(target(Network))
    part = builder.predictor(target(Asking))
    assert (part.model, part.tokenizer, part.noise_schedule) == (model, number_tokenizer, schedule)
    assert isinstance(number_tokenizer, PreTrainedTokenizerFast)


def test_a_part_that_asks_for_nothing_finds_them_in_its_attributes(builder, number_tokenizer):
    builder.noise_schedule(None)
    model = builder.network(target(Network))
    loss, predictor = builder.loss(target(Silent)), builder.predictor(target(Silent))
    assert (loss.model, loss.tokenizer) == (model, number_tokenizer)
    assert (predictor.model, predictor.noise_schedule) == (model, None)


def test_an_unknown_keyword_is_refused_before_anything_is_built(builder):
    with pytest.raises(ConfigError, match="has no parameter `widht` .did you mean `width`"):
        builder.network(target(Network, widht=4))


def test_a_class_that_is_not_on_the_list_is_refused(builder):
    with pytest.raises(ConfigError, match="'subprocess.Popen' is not an allowed class"):
        builder.network({"_target_": "subprocess.Popen", "args": ["true"]})
