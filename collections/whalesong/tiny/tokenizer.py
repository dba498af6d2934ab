"""A small sentencepiece-like BPE tokenizer with byte fallback, as the Llama family uses."""

import json
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from whalesong.core.errors import ConfigError

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))

# The text of NeMo's `llama2` prompt format, so that both roads give the same token ids.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' </s>' }}"
    "{% else %}{{ '<s>[INST] ' + message['content'] + ' [/INST]' }}{% endif %}"
    "{% endfor %}"
)


def train_tokenizer(texts: Sequence[str], *, max_vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer in which frequent words are one token and any other text is bytes.

    Words carry the blank before them, and a text is read as if it began with one, so a word has
    the same token wherever it stands. `encode` adds no special tokens.

    Args:
        texts: what the merges are learned from.
        max_vocab_size: upper bound for `len(tokenizer)`.

    Raises:
        ConfigError: if the bytes, special tokens and characters alone do not fit.
    """
    vocab, merges = _learn_merges(texts, max_vocab_size - len(BYTE_TOKENS))
    pieces = (*SPECIAL_TOKENS, *BYTE_TOKENS, *(p for p in vocab if p not in SPECIAL_TOKENS))
    if len(pieces) > max_vocab_size:
        raise ConfigError(
            f"`vocab_size` must leave at least {len(pieces)} tokens for bytes and characters, "
            f"but leaves {max_vocab_size} instead."
        )
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _learn_merges(texts: Sequence[str], vocab_size: int) -> tuple[list[str], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocab_size, 0), special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(pair) for pair in model["merges"]]
