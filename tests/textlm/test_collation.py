"""From examples to token ids, and the padding and checks that collators share."""

import pytest
import torch

from whalesong.core.errors import DataError
from whalesong.data.conversation import make_conversation
from whalesong.data.text_example import TextExample
from whalesong.textlm.collation import (
    TextCollator,
    check_lengths,
    left_padded,
    right_padded,
)

EXAMPLE = TextExample(id="a", text="1 2", prompt="3 4 5")


class Part:
    """A collator that keeps what it gets."""

    def __call__(self, examples):
        return {"examples": examples}


class Strict(Part):
    def load(self, example):
        raise DataError(f"example {example['id']}: refused.")


@pytest.fixture()
def ids(number_tokenizer):
    """The id of each number."""
    return lambda *numbers: [number_tokenizer.convert_tokens_to_ids(str(n)) for n in numbers]


def test_text_and_prompt_become_ids_without_special_tokens(number_tokenizer, ids):
    collator = TextCollator(number_tokenizer, Part())
    expected = {"id": "a", "input_ids": ids(1, 2), "prompt_ids": ids(3, 4, 5)}
    assert collator.load(EXAMPLE) == expected
    conversation = make_conversation("a", [("user", "3 4 5"), ("assistant", "1 2")])
    assert collator.load(conversation) == expected
    assert collator.measure_tokens(EXAMPLE) == 5


def test_a_text_alone_has_no_prompt(number_tokenizer, ids):
    loaded = TextCollator(number_tokenizer, Part()).load(TextExample(id="b", text="7"))
    assert loaded == {"id": "b", "input_ids": ids(7)}


def test_token_ids_are_taken_as_they_are(number_tokenizer):
    example = TextExample(id="c", input_ids=[7, 8], prompt_ids=[9])
    loaded = TextCollator(number_tokenizer, Part()).load(example)
    assert loaded == {"id": "c", "input_ids": [7, 8], "prompt_ids": [9]}


@pytest.mark.parametrize(
    ("example", "said"),
    [
        (TextExample(id="x", input_ids=[]), "example x: has no target tokens"),
        (TextExample(id="x", text=""), "example x: has no target tokens"),
        (TextExample(id="x", input_ids=[99]), "token id 99 is outside the vocabulary of 16 tokens"),
        (TextExample(id="x", input_ids=[7], prompt_ids=[-1]), "token id -1 is outside"),
    ],
)
def test_bad_examples_are_named(number_tokenizer, example, said):
    with pytest.raises(DataError, match=said):
        TextCollator(number_tokenizer, Part()).load(example)


def test_a_part_may_refuse_an_example_as_it_loads(number_tokenizer):
    with pytest.raises(DataError, match="example a: refused"):
        TextCollator(number_tokenizer, Part(), predict=Strict()).load(EXAMPLE)


def test_predictions_stand_beside_the_batch_with_their_names(number_tokenizer):
    collator = TextCollator(number_tokenizer, Part(), predict=Part())
    loaded = collator.load(EXAMPLE)
    batch = collator([loaded])
    assert batch["examples"] == [loaded]
    assert batch["prediction"] == {"examples": [loaded], "example_ids": ["a"]}
    assert "prediction" not in collator([])
    alone = collator.load(TextExample(id="b", text="7"))
    assert "prediction" not in collator([alone])


def test_padding_at_either_side():
    rows = [[1, 2, 3], [4]]
    ids, mask = left_padded(rows, pad_id=0)
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask.tolist() == [[True] * 3, [False, False, True]]
    ids, mask = right_padded(rows, pad_id=0, length=4)
    assert ids.tolist() == [[1, 2, 3, 0], [4, 0, 0, 0]]
    assert mask.sum().item() == 4 and mask.dtype == torch.bool
    assert right_padded([], pad_id=0)[0].shape == (0, 0)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ({"input_ids": [1] * 4}, "its target has 5 tokens .*, but `block_size` is 4"),
        ({"input_ids": [1], "prompt_ids": [1] * 3}, "its prompt has 4 .* `input_block_size` is 3"),
    ],
)
def test_what_does_not_fit_into_its_block_is_named(ids, said):
    sizes = {"block_size": 4, "input_block_size": 3, "num_special_target": 1}
    with pytest.raises(DataError, match=said):
        check_lengths([{"id": "x", **ids}], **sizes, num_special_prompt=1)
    check_lengths([{"id": "y", "input_ids": [1] * 3}], **sizes, num_special_prompt=1)
