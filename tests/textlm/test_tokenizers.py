"""Tokenizers of text models: exact round trips, special tokens, and files without a path."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from whalesong.core.errors import ArchiveError, ConfigError, DataError
from whalesong.textlm.config import TokenizerConfig
from whalesong.textlm.tokenizers import (
    SPECIAL_TOKENS,
    build_tokenizer,
    encode,
    require,
    tokenizer_files,
    tokenizer_from_files,
)
from whalesong.tiny.tokenizer import train_tokenizer

CONFIGS = {
    "numbers": TokenizerConfig(type="numbers", count=20),
    "words": TokenizerConfig(type="words", vocabulary=["to", "be", "or", "not"]),
    "characters": TokenizerConfig(type="characters", vocabulary=sorted("abc \n'\u00e9\u65e5")),
    "bytes": TokenizerConfig(type="bytes"),
}


@pytest.fixture(scope="module")
def built() -> Callable[[str], PreTrainedTokenizerFast]:
    tokenizers = {name: build_tokenizer(config) for name, config in CONFIGS.items()}
    return tokenizers.__getitem__


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained tokenizer without a mask token."""
    folder = tmp_path_factory.mktemp("pretrained")
    train_tokenizer(["to be or not to be", "that is it"] * 5, max_vocab_size=300).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        ("numbers", "3 5 19 0", [10, 12, 26, 7]),
        ("numbers", "3 [MASK] [SEP] 5", [10, 2, 5, 12]),
        ("words", "to be [MASK] not to be", [7, 8, 2, 10, 7, 8]),
        ("characters", "a b\n", [10, 8, 11, 7]),
        ("characters", "[MASK]a[EOS]", [2, 10, 3]),
        ("bytes", "a\u00e9", [7 + 97, 7 + 0xC3, 7 + 0xA9]),
        ("bytes", "a[MASK] b", [7 + 97, 2, 7 + 32, 7 + 98]),
    ],
)
def test_ids_and_back(
    built: Callable[[str], PreTrainedTokenizerFast], name: str, text: str, ids: list[int]
) -> None:
    assert encode(built(name), text) == ids
    assert built(name).decode(ids) == text


@cache
def bytes_tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(CONFIGS["bytes"])


@given(text=st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_bytes_give_every_text_back(text: str) -> None:
    text = text.replace("[", "(")
    tokenizer = bytes_tokenizer()
    ids = encode(tokenizer, text)
    assert ids == [7 + byte for byte in text.encode()]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@given(text=st.text(alphabet="abc \n'\u00e9\u65e5", min_size=1, max_size=40))
@settings(max_examples=80, deadline=None)
def test_characters_give_their_texts_back(text: str) -> None:
    tokenizer = build_tokenizer(CONFIGS["characters"])
    ids = encode(tokenizer, text)
    assert len(ids) == len(text) and tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", CONFIGS)
def test_special_tokens_come_first(
    built: Callable[[str], PreTrainedTokenizerFast], name: str
) -> None:
    tokenizer = built(name)
    names = ("pad", "cls", "mask", "eos", "bos", "sep", "unk")
    assert [getattr(tokenizer, f"{name}_token_id") for name in names] == list(range(7))
    assert len(tokenizer) == 7 + {"numbers": 20, "words": 4, "characters": 8, "bytes": 256}[name]
    assert tokenizer.decode([0, 1, 2, 3, 4, 5, 6], skip_special_tokens=True) == ""
    assert isinstance(tokenizer, PreTrainedTokenizerFast)


@pytest.mark.parametrize("name", CONFIGS)
def test_files_hold_all_of_it_and_no_path(
    built: Callable[[str], PreTrainedTokenizerFast], name: str
) -> None:
    files = tokenizer_files(built(name))
    again = tokenizer_from_files(files)
    assert tokenizer_files(again) == files
    text = {"numbers": "1 [MASK] 2", "words": "to [MASK] be"}.get(name, "ab[MASK] \u00e9")
    assert encode(again, text) == encode(built(name), text)
    assert again.special_tokens_map == built(name).special_tokens_map
    if name == "numbers":
        with pytest.raises(DataError):
            encode(again, "99")


def test_a_number_outside_the_range_is_one_line(
    built: Callable[[str], PreTrainedTokenizerFast],
) -> None:
    message = "^the text '3 20 4' has '20', but the tokenizer knows the numbers 0 to 19 only.$"
    with pytest.raises(DataError, match=message):
        encode(built("numbers"), "3 20 4")
    assert encode(built("words"), "to bee") == [7, 6]
    assert encode(built("characters"), "xa") == [6, 10]


def test_vocabularies_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("to\nbe\n\nnot\n")
    config = TokenizerConfig(type="words", vocabulary=str(tmp_path / "words.txt"))
    assert encode(build_tokenizer(config), "not to") == [9, 7]
    config = TokenizerConfig(type="characters", vocabulary=str(tmp_path / "words.txt"))
    assert len(build_tokenizer(config)) == 7 + len("\nbenot")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"type": "words", "vocabulary": []}, "`tokenizer.vocabulary` is empty"),
        ({"type": "words", "vocabulary": ["a", "b c"]}, "must hold words, but holds 'b c'"),
        ({"type": "words", "vocabulary": ["a", "a"]}, "has 'a' twice"),
        ({"type": "words", "vocabulary": ["[EOS]"]}, r"'\[EOS\]' twice, or as a special token"),
        ({"type": "characters", "vocabulary": ["ab"]}, "must hold characters, but holds 'ab'"),
        ({"type": "words", "vocabulary": "nowhere.txt"}, "cannot read nowhere.txt"),
        ({"type": "pretrained", "path": "./nowhere"}, "./nowhere is no tokenizer"),
    ],
)
def test_unusable_tokenizers_are_one_line(keys: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_tokenizer(TokenizerConfig(**keys))


def test_a_pretrained_tokenizer_reads_as_it_did(folder: Path) -> None:
    config = TokenizerConfig(type="pretrained", path=str(folder))
    tokenizer, reference = build_tokenizer(config), AutoTokenizer.from_pretrained(folder)
    text = "to be  or not"
    assert encode(tokenizer, text) == reference.encode(text, add_special_tokens=False)
    assert tokenizer.decode(encode(tokenizer, text)) == reference.decode(encode(tokenizer, text))
    assert str(folder).encode() not in b"".join(tokenizer_files(tokenizer).values())


def test_special_tokens_can_be_added_to_a_pretrained_one(folder: Path) -> None:
    plain = build_tokenizer(TokenizerConfig(type="pretrained", path=str(folder)))
    message = (
        r"^mdlm needs a tokenizer with a `mask_token`, .*\n?.*special_tokens.mask_token='\[MASK\]'"
    )
    with pytest.raises(ConfigError, match=message):
        require(plain, "mask_token", for_what="mdlm")
    added = {"mask_token": "[MASK]"}
    config = TokenizerConfig(type="pretrained", path=str(folder), special_tokens=added)
    tokenizer = build_tokenizer(config)
    assert require(tokenizer, "mask_token", for_what="mdlm") == len(plain) == len(tokenizer) - 1
    assert tokenizer.mask_token_id in encode(tokenizer, "to [MASK] be")
    again = tokenizer_from_files(tokenizer_files(tokenizer))
    assert again.mask_token_id == tokenizer.mask_token_id
    config.special_tokens = {"musk_token": "[MASK]"}
    with pytest.raises(ConfigError, match="`tokenizer.special_tokens` knows .*`musk_token`"):
        build_tokenizer(config)


def test_remote_code_is_not_run(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "evil.py").write_text("raise SystemExit('run')\n")
    text = (tmp_path / "tokenizer_config.json").read_text()
    remote = '{"auto_map": {"AutoTokenizer": [null, "evil.Evil"]}, "tokenizer_class": "Evil", '
    (tmp_path / "tokenizer_config.json").write_text(text.replace("{", remote, 1))
    try:
        build_tokenizer(TokenizerConfig(type="pretrained", path=str(tmp_path)))
    except ConfigError as error:
        assert "is no tokenizer" in str(error)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokenizer.json": None}, "the tokenizer has no file `tokenizer.json`"),
        ({"tokenizer.json": b"{}"}, "the tokenizer cannot be read"),
        ({"tokenizer_config.json": b"[1"}, "the tokenizer cannot be read"),
        ({"tokenizer_config.json": b'{"auto_map": {}}'}, "has the unknown key 'auto_map'"),
    ],
)
def test_damaged_files_are_one_line(
    built: Callable[[str], PreTrainedTokenizerFast], changed: dict, message: str
) -> None:
    files = {**tokenizer_files(built("words")), **changed}
    files = {name: content for name, content in files.items() if content is not None}
    with pytest.raises(ArchiveError, match=message):
        tokenizer_from_files(files)


def test_each_special_token_can_be_required(
    built: Callable[[str], PreTrainedTokenizerFast],
) -> None:
    ids = [require(built("bytes"), name, for_what="a test") for name in SPECIAL_TOKENS]
    assert ids == list(range(7))
