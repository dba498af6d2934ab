"""One side of the codec LM benchmark, in a process of its own.

`codec_lm_side.py material FOLDER CASE` writes a random Musicgen; with a side as the first word it
generates or trains with that one. CASE is JSON, and so is what was measured: the last line printed.
"""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from measure import Timings, reset_peak, resident_bytes
from torch import Tensor, nn

from whalesong.modules.codebook_patterns import build_pattern

CODEBOOKS, CODEBOOK_SIZE = 4, 2048
TEXT_TOKENS = 32
AGREED_FRAMES = 8
WARM_UP, STEPS = 1, 3
TOP_K = 250

Case = dict[str, Any]
Generate = Callable[[int, bool], Tensor]
"""From frames, and whether greedily, to codes (B, K, F)."""
Loss = Callable[[Tensor], Tensor]
"""From codes (B, K, F) to the mean cross-entropy."""


def write_material(folder: Path, case: Case) -> None:
    """A random Musicgen around the language model; its text encoder and codec are tiny."""
    from transformers import EncodecConfig, T5Config
    from transformers.models.musicgen import MusicgenConfig, MusicgenForConditionalGeneration
    from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig

    d_model = case["d_model"]
    text_encoder = T5Config(vocab_size=100, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4)
    codec = EncodecConfig(
        codebook_size=CODEBOOK_SIZE,
        num_filters=4,
        hidden_size=16,
        codebook_dim=16,
        target_bandwidths=[2.2],
        upsampling_ratios=[8, 5, 4, 4],
        sampling_rate=32000,
    )
    decoder = MusicgenDecoderConfig(
        vocab_size=CODEBOOK_SIZE,
        hidden_size=d_model,
        num_hidden_layers=case["num_layers"],
        num_attention_heads=max(d_model // 64, 2),
        ffn_dim=4 * d_model,
        num_codebooks=CODEBOOKS,
        pad_token_id=CODEBOOK_SIZE,
        bos_token_id=CODEBOOK_SIZE,
        dropout=0.0,
    )
    parts = {"text_encoder": text_encoder, "audio_encoder": codec, "decoder": decoder}
    model = MusicgenForConditionalGeneration(
        MusicgenConfig(**{name: part.to_dict() for name, part in parts.items()})
    ).eval()
    model.save_pretrained(folder / "musicgen")
    ids = torch.randint(3, 100, (case["rows"], TEXT_TOKENS))
    with torch.no_grad():
        hidden = model.text_encoder(input_ids=ids).last_hidden_state
        memory = hidden if d_model == 64 else model.enc_to_dec_proj(hidden)
    codes = torch.randint(CODEBOOK_SIZE, (case["rows"], CODEBOOKS, case["frames"]))
    torch.save({"ids": ids, "memory": memory, "codes": codes}, folder / "inputs.pt")


def build_transformers(
    folder: Path, case: Case, inputs: dict[str, Tensor]
) -> tuple[nn.Module, Generate, Loss]:
    """Musicgen of transformers."""
    from transformers.models.musicgen import MusicgenForConditionalGeneration

    model = MusicgenForConditionalGeneration.from_pretrained(folder / "musicgen")
    keep_codes = SimpleNamespace
    model.audio_encoder.decode = lambda codes, **_: keep_codes(audio_values=codes[0])
    mask = torch.ones_like(inputs["ids"])

    def generate(frames: int, greedy: bool) -> Tensor:
        sampling = {"do_sample": False} if greedy else {"do_sample": True, "top_k": TOP_K}
        return model.generate(
            input_ids=inputs["ids"],
            attention_mask=mask,
            guidance_scale=case["guidance"],
            max_new_tokens=frames + CODEBOOKS - 1,
            **sampling,
        )

    def loss(codes: Tensor) -> Tensor:
        layout = build_pattern("delay", CODEBOOKS).layout(codes.shape[2])
        tokens = layout.build(codes, CODEBOOK_SIZE)
        return model.decoder(
            input_ids=tokens[..., :-1].flatten(0, 1),
            encoder_hidden_states=inputs["memory"],
            encoder_attention_mask=mask,
            labels=tokens[..., 1:].transpose(1, 2),
        ).loss

    return model.decoder if case["train"] else model, generate, loss


def build_whalesong(
    folder: Path, case: Case, inputs: dict[str, Tensor]
) -> tuple[nn.Module, Generate, Loss]:
    """Our language model with the same weights."""
    from safetensors import safe_open

    from whalesong.models.codec_lm.backbone import ContinuousTransformerAudioLMBackbone
    from whalesong.models.codec_lm.exchange import lm_state
    from whalesong.models.codec_lm.loss import CodecLMLoss
    from whalesong.models.codec_lm.model import AudioLanguageModel
    from whalesong.models.codec_lm.step_model import GuidedStepModel, PackedWeights
    from whalesong.models.codec_lm.wrapper import AudioLanguageModelWrapper
    from whalesong.modules.conditioning.conditioner import Condition
    from whalesong.modules.generation.generate import generate_codes
    from whalesong.modules.generation.sampling import SamplingSettings

    d_model, rows = case["d_model"], case["rows"]
    backbone = ContinuousTransformerAudioLMBackbone(
        embed_dim=d_model,
        depth=case["num_layers"],
        dim_heads=min(64, d_model // 2),
        rotary_pos_emb=False,
        use_sinusoidal_emb=True,
        activation="gelu",
        ff_kwargs={"glu": False, "no_bias": True},
        norm_kwargs={"bias": True},
        cross_attn_cond_dim=d_model,
    )
    pattern = build_pattern("delay", CODEBOOKS)
    model = AudioLanguageModel(
        pattern_provider=pattern,
        backbone=backbone,
        codebook_size=CODEBOOK_SIZE,
        cross_attention_cond_ids=["text"],
    )
    with safe_open(folder / "musicgen" / "model.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("decoder.")]  # noqa: SIM118
        given = {name.removeprefix("decoder."): file.get_tensor(name) for name in names}
    model.load_state_dict(lm_state(given, num_layers=case["num_layers"]))
    text = Condition(inputs["memory"], torch.ones_like(inputs["ids"], dtype=torch.bool))
    conditions = {"text": text}
    variants = [({"text": text.null()}, 1.0 - case["guidance"]), (conditions, case["guidance"])]

    if case["guidance"] == 1:
        variants = variants[1:]
    packed = None
    if case["packs"]:
        shape = {"batch_size": rows, "num_variants": len(variants)}
        packed = PackedWeights(model, **shape, weight_dtype=case["weight_dtype"])

    def generate(frames: int, greedy: bool) -> Tensor:
        steps = GuidedStepModel(
            model,
            variants,
            batch_size=rows,
            max_steps=pattern.layout(frames).num_steps,
            packed=None if greedy else packed,
        )
        return generate_codes(
            steps,
            pattern,
            known=torch.full((rows, CODEBOOKS, frames), -1),
            lens=[frames] * rows,
            seeds=list(range(rows)),
            settings=SamplingSettings(temperature=0.0 if greedy else 1.0, top_k=TOP_K),
        ).codes

    wrapper = AudioLanguageModelWrapper(
        pretransform=SimpleNamespace(downsampling_ratio=1),
        lm=model,
        conditioner=lambda _: conditions,
        sample_rate=32000,
    )
    objective = CodecLMLoss(model=wrapper)
    return (
        model,
        generate,
        lambda codes: objective.loss_fn({"codes": codes, "codes_lens": None, "metadata": []})[
            "loss"
        ],
    )


BUILDERS = {"whalesong": build_whalesong, "transformers": build_transformers}


def time_generation(generate: Generate, case: Case) -> dict[str, Any]:
    """Greedy codes of a few frames, and the seconds of one long sampled generation."""
    with torch.no_grad():
        codes = generate(AGREED_FRAMES, True).tolist()
        timings = Timings()
        timings.start()
        generate(case["frames"], False)
        timings.stop()
    return {"codes": codes, **timings.medians()}


def time_training(model: nn.Module, loss: Loss, codes: Tensor) -> dict[str, Any]:
    """Losses and seconds of some steps of AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model.train()
    losses, timings = [], Timings()
    for _ in range(WARM_UP + STEPS):
        timings.start()
        value = loss(codes)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        timings.stop()
        losses.append(float(value))
    return {"losses": losses, **timings.medians(skip=WARM_UP)}


def main(role: str, folder: Path, case: Case) -> None:
    """Play one role and print what was measured."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if role == "material":
        write_material(folder, case)
        return
    inputs = torch.load(folder / "inputs.pt", weights_only=True)
    model, generate, loss = BUILDERS[role](folder, case, inputs)
    model.eval()
    reset_peak()
    if case["train"]:
        result = time_training(model, loss, inputs["codes"])
    else:
        result = time_generation(generate, case)
    print(json.dumps({**result, "peak": resident_bytes("VmHWM")}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
