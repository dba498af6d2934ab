"""Tiny pretrained parts in their real formats, and one example of each type of conditioner."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from whalesong.modules.codec.codec import Codec
from whalesong.modules.conditioning.build import build_conditioner
from whalesong.modules.conditioning.conditioner import Conditioner

TEXTS = ["a calm piano piece", "a fast techno beat with a synth lead", "rain"]


@dataclass
class Example:
    """A conditioner with values of very different lengths for it."""

    type: str
    fields: dict[str, Any]
    values: list[Any]
    codec: Codec
    output_dim: int = 24

    def build(self, **changes: Any) -> Conditioner:
        torch.manual_seed(1)
        fields = {**self.fields, **changes.pop("fields", {})}
        options = {"output_dim": self.output_dim, "codec": self.codec, **changes}
        return build_conditioner(self.type, fields, **options)


@pytest.fixture(scope="session")
def codec() -> Codec:
    """A real codec: 3 codebooks of 8 codes, 100 frames a second."""
    from whalesong.modules.codec.mel_rvq import MelRVQSizes, fit_mel_rvq

    sizes = MelRVQSizes(
        sample_rate=8000, hop_length=80, num_codebooks=3, codebook_size=8, n_fft=160, n_mels=8
    )
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(16000, generator=generator) * torch.linspace(0.01, 1, 16000)
    return fit_mel_rvq([noise], sizes)


@pytest.fixture(scope="session")
def codec_file(tmp_path_factory: pytest.TempPathFactory, codec: Codec) -> Path:
    """The same codec in a file."""
    from whalesong.modules.codec.files import save_codec

    path = tmp_path_factory.mktemp("codec") / "codec.safetensors"
    save_codec(codec, path)
    return path


@pytest.fixture(scope="session")
def t5gemma_folder(
    save_tokenizer: Callable[[Path], int], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration, T5GemmaModuleConfig

    folder = tmp_path_factory.mktemp("t5gemma")
    sizes = {
        "vocab_size": save_tokenizer(folder), "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    }  # fmt: skip
    part = T5GemmaModuleConfig(**sizes)
    torch.manual_seed(0)
    config = T5GemmaConfig(encoder=part, decoder=part, vocab_size=sizes["vocab_size"])
    T5GemmaForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llm_folder(
    save_tokenizer: Callable[[Path], int], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llm")
    config = LlamaConfig(
        vocab_size=save_tokenizer(folder), hidden_size=16, intermediate_size=32,
        num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clap_folder(
    save_tokenizer: Callable[[Path], int], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    folder = tmp_path_factory.mktemp("clap")
    text = {
        "vocab_size": save_tokenizer(folder), "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 40,
        "pad_token_id": 0, "projection_hidden_act": "relu",
    }  # fmt: skip
    audio = {
        "spec_size": 64, "num_mel_bins": 32, "patch_embeds_hidden_size": 8, "hidden_size": 64,
        "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2], "window_size": 2,
        "patch_size": 4, "patch_stride": [4, 4],
    }  # fmt: skip
    torch.manual_seed(0)
    config = ClapConfig(text_config=text, audio_config=audio, projection_dim=12)
    ClapModel(config).save_pretrained(folder)
    ClapFeatureExtractor(
        feature_size=32, sampling_rate=8000, hop_length=80, fft_window_size=160,
        max_length_s=1, truncation="rand_trunc", frequency_max=4000,
    ).save_pretrained(folder)  # fmt: skip
    return folder


TYPES = (
    "audio_prompt", "causal_lm", "clap_audio", "clap_text", "clap_text of tokens", "int", "list",
    "lut", "number", "number expo", "phoneme", "pretransform", "source_mix", "t5", "t5 learned",
    "t5gemma", "text", "text without layers",
)  # fmt: skip


@pytest.fixture(params=TYPES)
def example(request: pytest.FixtureRequest, codec: Codec) -> Example:
    """Every type of conditioner, one after the other."""
    return make_example(request.param, request.getfixturevalue, codec)


def make_example(name: str, fixture: Callable[[str], Any], codec: Codec) -> Example:
    generator = torch.Generator().manual_seed(2)
    audio = torch.randn(2, 4000, generator=generator)
    codes = torch.randint(0, 8, (3, 17), generator=generator)
    recordings = [audio, codes, {"audio": audio[0, :1700], "sample_rate": 4000}]
    match name:
        case "audio_prompt":
            fields, values = {"max_seconds": 0.3}, recordings
        case "causal_lm" | "t5gemma":
            folder = fixture({"causal_lm": "llm_folder", "t5gemma": "t5gemma_folder"}[name])
            fields, values = {"model_path": str(folder)}, TEXTS
        case "clap_audio":
            fields = {"clap_ckpt_path": str(fixture("clap_folder"))}
            values = [recordings[0], recordings[2], torch.randn(30000, generator=generator)]
        case "clap_text" | "clap_text of tokens":
            fields = {"clap_ckpt_path": str(fixture("clap_folder")), "max_length": 16}
            fields["use_text_features"] = name.endswith("tokens")
            values = TEXTS
        case "int":
            fields, values = {"min_val": -3, "max_val": 9}, [-7, 4, 9]
        case "list":
            fields, values = {"options": ["rock", "jazz"]}, ["jazz", "polka", "rock"]
        case "lut":
            folder = fixture("tiny_t5")
            fields = {"tokenizer_name": str(folder), "use_abs_pos_emb": True}
            fields |= {"special_tokens": ["[loud]"], "project_out": True}
            values = [*TEXTS[:2], "[loud] rain"]
        case "number" | "number expo":
            fields, values = {"min_val": 20, "max_val": 220.0}, [90, 140.5, 1000]
            fields["fourier_features_type"] = "expo" if name.endswith("expo") else "learned"
        case "phoneme":
            fields, values = {}, [["HH", "AH0", "L", "OW1"], ["AA1", " ", "?!"], ["B", "IY1"]]
        case "pretransform":
            own = {"type": "mel_rvq", "config": {"model_path": str(fixture("codec_file"))}}
            fields, values = {"sample_rate": 8000, "pretransform_config": own}, recordings
        case "source_mix":
            fields = {"sample_rate": 8000, "use_model_pretransform": True, "source_length": 4}
            fields |= {"source_keys": ["drums", "bass"], "allow_null_source": True}
            values = [{"drums": audio, "bass": codes}, {}, {"bass": recordings[2]}]
        case "t5" | "t5 learned":
            fields, values = {"t5_model_name": str(fixture("tiny_t5"))}, TEXTS
            fields |= {"max_length": 10, "padding_mode": "learned"} if name != "t5" else {}
        case "text" | "text without layers":
            fields = {"width": 16, "num_layers": 0 if name != "text" else 1}
            values = ["", "techno", "\u00e9tude " * 50]
    return Example(name.split()[0], fields, values, codec)
