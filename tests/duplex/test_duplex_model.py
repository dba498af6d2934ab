"""Laws of the duplex networks: steps equal the whole, rows and frames know only what they may."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from whalesong.core.errors import CheckpointError, ConfigError
from whalesong.modules.codec.files import save_codec
from whalesong.modules.codec.mel_rvq import MelRVQSizes, fit_mel_rvq
from whalesong.modules.llm import head_logits, hidden_states

FAMILIES = ("duplex_s2s", "duplex_s2s_speech_decoder")
WINDOWED = {"attention_window": 6}


@pytest.fixture(scope="module")
def load_batch(duplex_shar: Path) -> Callable[..., dict[str, Any]]:
    """The first conversations as a batch of a model."""

    def load(model: Any, batch_size: int = 4) -> dict[str, Any]:
        section = {"shar_path": str(duplex_shar), "batch_size": batch_size}
        loader = model.parts.make_loader(section, model.parts.validation_collator, path="test_ds")
        return next(iter(loader))

    return load


def lively(model: Any) -> Any:
    """Give an untrained model something to say: larger weights, without a favourite token."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if "audio_codec" not in name and parameter.dim() > 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def answers(model: Any, batch: dict[str, Any], **generation: Any) -> dict[str, Any]:
    return model.offline_inference(batch["source_audio"], batch["source_audio_lens"], **generation)


def row(batch: dict[str, Any], index: int) -> tuple[Tensor, Tensor]:
    length = batch["source_audio_lens"][index : index + 1]
    return batch["source_audio"][index : index + 1, : int(length)], length


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [{}, WINDOWED], ids=["whole", "window"])
def test_frame_by_frame_equals_the_whole(
    family: str, changes: dict[str, Any], build_duplex: Any, load_batch: Any
) -> None:
    """What greedy decoding draws is what the training network finds best behind the same past."""
    model = lively(build_duplex(family, **changes))
    audio, lens = row(load_batch(model), 1)
    drawn = model.offline_inference(audio, lens, decode_audio=False)
    network = model.model
    with torch.no_grad():
        source, _ = network.encode_source(audio, lens)
        text = torch.cat([torch.tensor([[network.ids.pad]]), drawn["tokens_text"][:, :-1]], dim=1)
        codes = drawn["tokens_audio"].transpose(1, 2)
        delayed = torch.full((1, network.num_codebooks, 1), network.speech_delay_id)
        before = torch.cat([delayed, codes[:, :, :-1]], dim=2)
        embeds = network.embed_inputs(source, text, before)
        hidden = hidden_states(
            network.llm, embeds, torch.ones_like(text).bool(), window=network.attention_window
        )
        assert torch.equal(head_logits(network.llm, hidden).argmax(-1), drawn["tokens_text"])
        best = network.speech_logits(hidden, before).argmax(-1)
    assert torch.equal(best, drawn["tokens_audio"])
    assert len(drawn["tokens_audio"].unique()) > 4, "nothing was drawn that could differ"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "generation",
    [{}, {"temperature": 0.9, "top_k": 8, "text_temperature": 1.0}],
    ids=["greedy", "drawn"],
)
def test_a_row_of_a_batch_is_what_it_is_alone(
    family: str, generation: dict[str, Any], build_duplex: Any, load_batch: Any
) -> None:
    model = lively(build_duplex(family))
    batch = load_batch(model)
    assert len(set(batch["source_audio_lens"].tolist())) == 4
    together = answers(model, batch, **generation)
    for index in range(4):
        alone = model.offline_inference(*row(batch, index), **{**generation, "seed": index})
        count, samples = int(alone["tokens_len"]), int(alone["audio_len"])
        assert count == together["tokens_len"][index]
        assert torch.equal(alone["tokens_text"][0], together["tokens_text"][index, :count])
        assert torch.equal(alone["tokens_audio"][0], together["tokens_audio"][index, :count])
        assert alone["text"][0] == together["text"][index]
        torch.testing.assert_close(
            alone["audio"][0], together["audio"][index, :samples], atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_future_changes_nothing_before_it(
    family: str, build_duplex: Any, load_batch: Any
) -> None:
    model = lively(build_duplex(family))
    audio, lens = row(load_batch(model), 0)
    changed = audio.clone()
    changed[:, 16 * 1280 :] += 0.3 * torch.randn(1, changed.shape[1] - 16 * 1280)
    one, other = (
        model.offline_inference(a, lens, decode_audio=False, temperature=1.0)
        for a in (audio, changed)
    )
    for key in ("tokens_text", "tokens_audio"):
        assert torch.equal(one[key][:, :16], other[key][:, :16])
    assert not torch.equal(one["tokens_audio"], other["tokens_audio"])


@pytest.mark.parametrize("family", FAMILIES)
def test_top_k_1_is_the_most_probable_and_seeds_repeat(
    family: str, build_duplex: Any, load_batch: Any
) -> None:
    """Fault 8 of the reference: top-k was computed and then not used."""
    model = lively(build_duplex(family))
    batch = load_batch(model)
    greedy = answers(model, batch, decode_audio=False)
    single = answers(model, batch, decode_audio=False, temperature=1.0, top_k=1)
    assert torch.equal(greedy["tokens_audio"], single["tokens_audio"])
    drawn = [answers(model, batch, decode_audio=False, temperature=1.0, seed=s) for s in (0, 0, 9)]
    assert torch.equal(drawn[0]["tokens_audio"], drawn[1]["tokens_audio"])
    assert not torch.equal(drawn[0]["tokens_audio"], drawn[2]["tokens_audio"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_a_batch_is_the_mean_over_its_real_frames(
    family: str, build_duplex: Any, load_batch: Any
) -> None:
    """Fault 1 of the reference: padding was trained on, and divided by real frames."""
    model = build_duplex(family)
    batch = load_batch(model)
    with torch.no_grad():
        whole = model.parts.loss.loss_fn(batch)
        singles = [model.parts.loss.loss_fn(b) for b in _single_rows(batch)]
    frames = torch.stack([single["num_targets"] for single in singles])
    losses = torch.stack([single["loss"] for single in singles])
    assert whole["num_targets"] == frames.sum()
    torch.testing.assert_close(whole["loss"], (losses * frames).sum() / frames.sum())


def _single_rows(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows without padding."""
    lens = {
        "source_audio": "source_audio_lens",
        "target_audio": "target_audio_lens",
        "target_tokens": "target_token_lens",
        "target_events": "target_token_lens",
    }
    rows = []
    for index in range(len(batch["ids"])):
        single = {n: batch[n][index : index + 1] for n in set(lens.values())}
        for name, length in lens.items():
            single[name] = batch[name][index : index + 1, : int(single[length])]
        rows.append(single)
    return rows


def test_padding_ratio_is_that_of_padding(build_duplex: Any, load_batch: Any) -> None:
    """Fault 3 of the reference: it was the other way around."""
    model = build_duplex()
    batch = load_batch(model)
    parts = model.parts.loss.loss_fn(batch)["parts"]
    steps = batch["target_token_lens"] - 1
    expected = 1 - steps.sum() / (len(steps) * steps.max())
    torch.testing.assert_close(parts["padding_ratio"], expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_without_cuts_has_no_targets_and_a_gradient(family: str, build_duplex: Any) -> None:
    model = build_duplex(family)
    model.train()
    outputs = model.parts.loss.loss_fn(model.parts.train_collator([]))
    outputs["loss"].backward()
    assert outputs["num_targets"] == 0 and outputs["loss"] == 0
    missing = [n for n, p in model.model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing  # other ranks wait for the gradient of every parameter


def test_weights_of_channels_codebooks_and_tokens(build_duplex: Any, load_batch: Any) -> None:
    model = build_duplex()
    batch = load_batch(model)

    def loss(**changes: Any) -> Tensor:
        with torch.no_grad():
            return build_duplex(**changes).parts.loss.loss_fn(batch)["loss"]

    text = loss(audio_loss_weight=0.0, text_loss_weight=1.0)
    audio = loss(audio_loss_weight=1.0, text_loss_weight=0.0)
    torch.testing.assert_close(loss(), 4 * audio + 3 * text)
    each = [
        loss(text_loss_weight=0.0, audio_loss_weight=1.0, codebook_loss_weights=weights)
        for weights in torch.eye(4).tolist()
    ]
    torch.testing.assert_close(audio, torch.stack(each).sum())
    only_text = {"audio_loss_weight": 0.0, "text_loss_weight": 1.0}
    kinds = ({"bos": 0.0}, {"eos": 0.0}, {"pad": 0.0})
    lighter = [text - loss(**only_text, token_loss_weights=kind) for kind in kinds]
    assert all(difference > 0 for difference in lighter)
    up = loss(**only_text, token_loss_weights={"bos": 3.0})
    torch.testing.assert_close(up, text + 2 * lighter[0])


def test_control_codes_are_heard_as_silence(build_duplex: Any) -> None:
    """Fault 5 of the reference: where the first frame was a control code, it reached the codec."""
    network = build_duplex().model
    codes = torch.randint(network.codebook_size, (2, network.num_codebooks, 5))
    codes[0, :, 0] = network.speech_bos_id
    codes[1, 2, 3] = network.speech_delay_id
    playable = network.playable(codes)
    assert int(playable.max()) < network.codebook_size
    assert torch.equal(playable[0, :, 0], network.silence_codes)
    assert torch.equal(playable[1, :, 3], network.silence_codes)
    kept = torch.ones(2, 5, dtype=torch.bool)
    kept[0, 0] = kept[1, 3] = False
    assert torch.equal(playable.transpose(1, 2)[kept], codes.transpose(1, 2)[kept])


def test_guidance(build_duplex: Any, load_batch: Any) -> None:
    decoder = {
        "d_model": 32, "n_layers": 2, "n_heads": 2, "d_kv": 16, "d_ff": 64, "dropout": 0.0,
        "unconditional_prob": 0.2,
    }  # fmt: skip
    model = lively(build_duplex("duplex_s2s_speech_decoder", speech_decoder=decoder))
    batch = load_batch(model)
    plain, same, guided = (
        answers(model, batch, decode_audio=False, guidance_scale=scale)["tokens_audio"]
        for scale in (1.0, 1.0 + 1e-6, 3.0)
    )
    assert torch.equal(plain, same)
    assert not torch.equal(plain, guided)
    audio, lens = row(batch, 2)
    alone = model.offline_inference(audio, lens, decode_audio=False, guidance_scale=3.0)
    assert torch.equal(alone["tokens_audio"][0], guided[2, : int(alone["tokens_len"])])


@pytest.mark.parametrize(
    ("family", "sentence"),
    [("duplex_s2s", "without a speech decoder"), (FAMILIES[1], "without `unconditional_prob`")],
)
def test_guidance_is_refused_where_nothing_learned_it(
    family: str, sentence: str, build_duplex: Any
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build_duplex(family).offline_inference(
            torch.zeros(1, 16000), torch.tensor([16000]), guidance_scale=2.0
        )


def test_no_parameter_is_left_unused(build_duplex: Any, load_batch: Any) -> None:
    """Fault 4 of the reference: heads and embeddings beside the speech decoder."""
    model = build_duplex("duplex_s2s_speech_decoder")
    model.train()
    model.parts.loss.loss_fn(load_batch(model))["loss"].backward()
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused


def test_codec_weights_are_in_archives_and_in_no_checkpoint(
    build_duplex: Any, duplex_codec: Path, tmp_path: Path
) -> None:
    """Fault 12 of the reference."""
    model = build_duplex()
    checkpoint = {"state_dict": model.state_dict()}
    assert any("audio_codec" in name for name in checkpoint["state_dict"])
    model.on_save_checkpoint(checkpoint)
    assert not any("audio_codec" in name for name in checkpoint["state_dict"])
    build_duplex().on_load_checkpoint(checkpoint)
    assert any("audio_codec" in name for name in checkpoint["state_dict"])
    assert all(p.dtype == torch.float32 for p in model.bfloat16().model.audio_codec.parameters())


def test_a_checkpoint_of_another_codec_is_refused(build_duplex: Any) -> None:
    model = build_duplex()
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    other = build_duplex()
    with torch.no_grad():
        weights = other.model.audio_codec.state_dict().values()
        next(tensor for tensor in weights if tensor.is_floating_point()).add_(1)
    with pytest.raises(CheckpointError, match="trained with a codec of fingerprint"):
        other.on_load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"codebook_loss_weights": [1.0]}, "each of the 4 codebooks, but has 1"),
        ({"special_tokens": {"bos": "<nothing>"}}, "must be a token of the LLM's tokenizer"),
        ({"special_tokens": {"pad": "</s>"}}, "must differ from the tokens that begin and end"),
        ({"pretrained_audio_codec": "missing.nemo"}, "'missing.nemo' must be an existing file"),
        ({"attention_window": 1}, "attention_window"),
        ({"speech_decoder": {"d_model": 32}}, "speech_decoder"),
        ({"audio_loss_wieght": 1.0}, "audio_loss_weight"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], sentence: str, build_duplex: Any) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build_duplex(**changes)


def test_a_codec_on_another_grid_is_refused_with_both_lengths(
    mel_rvq: Path, build_duplex: Any
) -> None:
    with pytest.raises(ConfigError, match=r"320 samples at 16000 Hz .* 1280 at 16000 Hz"):
        build_duplex(pretrained_audio_codec=str(mel_rvq))


def test_a_conversation_beyond_the_context_needs_a_window(build_duplex: Any) -> None:
    model = build_duplex()
    model.model.llm.config.max_position_embeddings = 10
    audio, lens = torch.zeros(1, 20 * 1280), torch.tensor([20 * 1280])
    with pytest.raises(ConfigError, match="at most 10 frames .* `attention_window` is set"):
        model.offline_inference(audio, lens)
    windowed = build_duplex(**WINDOWED)
    windowed.model.llm.config.max_position_embeddings = 10
    assert int(windowed.offline_inference(audio, lens)["tokens_len"]) == 20


def test_a_codec_of_another_rate_on_the_same_grid(
    dialogues: list[Any], build_duplex: Any, load_batch: Any, tmp_path: Path
) -> None:
    """Fault 10 of the reference: 22,050 Hz were taken for granted."""
    sizes = MelRVQSizes(
        sample_rate=24000, hop_length=1920, n_fft=3840, n_mels=20, num_codebooks=2,
        codebook_size=16, num_iterations=2, block_frames=2, context_frames=1, fade_frames=1,
    )  # fmt: skip
    clips = [torch.from_numpy(agent) for _, agent, _ in dialogues]
    save_codec(fit_mel_rvq(clips, sizes, seed=0), tmp_path / "codec.safetensors")
    model = build_duplex(pretrained_audio_codec=str(tmp_path / "codec.safetensors"))
    assert model.target_sample_rate == 24000
    batch = load_batch(model)
    seconds = batch["target_audio_lens"] / 24000 - batch["source_audio_lens"] / 16000
    assert seconds.abs().max() < 1e-3
    assert model.parts.loss.loss_fn(batch)["loss"].isfinite()
    made = answers(model, batch)
    assert torch.equal(made["audio_len"], made["tokens_len"] * 1920)


def test_a_tokenizer_without_begin_is_refused_until_another_token_begins(
    tiny_llm: Callable[..., Path], build_duplex: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "llm"
    shutil.copytree(tiny_llm(), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match="must have a BOS token, but has none"):
        build_duplex(pretrained_llm=str(folder))
    named = build_duplex(pretrained_llm=str(folder), special_tokens={"bos": "<s>"})
    assert named.model.ids.bos == tokenizer.convert_tokens_to_ids("<s>")
