"""An untrained Musicgen with its tokenizer, saved as transformers saves one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import EncodecConfig, PreTrainedTokenizerFast, T5Config
from transformers.models.musicgen import MusicgenConfig, MusicgenForConditionalGeneration
from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig

from whalesong.core.atomic import atomic_folder

SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")


def build_tiny_musicgen(
    output: str | Path,
    *,
    texts: Sequence[str],
    num_codebooks: int = 4,
    codebook_size: int = 64,
    seed: int = 0,
    **decoder: Any,
) -> Path:
    """Save a random Musicgen: a T5 of two layers, an EnCodec at 16 kHz with 50 frames per second.

    Norms and biases are random, too, so that none of them stands at the identity.

    Args:
        output: folder, new or empty.
        texts: the tokenizer knows their words.
        num_codebooks: K.
        codebook_size: V.
        seed: of all weights.
        decoder: further fields of `MusicgenDecoderConfig`.
    """
    words = sorted({word for text in texts for word in text.split()})
    tokenizer = _word_tokenizer([*SPECIAL_TOKENS, *words])
    config = MusicgenConfig(
        text_encoder=_text_encoder(len(tokenizer)).to_dict(),
        audio_encoder=_codec(num_codebooks, codebook_size).to_dict(),
        decoder=_decoder(num_codebooks, codebook_size, **decoder).to_dict(),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MusicgenForConditionalGeneration(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name or name.endswith("bias"):
                    parameter.add_(torch.randn_like(parameter) * 0.2)
    with atomic_folder(output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return Path(output)


def _word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token for each word, and the end behind a text, as T5 wants it."""
    pad, end, unknown = SPECIAL_TOKENS
    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        f"$A {end}", f"$A $B {end}", [(end, ids[end])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token=end, unk_token=unknown
    )


def _text_encoder(vocab_size: int) -> T5Config:
    return T5Config(vocab_size=vocab_size, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)


def _codec(num_codebooks: int, codebook_size: int) -> EncodecConfig:
    bits = (codebook_size - 1).bit_length()
    return EncodecConfig(
        target_bandwidths=[num_codebooks * bits * 50 / 1000],
        sampling_rate=16000,
        codebook_size=codebook_size,
        codebook_dim=16,
        hidden_size=16,
        num_filters=4,
        upsampling_ratios=[8, 5, 4, 2],
        num_lstm_layers=1,
    )


def _decoder(num_codebooks: int, codebook_size: int, **fields: Any) -> MusicgenDecoderConfig:
    small = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 96,
        "initializer_factor": 0.3,
    }
    return MusicgenDecoderConfig(
        vocab_size=codebook_size,
        num_codebooks=num_codebooks,
        pad_token_id=codebook_size,
        bos_token_id=codebook_size,
        **{**small, **fields},
    )
