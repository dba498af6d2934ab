"""An untrained CLAP with its tokenizer and feature extractor, saved as transformers saves one."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
SAMPLE_RATE = 48000


def build_tiny_clap(
    output: str | Path, *, words: Sequence[str], max_seconds: float = 1.0, fusion: bool = False
) -> Path:
    """Save a random `ClapModel` of a few layers with embeddings of width 8.

    Args:
        output: folder, new or empty.
        words: that the tokenizer knows.
        max_seconds: how much audio it hears at once.
        fusion: as models that fuse several pieces of longer audio.
    """
    vocabulary = [*SPECIAL_TOKENS, *words]
    torch.manual_seed(0)
    text = {
        "vocab_size": len(vocabulary), "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 12,
        "projection_dim": 8, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    audio = {
        "spec_size": 64, "hidden_size": 32, "patch_embeds_hidden_size": 16, "depths": [1, 1],
        "num_attention_heads": [2, 2], "num_mel_bins": 16, "num_hidden_layers": 2,
        "projection_dim": 8, "window_size": 4, "enable_fusion": fusion, "aff_block_r": 2,
    }  # fmt: skip
    config = ClapConfig(text_config=text, audio_config=audio, projection_dim=8)
    ClapModel(config).save_pretrained(output)
    kind = "fusion" if fusion else "rand_trunc"
    features = ClapFeatureExtractor(feature_size=16, max_length_s=1, truncation=kind)
    features.nb_max_samples = round(max_seconds * SAMPLE_RATE)
    features.save_pretrained(output)
    _tokenizer(vocabulary).save_pretrained(output)
    return Path(output)


def _tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token for each word, between the marks that RoBERTa puts around a text."""
    ids = {word: index for index, word in enumerate(vocabulary)}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)
