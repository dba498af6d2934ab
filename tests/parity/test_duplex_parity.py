"""Our DuplexS2SModel gives the numbers of NeMo's with the same weights and data.

Where NeMo's is right, that is: rows of one length (it trains on padding), turns that their text
fits into, a tokenizer whose BOS is not its EOS, and no LoRA, which it cannot build.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

IDENTITY = {
    "_target_": "nemo.collections.speechlm2.modules.perception.IdentityConnector",
    "d_model": 64,
}
TURNS = (
    (("user", 0.1, 0.7, "turn on the light"), ("agent", 0.9, 1.0, "turn on")),
    (("user", 0.0, 0.5, "set the light"), ("agent", 0.64, 0.48, "set"), ("agent", 1.3, 0.9, "on")),
)
"""Two conversations of 2 s; the last turn of the second one does not end."""


def build_nemo_codec(path: Path) -> Path:
    """An untrained `AudioCodecModel` of 4 codebooks of 64 ids, 22,050 Hz, 12.5 frames/s."""
    from nemo.collections.tts.models import AudioCodecModel
    from nemo.utils import logging as nemo_logging
    from omegaconf import OmegaConf

    nemo_logging.setLevel(logging.ERROR)
    torch.manual_seed(0)
    modules, losses = "nemo.collections.tts.modules.", "nemo.collections.tts.losses."
    parts, rates = modules + "audio_codec_modules.", [3, 3, 4, 7, 7]
    stft = {"_target_": modules + "encodec_modules.MultiResolutionDiscriminatorSTFT",
            "resolutions": [[128, 32, 128]]}  # fmt: skip
    config = {
        "sample_rate": 22050, "samples_per_frame": 1764, "commit_loss_scale": 0.0,
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
        "discriminator": {"_target_": parts + "Discriminator", "discriminators": [stft]},
        "generator_loss": {"_target_": losses + "audio_codec_loss.GeneratorSquaredLoss"},
        "discriminator_loss": {"_target_": losses + "audio_codec_loss.DiscriminatorSquaredLoss"},
    }  # fmt: skip
    codec = AudioCodecModel(cfg=OmegaConf.create(config))
    for name, tensor in codec.audio_encoder.state_dict().items():  # so that codes differ
        if name.endswith("bias"):
            tensor.zero_()
        elif name.startswith("post_conv") and name.endswith("original0"):
            tensor.mul_(10000)
    codec.save_to(str(path))
    return path


def recording(samples: np.ndarray, sample_rate: int, path: Path) -> Recording:
    """Audio in a file, as a cut refers to it."""
    import soundfile

    soundfile.write(path, samples, sample_rate, subtype="FLOAT")
    return Recording.from_file(path)


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> CutSet:
    """Two conversations that are equally long, of 25 frames in every channel."""
    folder, rng = tmp_path_factory.mktemp("cuts"), np.random.default_rng(0)
    made: list[MonoCut] = []
    for index, turns in enumerate(TURNS):
        id = f"talk{index}"
        noises = [0.1 * rng.standard_normal(2 * rate) for rate in (16000, 22050)]
        cut = recording(noises[0], 16000, folder / f"{id}.wav").to_cut()
        cut.target_audio = recording(noises[1], 22050, folder / f"{id}-agent.wav")
        cut.supervisions = [
            SupervisionSegment(f"{id}-{n}", id, begin, duration, text=text, speaker=speaker)
            for n, (speaker, begin, duration, text) in enumerate(turns)
        ]
        made.append(cut)
    return CutSet.from_cuts(made)


@pytest.fixture(scope="module")
def pair(
    duplex_config: Callable[..., dict[str, Any]],
    build_duplex: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Any, Any]:
    """Our model and NeMo's; weights are large enough for greedy answers to vary."""
    codec = build_nemo_codec(tmp_path_factory.mktemp("codec") / "codec.nemo")
    changes: dict[str, Any] = {
        "pretrained_audio_codec": str(codec),
        "duplex_user_channel_weight": 0.7,
    }
    changes["perception"] = {"modality_adapter": IDENTITY}
    ours = build_duplex(**changes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ours.model.parameters():
            if parameter.dim() == 2 and parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return ours, build_nemo_twin(duplex_config(**changes), ours)


def build_nemo_twin(config: dict[str, Any], ours: Any) -> Any:
    """NeMo's DuplexS2SModel with the weights of ours; its codec is read from the same file."""
    from nemo.collections.speechlm2.models import DuplexS2SModel

    section = {key: config[key] for key in config if key.startswith(("pretrained", "duplex"))}
    section |= {"pretrained_weights": True, "text_loss_weight": 3.0, "audio_loss_weight": 4.0}
    section |= {"freeze_params": [], "prevent_freeze_params": []}
    section["perception"] = {
        "target": "nemo.collections.speechlm2.modules.perception.AudioPerceptionModule",
        **config["perception"],
    }
    twin = DuplexS2SModel(section).eval()
    weights = {
        name_in_nemo(name): tensor
        for name, tensor in ours.model.state_dict().items()
        if not name.startswith("audio_codec.") and name != "silence_codes"
    }
    given = twin.load_state_dict(weights, strict=False)
    assert not given.unexpected_keys
    assert all(name.startswith(("audio_codec.", "_control")) for name in given.missing_keys)
    return twin


def name_in_nemo(name: str) -> str:
    """NeMo takes the LLM apart: trunk, embedding and head stand beside each other."""
    for own, theirs in (
        ("llm.model.embed_tokens.", "embed_tokens."),
        ("llm.lm_head.", "lm_head."),
        ("llm.model.", "llm."),
    ):
        if name.startswith(own):
            return theirs + name.removeprefix(own)
    return name


def nemo_batch(model: Any, cuts: CutSet) -> dict[str, Any]:
    """The cuts through NeMo's own data set."""
    from nemo.collections.speechlm2.data.s2s_dataset import DuplexS2SDataset

    data = DuplexS2SDataset(
        model.tokenizer, frame_length=0.08, source_sample_rate=16000, target_sample_rate=22050
    )
    return data[cuts]


def our_batch(model: Any, cuts: CutSet) -> dict[str, Any]:
    """The cuts through our collator."""
    collator = model.parts.validation_collator
    return collator([collator.load(cut) for cut in cuts])


@torch.no_grad()
def test_the_batch_equals_nemo(pair: tuple[Any, Any], cuts: CutSet) -> None:
    ours, nemo = pair
    given, expected = our_batch(ours, cuts), nemo_batch(nemo, cuts)
    assert given["target_tokens"].tolist() == expected["target_tokens"].tolist()
    assert given["target_texts"] == expected["target_texts"]
    for key in ("source_audio", "target_audio"):
        torch.testing.assert_close(given[key], expected[key], atol=1e-6, rtol=0)
        assert given[f"{key}_lens"].tolist() == expected[f"{key}_lens"].tolist()
    codes, _ = ours.model.encode_target(given["target_audio"], given["target_audio_lens"])
    assert len(codes.unique()) > 40  # else the loss of codes would say little


@torch.no_grad()
def test_losses_equal_nemo(pair: tuple[Any, Any], cuts: CutSet) -> None:
    ours, nemo = pair
    nemo.log_dict = lambda *given, **options: None  # there is no trainer to log to
    expected = nemo.training_step(nemo_batch(nemo, cuts), 0)
    given = ours.parts.loss.loss_fn(our_batch(ours, cuts))
    assert int(given["num_targets"]) == int(expected["num_frames"]) == 2 * 24
    for name in ("text_loss", "audio_loss"):
        torch.testing.assert_close(given["parts"][name], expected[name], atol=1e-4, rtol=0)
    torch.testing.assert_close(given["loss"], expected["loss"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_greedy_answers_equal_nemo(pair: tuple[Any, Any], cuts: CutSet) -> None:
    ours, nemo = pair
    batch = our_batch(ours, cuts)
    audio, lens = batch["source_audio"], batch["source_audio_lens"]
    given = ours.offline_inference(audio, lens, decode_audio=False)
    expected = nemo.offline_inference(audio.clone(), lens, decode_audio=False)
    frames = int(given["tokens_len"].min())
    assert frames >= 25
    for key in ("tokens_text", "tokens_audio"):
        assert torch.equal(given[key][:, :frames], expected[key][:, :frames])
        assert len(given[key].unique()) > 5  # else any loop would do
