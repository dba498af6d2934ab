"""Configurations of stable-audio-tools load unchanged and run; the specification's examples, too.

`T5`, `ENCODEC` and `DAC` stand for names on the hub, in fields that take a folder as well.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from whalesong import create_audio_lm_from_config

TRAINING = {
    "learning_rate": 1e-4,
    "use_ema": True,
    "pre_encoded": False,
    "optimizer_configs": {
        "lm": {
            "optimizer": {
                "type": "AdamW",
                "config": {"lr": 1e-4, "betas": [0.9, 0.95], "weight_decay": 0.1},
            },
            "scheduler": {"type": "InverseLR", "config": {"inv_gamma": 1000000, "power": 0.5}},
        }
    },
    "demo": {"demo_every": 2000, "demo_cfg_scales": [1, 3], "num_demos": 2, "demo_cond": []},
}

TEXT_TO_MUSIC = {
    "model_type": "lm",
    "sample_size": 320000,
    "sample_rate": 32000,
    "audio_channels": 1,
    "model": {
        "pretransform": {
            "type": "audiocraft_pretrained",
            "config": {"model_path": "ENCODEC", "scale": 1.0, "quantize_on_decode": True},
            "enable_grad": False,
        },
        "conditioning": {
            "configs": [
                {"id": "prompt", "type": "t5", "config": {"t5_model_name": "T5", "max_length": 64}},
                {"id": "seconds_start", "type": "number", "config": {"min_val": 0, "max_val": 512}},
                {"id": "seconds_total", "type": "number", "config": {"min_val": 0, "max_val": 512}},
            ],
            "cond_dim": 48,
        },
        "lm": {
            "type": "continuous_transformer",
            "codebook_pattern": "delay",
            "config": {
                "embed_dim": 64,
                "depth": 2,
                "dim_heads": 32,
                "cross_attn_cond_dim": 48,
                "project_cross_attn_cond": True,
                "global_cond_dim": 96,
                "rotary_pos_emb": True,
                "zero_init_branch_outputs": True,
                "attn_kwargs": {"qk_norm": "ln"},
                "ff_kwargs": {"mult": 4, "no_bias": False, "glu": True},
            },
            "cross_attention_cond_ids": ["prompt"],
            "global_cond_ids": ["seconds_start", "seconds_total"],
        },
    },
    "training": TRAINING,
}

PREFIX_SEANET = {
    "model_type": "lm",
    "sample_size": 320000,
    "sample_rate": 32000,
    "audio_channels": 1,
    "model": {
        "pretransform": {
            "type": "autoencoder",
            "enable_grad": False,
            "scale": 1.0,
            "model_half": False,
            "iterate_batch": True,
            "chunked": False,
            "config": {
                "encoder": {
                    "type": "seanet",
                    "config": {
                        "channels": 1,
                        "dimension": 8,
                        "n_filters": 4,
                        "ratios": [4, 4, 5, 8],
                        "n_residual_layers": 1,
                        "dilation_base": 2,
                        "lstm": 2,
                        "norm": "weight_norm",
                    },
                },
                "decoder": {
                    "type": "seanet",
                    "config": {
                        "channels": 1,
                        "dimension": 8,
                        "n_filters": 4,
                        "ratios": [4, 4, 5, 8],
                        "n_residual_layers": 1,
                        "dilation_base": 2,
                        "lstm": 2,
                        "norm": "weight_norm",
                    },
                },
                "bottleneck": {
                    "type": "rvq",
                    "config": {
                        "dim": 8,
                        "codebook_size": 32,
                        "num_quantizers": 4,
                        "decay": 0.99,
                        "threshold_ema_dead_code": 2,
                    },
                },
                "latent_dim": 8,
                "downsampling_ratio": 640,
                "io_channels": 1,
            },
        },
        "conditioning": {
            "configs": [
                {
                    "id": "prompt",
                    "type": "t5",
                    "config": {"t5_model_name": "T5", "max_length": 32, "project_out": True},
                },
                {"id": "key", "type": "list", "config": {"options": ["C major", "A minor"]}},
            ],
            "cond_dim": 64,
        },
        "lm": {
            "type": "continuous_transformer",
            "codebook_pattern": "unroll",
            "config": {
                "embed_dim": 64,
                "depth": 2,
                "prepend_cond_dim": 64,
                "rotary_pos_emb": False,
                "use_sinusoidal_emb": True,
            },
            "prepend_cond_ids": ["prompt", "key"],
        },
    },
    "training": TRAINING,
}

STEREO_FSQ = {
    "model_type": "lm",
    "sample_size": 441000,
    "sample_rate": 44100,
    "audio_channels": 2,
    "model": {
        "pretransform": {
            "type": "autoencoder",
            "scale": 1.0,
            "config": {
                "encoder": {
                    "type": "oobleck",
                    "requires_grad": False,
                    "config": {
                        "in_channels": 2,
                        "channels": 4,
                        "c_mults": [1, 2, 4],
                        "strides": [4, 8, 16],
                        "latent_dim": 6,
                        "use_snake": True,
                    },
                },
                "decoder": {
                    "type": "oobleck",
                    "config": {
                        "out_channels": 2,
                        "channels": 4,
                        "c_mults": [1, 2, 4],
                        "strides": [4, 8, 16],
                        "latent_dim": 6,
                        "use_snake": True,
                        "final_tanh": False,
                    },
                },
                "bottleneck": {"type": "fsq", "config": {"levels": [5, 5, 5], "num_codebooks": 2}},
                "latent_dim": 6,
                "downsampling_ratio": 512,
                "io_channels": 2,
            },
        },
        "conditioning": {
            "configs": [
                {
                    "id": "lyrics",
                    "type": "lut",
                    "config": {"tokenizer_name": "T5", "max_length": 64, "use_abs_pos_emb": True},
                },
                {"id": "genre", "type": "int", "config": {"min_val": 0, "max_val": 20}},
            ],
            "cond_dim": 32,
        },
        "lm": {
            "type": "continuous_transformer",
            "codebook_pattern": "musiclm",
            "config": {
                "embed_dim": 64,
                "depth": 3,
                "dim_heads": 32,
                "cross_attn_cond_dim": 32,
                "final_cross_attn_ix": 1,
                "global_cond_dim": 32,
                "num_memory_tokens": 2,
                "norm_kwargs": {"bias": False, "fix_scale": False, "force_fp32": True, "eps": 1e-5},
                "layer_scale": True,
            },
            "cross_attention_cond_ids": ["lyrics"],
            "global_cond_ids": ["genre"],
        },
    },
    "training": TRAINING,
}

UNCONDITIONAL_DAC_AUTOENCODER = {
    "model_type": "lm",
    "sample_size": 441000,
    "sample_rate": 44100,
    "audio_channels": 2,
    "model": {
        "pretransform": {
            "type": "autoencoder",
            "config": {
                "encoder": {
                    "type": "dac",
                    "config": {
                        "in_channels": 2,
                        "latent_dim": 8,
                        "d_model": 4,
                        "strides": [4, 8, 16],
                    },
                },
                "decoder": {
                    "type": "dac",
                    "config": {
                        "out_channels": 2,
                        "latent_dim": 8,
                        "channels": 16,
                        "rates": [16, 8, 4],
                    },
                },
                "bottleneck": {
                    "type": "dac_rvq",
                    "config": {
                        "input_dim": 8,
                        "n_codebooks": 3,
                        "codebook_size": 16,
                        "codebook_dim": 4,
                        "quantizer_dropout": 0.5,
                    },
                },
                "latent_dim": 8,
                "downsampling_ratio": 512,
                "io_channels": 2,
            },
        },
        "lm": {
            "type": "continuous_transformer",
            "codebook_pattern": "parallel",
            "config": {
                "embed_dim": 64,
                "depth": 2,
                "dim_heads": 32,
                "cross_attn_cond_dim": 0,
                "prepend_cond_dim": 0,
                "attn_kwargs": {"qk_norm": "l2", "differential": False},
                "ff_kwargs": {"mult": 2, "glu": False, "no_bias": True},
                "use_abs_pos_emb": True,
                "abs_pos_emb_max_length": 512,
            },
        },
    },
    "training": TRAINING,
}

EVERY_ROUTE_DAC = {
    "model_type": "lm",
    "sample_size": 441000,
    "sample_rate": 16000,
    "audio_channels": 1,
    "model": {
        "pretransform": {
            "type": "dac_pretrained",
            "config": {"model_path": "DAC", "quantize_on_decode": True, "chunked": True},
        },
        "conditioning": {
            "configs": [
                {"id": "prompt", "type": "t5", "config": {"t5_model_name": "T5"}},
                {
                    "id": "melody",
                    "type": "pretransform",
                    "config": {"sample_rate": 16000, "use_model_pretransform": True},
                },
                {"id": "bpm", "type": "int", "config": {"min_val": 40, "max_val": 200}},
                {
                    "id": "mood",
                    "type": "list",
                    "config": {"options": ["calm", "wild"], "output_dim": 16},
                },
            ],
            "cond_dim": 64,
            "default_keys": {"prompt": "caption"},
            "pre_encoded_keys": ["bpm"],
        },
        "lm": {
            "type": "continuous_transformer",
            "config": {
                "embed_dim": 64,
                "depth": 2,
                "cross_attn_cond_dim": 64,
                "prepend_cond_dim": 64,
                "global_cond_dim": 16,
                "norm_type": "rms_norm",
            },
            "cross_attention_cond_ids": ["prompt", "melody"],
            "prepend_cond_ids": ["bpm"],
            "global_cond_ids": ["mood"],
        },
    },
    "training": TRAINING,
}

CONFIGS = {
    "text to music": (
        TEXT_TO_MUSIC,
        {"prompt": "a calm piano piece", "seconds_start": 0, "seconds_total": [30]},
    ),
    "prefix": (PREFIX_SEANET, {"prompt": "rain", "key": "A minor"}),
    "stereo": (STEREO_FSQ, {"lyrics": "slow tone", "genre": 3}),
    "unconditional": (UNCONDITIONAL_DAC_AUTOENCODER, {}),
    "every route": (
        EVERY_ROUTE_DAC,
        {"caption": "rain", "melody": torch.zeros(1, 1600), "bpm": torch.ones(64), "mood": "wild"},
    ),
}


@pytest.fixture(scope="module")
def tiny_dac(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained DAC: 3 codebooks of 16 ids at 50 frames/s, of 16 kHz audio."""
    from transformers import DacConfig, DacModel

    torch.manual_seed(0)
    config = DacConfig(
        sampling_rate=16000, encoder_hidden_size=4, downsampling_ratios=[4, 8, 10],
        decoder_hidden_size=16, n_codebooks=3, codebook_size=16, codebook_dim=4,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("dac")
    DacModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def with_folders(
    tiny_t5: Path, tiny_encodec: Path, tiny_dac: Path
) -> Callable[[dict[str, Any]], str]:
    """The JSON of a configuration with folders in place of the names."""
    folders = {"T5": tiny_t5, "ENCODEC": tiny_encodec, "DAC": tiny_dac}

    def text(config: dict[str, Any]) -> str:
        found = json.dumps(config)
        for name, folder in folders.items():
            found = found.replace(f'"{name}"', json.dumps(str(folder)))
        return found

    return text


def run_through(wrapper: Any, row: dict[str, Any]) -> None:
    """Forward and generation give what their sizes promise."""
    shape = (wrapper.num_quantizers, 5)
    codes = torch.randint(wrapper.codebook_size, (2, *shape))
    output = wrapper(codes, torch.tensor([5, 3]), [row, row])
    assert output.logits.shape == (2, *shape, wrapper.codebook_size)
    assert output.logits.isfinite().all()
    made = wrapper.eval().generate_audio([row, row], seconds=0.1, seeds=0, guidance_scale=2.0)
    channels = wrapper.pretransform.num_channels
    frames = round(0.1 * wrapper.pretransform.frame_rate)
    for codes, audio in zip(made.codes, made.audio, strict=True):
        assert codes.shape == (wrapper.num_quantizers, frames)
        assert audio.shape == (channels, frames * wrapper.min_input_length)
        assert audio.isfinite().all()


@pytest.mark.parametrize("name", CONFIGS)
def test_native_configurations_load_from_their_file_and_run(
    name: str, with_folders: Callable[[dict[str, Any]], str], tmp_path: Path
) -> None:
    config, row = CONFIGS[name]
    path = tmp_path / "model.json"
    path.write_text(with_folders(config))
    wrapper = create_audio_lm_from_config(path)
    assert wrapper.sample_rate == config["sample_rate"]
    run_through(wrapper, row)
