"""Texts from classes, from data sets of Hugging Face, and from JSON lines."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from whalesong.core.errors import ConfigError, DataError
from whalesong.core.instantiate import register_target
from whalesong.core.schema import validate
from whalesong.data.config import DataConfig, DatasetConfig
from whalesong.data.conversation import make_conversation, text_of
from whalesong.data.datamodule import fingerprint
from whalesong.data.loader import BatchLoader
from whalesong.data.text_example import TextExample

STARS = {"type": "generated", "_target_": "whalesong.corpora.star_graphs.StarGraphs"}


@register_target
class Numbers:
    """Says its numbers, in the form that is asked for."""

    def __init__(self, count: int, form: str = "text") -> None:
        self.count, self.form = int(count), form

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        forms = {
            "text": {"text": f"number {index}", "lang": "en"},
            "ids": {"input_ids": [index, 7], "prompt_ids": (1, 2)},
            "none": {"prompt": "what?"},
            "both": {"text": "a", "input_ids": [1]},
            "empty text": {"text": " "},
            "empty prompt": {"text": "a", "prompt": ""},
            "empty ids": {"input_ids": []},
            "floats": {"input_ids": [1, 2.0]},
            "bools": {"input_ids": [True]},
            "negative": {"input_ids": [3, -1]},
            "no list": {"input_ids": "12"},
            "no text": {"text": 5},
            "no mapping": "text",
        }
        if self.form == "third fails" and index == 2:
            raise ZeroDivisionError("by nought")
        return forms.get(self.form, forms["text"])


@register_target
class NoDataset:
    """Has no examples."""


NUMBERS = {"type": "generated", "_target_": f"{__name__}.Numbers", "count": 3}


@pytest.fixture
def read(plan_of: Callable[..., Any]) -> Callable[..., list[TextExample]]:
    """All examples of one item in order."""

    def run(item: dict[str, Any], **keys: Any) -> list[TextExample]:
        plan = plan_of(input_cfg=[item], batch_size=2, shuffle=False, **keys)
        return list(plan.examples(0))

    return run


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Any]]:
    """2500 rows: more than two shards."""
    count = range(2500)
    return {
        "question": [f"what is {i}?" for i in count],
        "text": [f"it is {i}" for i in count],
        "tokens": [[i, 1] for i in count],
    }


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory, rows: dict[str, list[Any]]) -> Path:
    folder = tmp_path_factory.mktemp("hf")
    Dataset.from_dict(rows).save_to_disk(folder / "plain")
    splits = {"train": Dataset.from_dict(rows), "test": Dataset.from_dict({"text": ["a"]})}
    DatasetDict(splits).save_to_disk(folder / "split")
    Dataset.from_dict({"text": []}).save_to_disk(folder / "empty")
    return folder


def test_a_class_gives_its_examples(read: Callable[..., Any]) -> None:
    assert read(NUMBERS) == [
        TextExample(f"Numbers:{i}", f"number {i}", custom={"lang": "en"}) for i in range(3)
    ]
    ids = read({**NUMBERS, "form": "ids"})
    assert (ids[2].input_ids, ids[2].prompt_ids, ids[2].text) == ([2, 7], [1, 2], "")
    stars = read({**STARS, "size": "mini", "num_examples": 5, "tags": {"task": "stars"}})
    assert [star.id for star in stars] == [f"star_mini-train-{i}" for i in range(5)]
    assert len(stars[0].prompt.split()) == 14 and len(stars[0].text.split()) == 4
    assert stars[0].custom == {"task": "stars"}


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("none", "must have either `text` or `input_ids`, but has neither, but `prompt`"),
        ("both", "must have either `text` or `input_ids`, but has both"),
        ("empty text", "its `text` is empty"),
        ("empty prompt", "its `prompt` is empty"),
        ("empty ids", "its `input_ids` are empty"),
        ("floats", "its `input_ids` must be integers of at least 0, but hold 2.0"),
        ("bools", "its `input_ids` must be integers of at least 0, but hold True"),
        ("negative", "its `input_ids` must be integers of at least 0, but hold -1"),
        ("no list", "its `input_ids` must be a list of token ids, but is '12'"),
        ("no text", "its `text` must be a string, but is 5"),
        ("no mapping", "must be a mapping with `text` or `input_ids`, but is 'text'"),
    ],
)
def test_examples_that_are_none_are_one_line(
    read: Callable[..., Any], form: str, message: str
) -> None:
    with pytest.raises(DataError, match=f"^Numbers, example 0: {message}.$"):
        read({**NUMBERS, "form": form})


def test_a_class_that_fails_is_one_line_or_one_example(read: Callable[..., Any]) -> None:
    item = {**NUMBERS, "form": "third fails"}
    message = r"Numbers, example 2: cannot be made \(ZeroDivisionError: by nought\)"
    with pytest.raises(DataError, match=message) as error:
        read(item)
    assert isinstance(error.value.__context__, ZeroDivisionError)
    assert len(read(item, on_bad_cut="skip")) == 2


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"_target_": "torch.load", "f": "x"}, "`_target_`: 'torch.load' is not an allowed class"),
        ({**NUMBERS, "cuont": 3}, "has no parameter `cuont` .did you mean `count`"),
        ({**STARS, "size": "eazy"}, "`size` must be one of mini"),
        ({**NUMBERS, "count": "x"}, "Numbers`: invalid literal for int"),
        ({"_target_": f"{__name__}.NoDataset"}, "NoDataset has no `__len__`: no data set"),
        ({**NUMBERS, "count": 0}, "Numbers has no examples"),
    ],
)
def test_a_wrong_class_is_one_line(
    read: Callable[..., Any], item: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=message) as error:
        read({"type": "generated", **item})
    assert "data.train_ds.input_cfg[0]" in str(error.value)


def test_the_class_is_mandatory() -> None:
    with pytest.raises(ConfigError, match=r"input_cfg\[0\]._target_` is mandatory"):
        validate(DatasetConfig, {"input_cfg": [{"type": "generated"}]}, path="data.train_ds")


def test_arguments_survive_the_schemas() -> None:
    section = {"input_cfg": [{**STARS, "size": "mini", "seed": 7}], "batch_size": 2}
    data = {"train_ds": section, "validation_ds": {"datasets": {"a": section}}}
    config = validate(DataConfig, data, path="data")
    [item] = config.validation_ds.named_sets(path="data.validation_ds")["a"].input_cfg
    assert item.target == STARS["_target_"] and item.arguments == {"size": "mini", "seed": 7}
    other = validate(DataConfig, {"train_ds": {**section, "input_cfg": [STARS]}}, path="data")
    assert fingerprint(config) != fingerprint(other)


def test_a_saved_dataset_gives_its_rows(
    read: Callable[..., Any], hf_folder: Path, rows: dict[str, list[Any]]
) -> None:
    item = {"type": "hf_dataset", "path": str(hf_folder / "plain")}
    texts = read({**item, "prompt_field": "question"})
    assert [text.text for text in texts] == rows["text"]
    assert [text.prompt for text in texts] == rows["question"]
    assert texts[1500].id == "plain:1500" and texts[0].custom == {}
    tokens = read({**item, "input_ids_field": "tokens"})
    assert [text.input_ids for text in tokens] == rows["tokens"]
    assert tokens[0].prompt is None
    [one] = read({"type": "hf_dataset", "path": str(hf_folder / "split"), "split": "test"})
    assert one.text == "a"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"path": "nowhere"}, "nowhere: is no folder; a data set is written by its `save_to_disk`"),
        ({"path": ""}, ": holds no data set that `save_to_disk` has written"),
        ({"path": "plain", "text_field": "txt"}, "has no field `txt`; did you mean `text`"),
        ({"path": "plain", "prompt_field": "asked"}, "no field `asked`, but `question`, `text`"),
        ({"path": "plain", "split": "test"}, r"split`: \S+plain has no splits; leave it out"),
        ({"path": "split"}, r"split` is missing: \S+split has train, test"),
        ({"path": "split", "split": "dev"}, "split` must be one of train, test, but is 'dev'"),
        ({"path": "empty"}, "empty: cannot be read as a data set"),
    ],
)
def test_a_wrong_dataset_is_one_line(
    read: Callable[..., Any], hf_folder: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        read({"type": "hf_dataset", **keys, "path": str(hf_folder / keys["path"])})


def test_a_damaged_dataset_is_one_line(read: Callable[..., Any], tmp_path: Path) -> None:
    Dataset.from_dict({"text": ["a"] * 10}).save_to_disk(tmp_path / "set")
    [arrow] = (tmp_path / "set").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:40])
    with pytest.raises(DataError, match="set: cannot be read as a data set"):
        read({"type": "hf_dataset", "path": str(tmp_path / "set")})


def test_rows_are_read_in_pieces(
    read: Callable[..., Any], hf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[slice] = []
    get = Dataset.__getitem__
    monkeypatch.setattr(
        Dataset, "__getitem__", lambda self, key: (asked.append(key), get(self, key))[1]
    )
    read({"type": "hf_dataset", "path": str(hf_folder / "plain")})
    assert [(key.start, key.stop) for key in asked] == [(0, 1000), (1000, 2000), (2000, 2500)]


def test_json_lines_give_their_examples(read: Callable[..., Any], tmp_path: Path) -> None:
    lines = [
        {"id": 4, "prompt": "1 + 1", "text": "2", "level": "easy", "tokens": [5]},
        {"prompt": "1 + 2", "text": "3", "tokens": [6, 7]},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n\n".join(map(json.dumps, lines)))
    item = {"type": "text_pairs", "paths": str(file)}
    first, second = read(item)
    assert (first.id, first.prompt, first.text) == ("4", "1 + 1", "2")
    assert first.custom == {"level": "easy", "tokens": [5]}
    assert second.id == "pairs.jsonl:3"
    alone = read({**item, "prompt_field": None, "input_ids_field": "tokens"})
    assert [(one.prompt, one.input_ids) for one in alone] == [(None, [5]), (None, [6, 7])]
    with pytest.raises(DataError, match="pairs.jsonl, line 1: has no field `propmt`; did you mean"):
        read({**item, "prompt_field": "propmt"})
    with pytest.raises(
        ConfigError, match="one of `text_field` and `input_ids_field`, but has both"
    ):
        read({**item, "text_field": "text", "input_ids_field": "tokens"})


def test_bad_lines_are_left_out_if_wanted(read: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "a", "text": "b"}\n{"prompt": "a"}\n[1]\n{"text": "b"\n')
    item = {"type": "text_pairs", "paths": str(file)}
    with pytest.raises(DataError, match="line 2: has no field `text`, but `prompt`"):
        read(item)
    assert len(read(item, on_bad_cut="skip")) == 1


def test_conversations_without_audio_are_texts() -> None:
    parts = [("system", "be brief"), ("user", "why?"), ("assistant", "so")]
    assert text_of(make_conversation("a", parts)) == TextExample("a", "so", prompt="why?")
    assert text_of(make_conversation("a", [("assistant", "so")])).prompt is None


def test_texts_meet_no_filter_of_audio(read: Callable[..., Any]) -> None:
    assert len(read(NUMBERS, min_duration=1.0)) == 3
    with pytest.raises(DataError, match="no example is left"):
        read({**NUMBERS, "tags": {"validation_status": "fail"}})


def test_batches_by_tokens(plan_of: Callable[..., Any]) -> None:
    plan = plan_of(
        input_cfg=[{**STARS, "size": "medium", "num_examples": 200}],
        batch_tokens=200,
        max_tokens=38,
        use_bucketing=True,
        num_buckets=3,
        measure_tokens=lambda example: len(example.prompt.split()) + len(example.text.split()),
    )
    lengths = [[plan.measure_tokens(one) for one in batch] for batch in plan.batches(0)]
    assert all(len(batch) * max(batch) <= 200 and max(batch) <= 38 for batch in lengths)
    assert 0 < plan.filters.dropped["more tokens than max_tokens (38)"] < 100


def test_lengths_of_text_and_of_tokens_fill_batches_alike(plan_of: Callable[..., Any]) -> None:
    """Fifteen characters, or tokens, count as a second where nobody measures tokens."""
    for form, count in (("text", 8), ("ids", 4)):
        item = {**NUMBERS, "count": 6, "form": form}
        plan = plan_of(input_cfg=[item], batch_duration=2 * count / 15 + 1e-6)
        assert [len(batch) for batch in plan.batches(0)] == [2, 2, 2]


class Plain:
    """A collator that gives the examples."""

    def load(self, example: TextExample) -> TextExample:
        return example

    def __call__(self, loaded: list[TextExample]) -> list[str]:
        return [f"{one.id} {one.text}" for one in loaded]


def test_examples_are_small_to_send() -> None:
    assert len(pickle.dumps(TextExample("a", "b c", prompt="d"))) < 200


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stream_begun_anywhere_is_the_tail_of_the_whole(
    plan_of: Callable[..., Any], hf_folder: Path, num_workers: int
) -> None:
    keys = {
        "input_cfg": [
            {**STARS, "size": "easy", "num_examples": 1100},
            {"type": "hf_dataset", "path": str(hf_folder / "plain")},
        ],
        "batch_size": 100,
        "seed": 3,
    }

    def stream(start: int, count: int) -> list[list[str]]:
        loader = BatchLoader(plan_of(**keys), Plain(), infinite=True, num_workers=num_workers)
        loader.load_state_dict({"consumed": start, "epoch": start // 36, "batch": start % 36})
        batches = iter(loader)
        taken = [next(batches) for _ in range(count)]
        loader.close()
        return taken

    whole = stream(0, 40)
    assert len({id for batch in whole[:36] for id in batch}) == 3600
    assert stream(34, 6) == whole[34:]
