"""Tiny codecs with random weights, each in the files in which its maker publishes it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn


def randomize(model: nn.Module) -> nn.Module:
    """Give codebooks, layer scales and Snakes values with which every part matters."""
    for name, tensor in model.state_dict().items():
        if name.endswith(("codebook.embed", "codebook.embed_sum")):
            tensor.normal_()
        elif name.endswith("layer_scale.scale"):
            tensor.fill_(0.5)
        elif name.endswith(("alpha", "beta")):
            tensor.uniform_(0.5, 1.5)
    return model


def make_encodec(folder: Path, **changes: Any) -> dict[str, Any]:
    from transformers import EncodecConfig, EncodecModel

    fields = {
        "target_bandwidths": [1.6, 3.2], "sampling_rate": 1600, "hidden_size": 8, "num_filters": 4,
        "upsampling_ratios": [4, 2], "kernel_size": 5, "codebook_size": 16, **changes,
    }  # fmt: skip
    randomize(EncodecModel(EncodecConfig(**fields))).save_pretrained(folder)
    return {"type": "encodec", "config": {"model_path": str(folder)}}


def make_encodec_stereo(folder: Path) -> dict[str, Any]:
    changes = {"use_causal_conv": False, "audio_channels": 2, "use_conv_shortcut": False}
    return make_encodec(folder, **changes)


def make_dac(folder: Path, **changes: Any) -> dict[str, Any]:
    from transformers import DacConfig, DacModel

    fields = {
        "encoder_hidden_size": 4, "downsampling_ratios": [2, 4], "decoder_hidden_size": 16,
        "n_codebooks": 3, "codebook_size": 16, "codebook_dim": 4, "sampling_rate": 1600, **changes,
    }  # fmt: skip
    randomize(DacModel(DacConfig(**fields))).save_pretrained(folder)
    return {"type": "dac_pretrained", "config": {"model_path": str(folder)}}


def make_dac_odd(folder: Path) -> dict[str, Any]:
    return make_dac(folder, downsampling_ratios=[3, 5])


def make_mimi(folder: Path) -> dict[str, Any]:
    from transformers import MimiConfig, MimiModel

    fields = {
        "sampling_rate": 1600, "hidden_size": 16, "num_filters": 4, "upsampling_ratios": [4, 2],
        "codebook_size": 16, "codebook_dim": 8, "vector_quantization_hidden_dimension": 8,
        "num_quantizers": 4, "num_semantic_quantizers": 2, "upsample_groups": 16,
        "num_hidden_layers": 2, "intermediate_size": 32, "num_attention_heads": 2,
        "num_key_value_heads": 2, "sliding_window": 9,
    }  # fmt: skip
    randomize(MimiModel(MimiConfig(**fields))).save_pretrained(folder)
    return {"type": "mimi", "config": {"model_path": str(folder)}}


def autoencoder_section(
    coder: str, bottleneck: dict[str, Any], *, latent_dim: int, encoder_dim: int, channels: int
) -> dict[str, Any]:
    """The `model` section of an autoencoder with ratio 8."""
    halves: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "oobleck": (
            {"in_channels": channels, "latent_dim": encoder_dim, "channels": 4,
             "c_mults": [1, 2], "strides": [2, 4], "use_snake": True},
            {"out_channels": channels, "latent_dim": latent_dim, "channels": 4,
             "c_mults": [1, 2], "strides": [2, 4]},
        ),
        "seanet": (
            {"channels": channels, "dimension": encoder_dim, "n_filters": 4, "ratios": [2, 4]},
            {"channels": channels, "dimension": latent_dim, "n_filters": 4, "ratios": [4, 2]},
        ),
        "dac": (
            {"in_channels": channels, "latent_dim": encoder_dim, "d_model": 4, "strides": [2, 4]},
            {"out_channels": channels, "latent_dim": latent_dim, "channels": 16, "rates": [4, 2]},
        ),
    }  # fmt: skip
    encoder, decoder = halves[coder]
    return {
        "encoder": {"type": coder, "config": encoder},
        "decoder": {"type": coder, "config": decoder},
        "bottleneck": bottleneck,
        "latent_dim": latent_dim,
        "downsampling_ratio": 8,
        "io_channels": channels,
    }


def make_autoencoder(folder: Path, section: dict[str, Any]) -> dict[str, Any]:
    """A folder as stable-audio-tools exports it: `model_config.json` and `model.ckpt`."""
    from whalesong.modules.codec.build import build_codec

    codec = build_codec({"type": "autoencoder", "config": section}, sample_rate=1600)
    last_conv = [module for module in codec.encoder.modules() if isinstance(module, nn.Conv1d)][-1]
    last_conv.weight.data.mul_(30)  # so that latents reach more than one level
    state = published_state(randomize(codec), section)
    torch.save({"state_dict": state}, folder / "model.ckpt")
    config = {"model_type": "autoencoder", "sample_rate": 1600, "model": section}
    (folder / "model_config.json").write_text(json.dumps(config))
    return {"type": "autoencoder", "config": {"autoencoder_ckpt": str(folder)}}


def published_state(codec: nn.Module, section: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Its weights under the names of stable-audio-tools, convolutions weight-normed."""
    state = {}
    for name, tensor in codec.state_dict().items():
        part, rest = name.split(".", 1)
        if part == "bottleneck":
            rest = rest.removeprefix("inner.")
        elif section[part]["type"] == "seanet":
            is_transposed = part == "decoder" and rest.startswith(("layers.3.", "layers.6."))
            rest = published_seanet_name(rest, is_transposed)
        elif section[part]["type"] == "dac":
            rest = published_dac_name(rest, num_blocks=2)
        if rest == "codebooks":
            for index, codebook in enumerate(tensor):
                state[f"{part}.quantizer.layers.{index}._codebook.embed"] = codebook[None]
                state[f"{part}.quantizer.layers.{index}._codebook.initted"] = torch.ones(1)
        elif tensor.dim() == 3 and rest.endswith(".weight") and "proj_out" not in rest:
            norm = tensor.norm(dim=(1, 2), keepdim=True)
            state[f"{part}.{rest}_g"], state[f"{part}.{rest}_v"] = norm, 3 * tensor
        else:
            state[f"{part}.{rest}"] = tensor
    return state


def published_seanet_name(name: str, is_transposed: bool) -> str:
    """`layers.3.conv.weight` to `model.3.conv.conv.weight`."""
    name = name.replace("layers.", "model.", 1)
    return name.replace(".conv.", ".convtr.convtr." if is_transposed else ".conv.conv.")


def published_dac_name(name: str, *, num_blocks: int) -> str:
    """`encoder.block.0.res_unit1.conv1.bias` to `encoder.block.1.block.0.block.1.bias`."""
    half, *path, last = name.split(".")
    if half not in ("encoder", "decoder"):
        return name
    outer = "block" if half == "encoder" else "model"
    units = ["res_unit1", "res_unit2", "res_unit3"]
    inner = [*units, "snake1", "conv1"] if half == "encoder" else ["snake1", "conv_t1", *units]
    if path[0] != "block":
        index = {"conv1": 0, "snake1": num_blocks + 1, "conv2": num_blocks + 2}[path[0]]
        return f"{half}.{outer}.{index}.{last}"
    name = f"{half}.{outer}.{int(path[1]) + 1}.block.{inner.index(path[2])}"
    if len(path) == 4:
        name += f".block.{['snake1', 'conv1', 'snake2', 'conv2'].index(path[3])}"
    return f"{name}.{last}"


def make_oobleck_fsq(folder: Path) -> dict[str, Any]:
    bottleneck = {"type": "fsq", "config": {"levels": [4, 3], "num_codebooks": 2}}
    dims = {"latent_dim": 4, "encoder_dim": 4, "channels": 2}
    return make_autoencoder(folder, autoencoder_section("oobleck", bottleneck, **dims))


def make_seanet_rvq(folder: Path) -> dict[str, Any]:
    config = {"dim": 8, "codebook_size": 16, "num_quantizers": 3, "codebook_dim": 4}
    dims = {"latent_dim": 8, "encoder_dim": 16, "channels": 1}
    section = autoencoder_section("seanet", {"type": "rvq_vae", "config": config}, **dims)
    return make_autoencoder(folder, section)


def make_dac_autoencoder(folder: Path) -> dict[str, Any]:
    config = {"input_dim": 8, "n_codebooks": 3, "codebook_size": 16, "codebook_dim": 4}
    dims = {"latent_dim": 8, "encoder_dim": 8, "channels": 2}
    section = autoencoder_section("dac", {"type": "dac_rvq", "config": config}, **dims)
    return make_autoencoder(folder, section)


def make_nemo(folder: Path, *, causal: bool, residual: bool) -> dict[str, Any]:
    """A whole `AudioCodecModel` with discriminator, as NeMo saves it."""
    import logging

    from nemo.collections.tts.models import AudioCodecModel
    from nemo.utils import logging as nemo_logging
    from omegaconf import OmegaConf

    nemo_logging.setLevel(logging.ERROR)
    modules, losses = "nemo.collections.tts.modules.", "nemo.collections.tts.losses."
    half = modules + "audio_codec_modules." + ("Causal" if causal else "")
    kernels = {"resblock_dilation_sizes": [1, 2], "resblock_kernel_sizes": [3, 5]}
    quantizer = {"_target_": modules + "audio_codec_modules.GroupFiniteScalarQuantizer",
                 "num_groups": 2, "num_levels_per_group": [4, 4]}  # fmt: skip
    if residual:
        quantizer = {"_target_": modules + "encodec_modules.ResidualVectorQuantizer",
                     "num_codebooks": 3, "codebook_size": 16, "codebook_dim": 4}  # fmt: skip
    config = {
        "sample_rate": 1600, "samples_per_frame": 6, "commit_loss_scale": 0.0,
        "loss_resolutions": [[64, 16, 64]], "mel_loss_dims": [5],
        "audio_encoder": {"_target_": half + "HiFiGANEncoder", "down_sample_rates": [2, 3],
                          "encoded_dim": 4, "base_channels": 4, **kernels},
        "audio_decoder": {"_target_": half + "HiFiGANDecoder", "up_sample_rates": [3, 2],
                          "input_dim": 4, "base_channels": 16, **kernels},
        "vector_quantizer": quantizer,
        "discriminator": {
            "_target_": modules + "audio_codec_modules.Discriminator",
            "discriminators": [
                {"_target_": modules + "encodec_modules.MultiResolutionDiscriminatorSTFT",
                 "resolutions": [[64, 16, 64]]}
            ],
        },
        "generator_loss": {"_target_": losses + "audio_codec_loss.GeneratorSquaredLoss"},
        "discriminator_loss": {"_target_": losses + "audio_codec_loss.DiscriminatorSquaredLoss"},
    }  # fmt: skip
    model = AudioCodecModel(cfg=OmegaConf.create(config))
    for name, tensor in model.state_dict().items():
        if name.startswith("audio_encoder.post_conv") and name.endswith("original0"):
            tensor.mul_(30)
        elif name.endswith(".codes"):
            tensor.normal_()
    model.save_to(str(folder / "codec.nemo"))
    return {"type": "nemo_codec", "config": {"model_path": str(folder / "codec.nemo")}}


def make_nemo_fsq(folder: Path) -> dict[str, Any]:
    return make_nemo(folder, causal=False, residual=False)


def make_nemo_rvq(folder: Path) -> dict[str, Any]:
    return make_nemo(folder, causal=True, residual=True)


MAKERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "encodec": make_encodec,
    "encodec stereo": make_encodec_stereo,
    "dac": make_dac,
    "dac odd": make_dac_odd,
    "mimi": make_mimi,
    "autoencoder oobleck fsq": make_oobleck_fsq,
    "autoencoder seanet rvq": make_seanet_rvq,
    "autoencoder dac": make_dac_autoencoder,
    "nemo fsq": make_nemo_fsq,
    "nemo causal rvq": make_nemo_rvq,
}


@pytest.fixture(scope="session")
def original_dac_name() -> Callable[..., str]:
    """`published_dac_name`, for tests."""
    return published_dac_name


@pytest.fixture
def fsq_section() -> dict[str, Any]:
    """The `model` section of a mono Oobleck autoencoder with two scalar quantizers."""
    bottleneck = {"type": "fsq", "config": {"levels": [4, 3], "num_codebooks": 2}}
    dims = {"latent_dim": 4, "encoder_dim": 4, "channels": 1}
    return autoencoder_section("oobleck", bottleneck, **dims)


@pytest.fixture(scope="session")
def codec_section(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The pretransform section of a tiny codec, by a name of `MAKERS`."""
    made: dict[str, dict[str, Any]] = {}

    def section(name: str) -> dict[str, Any]:
        if name not in made:
            torch.manual_seed(0)
            made[name] = MAKERS[name](tmp_path_factory.mktemp("codec"))
        return {**made[name], "config": dict(made[name]["config"])}

    return section


@pytest.fixture(scope="session")
def build_tiny(codec_section: Callable[[str], dict[str, Any]]) -> Callable[..., Any]:
    """A tiny codec by name, which tests share; with fields, a new one that has them too."""
    from whalesong.modules.codec.build import build_codec

    shared: dict[str, Any] = {}

    def build(name: str, **fields: Any) -> Any:
        section = codec_section(name)
        if fields:
            return build_codec({**section, "config": section["config"] | fields})
        if name not in shared:
            shared[name] = build_codec(section)
        return shared[name]

    return build


@pytest.fixture(scope="session", params=list(MAKERS))
def codec_name(request: pytest.FixtureRequest) -> str:
    """Each tiny codec in turn."""
    return request.param
