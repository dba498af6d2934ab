"""Random duplex models for the benchmark, of given sizes, and a batch to train them on."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import whalesong
from whalesong.data.text_channel import TURN_BEGINS, TURN_ENDS
from whalesong.modules.codec.convnext_istft import ConvNextISTFTCodec, ConvNextISTFTSizes
from whalesong.modules.codec.files import save_codec
from whalesong.modules.frames import mask_from_lens
from whalesong.tiny.asr import build_tiny_asr
from whalesong.tiny.llm import build_tiny_llm

Case = dict[str, Any]

TEXTS = ["turn on the light in the kitchen", "set the heating to twenty one degrees"] * 20
SAMPLE_RATE, CODEC_RATE, FRAME = 16000, 22050, 1764
MODELS = {"heads": "DuplexS2SModel", "decoder": "DuplexS2SSpeechDecoderModel"}


def build_model(case: Case, folder: Path, *, codec: Path) -> tuple[Any, dict[str, Any]]:
    """A model of ours with random weights, and its `model` section."""
    torch.manual_seed(0)
    config = config_of(case, folder, codec=codec)
    return getattr(whalesong, MODELS[case["family"]])(config), config


def config_of(case: Case, folder: Path, *, codec: Path) -> dict[str, Any]:
    """Build the pretrained parts; a `model` section that both sides take."""
    width, layers = case["width"], case["layers"]
    llm = build_tiny_llm(folder / "llm", texts=TEXTS, hidden_size=width, num_layers=layers,
                         vocab_size=case["vocab"])  # fmt: skip
    asr = build_tiny_asr(folder / "asr.nemo", texts=TEXTS, d_model=width // 2, num_layers=layers,
                         streaming=True)  # fmt: skip
    set_context(llm, 100_000)
    nemo = "nemo.collections.speechlm2.modules.perception"
    adapter = {"_target_": f"{nemo}.IdentityConnector", "d_model": width // 2}
    config = {
        "pretrained_llm": str(llm),
        "pretrained_asr": str(asr),
        "pretrained_audio_codec": str(codec),
        "pretrained_weights": True,
        "text_loss_weight": 3.0,
        "audio_loss_weight": 4.0,
        "freeze_params": [],
        "prevent_freeze_params": [],
        "perception": {"target": f"{nemo}.AudioPerceptionModule", "modality_adapter": adapter},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-4},
    }
    if case["family"] == "decoder":
        heads = width // 64 or 1
        config["speech_decoder"] = {
            "d_model": width, "n_layers": layers, "n_heads": heads, "d_kv": width // heads,
            "d_ff": 4 * width, "dropout": 0.0, "use_cache": case["work"] != "without cache",
        }  # fmt: skip
    return config


def set_context(llm: Path, positions: int) -> None:
    """Let an untrained LLM have so many positions."""
    file = llm / "config.json"
    config = json.loads(file.read_text()) | {"max_position_embeddings": positions}
    file.write_text(json.dumps(config))


def save_random_codec(path: Path, case: Case) -> Path:
    """An untrained codec of ours, of 8 codebooks at 12.5 frames/s."""
    torch.manual_seed(0)
    sizes = ConvNextISTFTSizes(
        sample_rate=CODEC_RATE, hop_length=FRAME, windows_per_frame=6, n_fft=882, dim=case["width"],
        latent_dim=96, num_blocks=case["layers"], num_codebooks=8, codebook_size=256,
    )  # fmt: skip
    save_codec(ConvNextISTFTCodec(sizes), path)
    return path


def save_nemo_codec(path: Path) -> Path:
    """An untrained `AudioCodecModel` of NeMo's of 4 codebooks of 64 ids at 12.5 frames/s."""
    from nemo.collections.tts.models import AudioCodecModel
    from omegaconf import OmegaConf

    torch.manual_seed(0)
    modules, losses = "nemo.collections.tts.modules.", "nemo.collections.tts.losses."
    parts, rates = modules + "audio_codec_modules.", [3, 3, 4, 7, 7]
    stft = modules + "encodec_modules.MultiResolutionDiscriminatorSTFT"
    config = {
        "sample_rate": CODEC_RATE, "samples_per_frame": FRAME, "commit_loss_scale": 0.0,
        "loss_resolutions": [[256, 64, 256]], "mel_loss_dims": [20],
        "audio_encoder": {
            "_target_": parts + "HiFiGANEncoder", "down_sample_rates": rates, "encoded_dim": 12,
            "base_channels": 2, "resblock_dilation_sizes": [1]},
        "audio_decoder": {
            "_target_": parts + "HiFiGANDecoder", "up_sample_rates": rates[::-1], "input_dim": 12,
            "base_channels": 64, "resblock_dilation_sizes": [1], "resblock_kernel_sizes": [3]},
        "vector_quantizer": {
            "_target_": parts + "GroupFiniteScalarQuantizer", "num_groups": 4,
            "num_levels_per_group": [4, 4, 4]},
        "discriminator": {"_target_": parts + "Discriminator", "discriminators": [
            {"_target_": stft, "resolutions": [[128, 32, 128]]}]},
        "generator_loss": {"_target_": losses + "audio_codec_loss.GeneratorSquaredLoss"},
        "discriminator_loss": {"_target_": losses + "audio_codec_loss.DiscriminatorSquaredLoss"},
    }  # fmt: skip
    AudioCodecModel(cfg=OmegaConf.create(config)).save_to(str(path))
    return path


def build_twin(ours: Any, config: dict[str, Any]) -> nn.Module:
    """NeMo's DuplexS2SModel with the weights of ours; its codec is read from the same file."""
    from nemo.collections.speechlm2.models import DuplexS2SModel

    twin = DuplexS2SModel(config)
    weights = {
        name.replace("llm.model.embed_tokens.", "embed_tokens.")
        .replace("llm.lm_head.", "lm_head.")
        .replace("llm.model.", "llm."): tensor
        for name, tensor in ours.model.state_dict().items()
        if not name.startswith(("audio_codec.", "silence_codes"))
    }
    given = twin.load_state_dict(weights, strict=False)
    if given.unexpected_keys or any(
        not name.startswith(("audio_codec.", "_control")) for name in given.missing_keys
    ):
        raise RuntimeError(f"both sides must have the same weights, but {given} differ.")
    return twin


def training_batch(model: Any, case: Case) -> dict[str, Tensor]:
    """Rows from the shortest to the longest; in each the agent has a turn of words."""
    generator = torch.Generator().manual_seed(1)
    rows, ids, counter = case["rows"], model.model.ids, model.model.counter
    lengths = torch.linspace(case["shortest"], 1, rows) * case["seconds"]
    frames = torch.tensor([counter(round(SAMPLE_RATE * float(s))) for s in lengths])
    tokens = torch.full((rows, int(frames.max())), ids.pad)
    events = torch.zeros_like(tokens)
    words = torch.tensor(model.tokenizer.text_to_ids(TEXTS[0]))
    for row, count in enumerate(frames.tolist()):
        begin, end = count // 3, count - count // 6
        said = words[: end - begin - 1]
        tokens[row, begin + 1 : begin + 1 + len(said)] = said
        tokens[row, begin], tokens[row, end] = ids.bos, ids.eos
        events[row, begin], events[row, end] = TURN_BEGINS, TURN_ENDS
    batch = {"target_tokens": tokens, "target_events": events, "target_token_lens": frames}
    for name, rate in (("source_audio", SAMPLE_RATE), ("target_audio", CODEC_RATE)):
        lens = (lengths * rate).round().long()
        noise = 0.1 * torch.randn(rows, int(lens.max()), generator=generator)
        batch[name] = noise * mask_from_lens(lens, noise.shape[1])
        batch[f"{name}_lens"] = lens
    return batch
