"""Tokenizers of text models: built from a few lines of YAML, or those of transformers.

All of them are `PreTrainedTokenizerFast` and travel in an archive as the bytes of their files.
Those that are built here begin with `SPECIAL_TOKENS`; a special token that stands in a text,
such as "[MASK]", becomes its id. Decoding gives the text back (`numbers` and `words` with one
blank between the tokens).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from whalesong.core.errors import ArchiveError, ConfigError, DataError
from whalesong.textlm.config import TokenizerConfig

SPECIAL_TOKENS: Mapping[str, str] = {
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
    "eos_token": "[EOS]",
    "bos_token": "[BOS]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
}
"""Special tokens of the tokenizers that are built here; their ids are 0 to 6, in this order."""

_TOKENIZER, _CONFIG = "tokenizer.json", "tokenizer_config.json"
_REFUSES = "refuses_unknown"
"""The key of `tokenizer_config.json` that says whether unknown tokens are an error."""


def build_tokenizer(config: TokenizerConfig) -> PreTrainedTokenizerFast:
    """Build the tokenizer of a text model.

    Raises:
        ConfigError: its vocabulary, folder or tokens cannot be used.
    """
    if config.type == "pretrained":
        return _pretrained(config.path, config.special_tokens)
    if config.type == "numbers":
        tokenizer = _words([str(number) for number in range(config.count)])
    elif config.type == "words":
        tokenizer = _words(_vocabulary(config.vocabulary))
    elif config.type == "characters":
        tokenizer = _characters(_vocabulary(config.vocabulary, characters=True))
    else:
        tokenizer = _bytes()
    return _wrapped(tokenizer, {**SPECIAL_TOKENS, _REFUSES: config.type == "numbers"})


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The token ids of a text without special tokens around it.

    What is not in the vocabulary becomes the unknown token, but for numbers: a graph with two nodes
    of the same name would be another one.

    Raises:
        DataError: a number is outside the vocabulary.
    """
    # The backend itself takes a fifth of the time that transformers takes around it.
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    ids = encoding.ids
    if not tokenizer.init_kwargs.get(_REFUSES) or tokenizer.unk_token_id not in ids:
        return ids
    begin, end = encoding.offsets[ids.index(tokenizer.unk_token_id)]
    last = len(tokenizer) - len(SPECIAL_TOKENS) - 1
    raise DataError(
        f"the text '{text[:40]}' has '{text[begin:end][:40]}', but the tokenizer knows the "
        f"numbers 0 to {last} only."
    )


def require(tokenizer: PreTrainedTokenizerBase, token: str, for_what: str) -> int:
    """The id of a special token that something cannot do without.

    Args:
        token: such as "mask_token".
        for_what: who needs it.

    Raises:
        ConfigError: the tokenizer has none; with how to add one.
    """
    id = getattr(tokenizer, f"{token}_id", None)
    if id is not None:
        return id
    name = token.removesuffix("_token").upper()
    raise ConfigError(
        f"{for_what} needs a tokenizer with a `{token}`, but this one has none; add one with "
        f"datamodule.tokenizer.special_tokens.{token}='[{name}]'."
    )


def tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """The files of a tokenizer by name, without any path in them."""
    config: dict[str, Any] = {
        name: str(text)
        for name, text in tokenizer.special_tokens_map.items()
        if name in SPECIAL_TOKENS
    }
    config[_REFUSES] = bool(tokenizer.init_kwargs.get(_REFUSES))
    return {
        _TOKENIZER: tokenizer.backend_tokenizer.to_str().encode(),
        _CONFIG: json.dumps(config, indent=2, sort_keys=True).encode(),
    }


def tokenizer_from_files(files: Mapping[str, bytes]) -> PreTrainedTokenizerFast:
    """The tokenizer that `tokenizer_files` gave.

    Raises:
        ArchiveError: a file is missing or damaged.
    """
    if missing := [name for name in (_TOKENIZER, _CONFIG) if name not in files]:
        raise ArchiveError(f"the tokenizer has no file `{missing[0]}`.")
    try:
        config = json.loads(files[_CONFIG])
        backend = Tokenizer.from_str(files[_TOKENIZER].decode())
        if wrong := [name for name in config if name not in (_REFUSES, *SPECIAL_TOKENS)]:
            raise ValueError(f"{_CONFIG} has the unknown key {wrong[0]!r}")
        return _wrapped(backend, config)
    except Exception as error:
        raise ArchiveError(f"the tokenizer cannot be read ({error}).") from error


def _wrapped(tokenizer: Tokenizer, config: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **config
    )


def _words(words: Sequence[str]) -> Tokenizer:
    """Tokens between blanks."""
    if wrong := [word for word in words if word.split() != [word]]:
        raise ConfigError(f"`tokenizer.vocabulary` must hold words, but holds {wrong[0]!r}.")
    tokenizer = Tokenizer(models.WordLevel(_numbered(words), unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def _characters(characters: Sequence[str]) -> Tokenizer:
    """Every character a token, blanks and line ends, too."""
    if wrong := [text for text in characters if len(text) != 1]:
        raise ConfigError(f"`tokenizer.vocabulary` must hold characters, but holds {wrong[0]!r}.")
    model = models.WordLevel(_numbered(characters), unk_token=SPECIAL_TOKENS["unk_token"])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _bytes() -> Tokenizer:
    """Every byte of the UTF-8 text a token: byte b has the id 7 + b."""
    tokenizer = Tokenizer(models.BPE(_numbered(_byte_names()), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_names() -> list[str]:
    """The characters by which `ByteLevel` calls the bytes 0 to 255, those of GPT-2."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    names = [chr(byte) if byte in printable else "" for byte in range(256)]
    others = (chr(256 + number) for number in range(256))
    return [name or next(others) for name in names]


def _numbered(tokens: Sequence[str]) -> dict[str, int]:
    """Ids of the special tokens and then of `tokens`."""
    if not tokens:
        raise ConfigError("`tokenizer.vocabulary` is empty.")
    vocabulary = {token: id for id, token in enumerate([*SPECIAL_TOKENS.values(), *tokens])}
    if len(vocabulary) < len(SPECIAL_TOKENS) + len(tokens):
        seen = set(SPECIAL_TOKENS.values())
        twice = next(token for token in tokens if token in seen or seen.add(token))
        raise ConfigError(f"`tokenizer.vocabulary` has {twice!r} twice, or as a special token.")
    return vocabulary


def _vocabulary(given: list[str] | str, *, characters: bool = False) -> list[str]:
    """The tokens of a list, or of a file: one a line, or all its characters in order."""
    if not isinstance(given, str):
        return given
    try:
        text = Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"`tokenizer.vocabulary`: cannot read {given} ({error}).") from error
    return sorted(set(text)) if characters else text.split()


def _pretrained(path: str, special: Mapping[str, str]) -> PreTrainedTokenizerFast:
    """A tokenizer of transformers with the special tokens that it has not; it runs no code."""
    from transformers import AutoTokenizer

    if unknown := [name for name in special if name not in SPECIAL_TOKENS]:
        known = ", ".join(SPECIAL_TOKENS)
        raise ConfigError(f"`tokenizer.special_tokens` knows {known}, but has `{unknown[0]}`.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True, trust_remote_code=False)
    except Exception as error:
        first = str(error).strip().splitlines()[0][:200]
        raise ConfigError(f"`tokenizer.path`: {path} is no tokenizer ({first}).") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(f"`tokenizer.path`: {path} has no `tokenizer.json` (a fast tokenizer).")
    tokenizer.add_special_tokens(dict(special))
    # As it will be restored, so that a saved model reads texts as this one does.
    return tokenizer_from_files(tokenizer_files(tokenizer))
