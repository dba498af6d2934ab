"""What both sides of the SALM benchmark get: pretrained parts, one configuration, equal batches.

`salm_material.py FOLDER VOCAB_SIZE AUDIO_SECONDS BATCH GENERATION_ROWS SHARE...`
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whalesong.models.salm.salm import SALM
from whalesong.tiny.asr import build_tiny_asr
from whalesong.tiny.llm import build_tiny_llm

TAG = "<audio>"
TEXTS = ["turn on the light in the kitchen", "set the heating to twenty one degrees"] * 20
PROMPT_TOKENS = 16
FIRST_TEXT_ID = 4  # below are the special tokens; NeMo takes the id of padding for padding anywhere
ENCODER_WIDTH = 64


def prepare(
    folder: Path,
    *,
    vocab_size: int,
    audio_seconds: float,
    batch_size: int,
    generation_rows: int,
    shares: list[float],
) -> None:
    """Write all that `salm_side.py` reads.

    Args:
        folder: a new or empty folder.
        vocab_size: rows of the LLM's embedding and head.
        audio_seconds: of each row.
        batch_size: rows of a training batch.
        generation_rows: rows of a batch of prompts.
        shares: of the positions that are supervised; 1 supervises the audio frames, too.
    """
    config = _config(folder, vocab_size)
    torch.manual_seed(0)
    model = SALM(config)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(_trained_state(model), folder / "trained.pt")
    samples = round(audio_seconds * model.sample_rate)
    tag_id = model.tokenizer.token_to_id(TAG)
    batches = {
        f"{share:.0%}": _training_batches(model, batch_size, samples, share, tag_id)
        for share in shares
    }
    torch.save(batches, folder / "training.pt")
    prompts = _generation_batches(model, generation_rows, samples, tag_id)
    torch.save(prompts, folder / "generation.pt")


def _config(folder: Path, vocab_size: int) -> dict[str, Any]:
    """Build the pretrained parts; a `model` section that both sides take."""
    llm = build_tiny_llm(
        folder / "llm", texts=TEXTS, hidden_size=128, num_layers=2, vocab_size=vocab_size
    )
    asr = build_tiny_asr(folder / "asr.nemo", texts=TEXTS, d_model=ENCODER_WIDTH, num_layers=2)
    nemo = "nemo.collections.speechlm2.modules.perception"
    perception = {
        "target": f"{nemo}.AudioPerceptionModule",
        "modality_adapter": {"_target_": f"{nemo}.IdentityConnector", "d_model": ENCODER_WIDTH},
    }
    return {
        "pretrained_llm": str(llm),
        "pretrained_asr": str(asr),
        "pretrained_weights": True,
        "prompt_format": "llama2",
        "audio_locator_tag": TAG,
        "freeze_params": [r"^llm\..+$", r"^embed_tokens\..+$", r"^perception\.encoder\..+$"],
        "prevent_freeze_params": [],
        "lora": {
            "task_type": "CAUSAL_LM",
            "r": 8,
            "lora_alpha": 16,
            "target_modules": "all-linear",
        },
        "perception": perception,
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-4},
    }


def _trained_state(model: SALM) -> dict[str, Tensor]:
    """What training moves, under the names of ours; LoRA is given an effect, so that it counts."""
    state = {n: p.detach().clone() for n, p in model.model.named_parameters() if p.requires_grad}
    return {n: t.normal_(std=0.05) if ".lora_B." in n else t for n, t in state.items()}


def _training_batches(
    model: SALM, batch_size: int, num_samples: int, share: float, tag_id: int
) -> dict[str, dict[str, Tensor]]:
    """Equal rows without padding: prompt, audio frames, answer."""
    before = PROMPT_TOKENS + model.counter(num_samples)
    dense = share == 1
    answer_tokens = before // 9 if dense else max(round(before * share / (1 - share)), 1)
    ours, theirs = _rows(model, batch_size, num_samples, tag_id, answer_tokens)
    target_ids = ours["input_ids"][:, 1:].clone()
    if not dense:
        target_ids[:, : before - 1] = -100
        theirs["loss_mask"] = torch.zeros_like(theirs["input_ids"], dtype=torch.bool)
        theirs["loss_mask"][:, -answer_tokens:] = True
    else:
        theirs["loss_mask"] = torch.ones_like(theirs["input_ids"], dtype=torch.bool)
        theirs["target_ids"] = target_ids
    ours["labels"] = torch.nn.functional.pad(target_ids, (0, 1), value=-100)
    return {"whalesong": ours, "nemo": theirs}


def _generation_batches(
    model: SALM, batch_size: int, num_samples: int, tag_id: int
) -> dict[str, dict[str, Any]]:
    ours, theirs = _rows(model, batch_size, num_samples, tag_id, 8)
    prompt = ("input_ids", "attention_mask", "audio_mask")
    return {
        "whalesong": {
            "prompt": {key: ours[key] for key in prompt},
            "audio": ours["audio"],
            "audio_lens": ours["audio_lens"],
        },
        "nemo": theirs,
    }


def _rows(
    model: SALM, batch_size: int, num_samples: int, tag_id: int, tokens_after: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same rows for ours, with a position for each frame, and for NeMo, with one tag."""
    generator = torch.Generator().manual_seed(1)
    frames = model.counter(num_samples)
    shape = (batch_size, PROMPT_TOKENS + tokens_after)
    text = torch.randint(FIRST_TEXT_ID, tag_id, shape, generator=generator)
    before, after = text.split([PROMPT_TOKENS, tokens_after], dim=1)
    holes = torch.zeros(batch_size, frames, dtype=torch.long)
    audio_mask = torch.zeros(batch_size, frames + shape[1], dtype=torch.bool)
    audio_mask[:, PROMPT_TOKENS : PROMPT_TOKENS + frames] = True
    audio = 0.1 * torch.randn(batch_size, num_samples, generator=generator)
    audio_lens = torch.full((batch_size,), num_samples)
    ours = {
        "input_ids": torch.cat([before, holes, after], dim=1),
        "attention_mask": torch.ones_like(audio_mask),
        "audio_mask": audio_mask,
        "audio": audio,
        "audio_lens": audio_lens,
    }
    theirs = {
        "input_ids": torch.cat([before, torch.full_like(before[:, :1], tag_id), after], dim=1),
        "audios": audio,
        "audio_lens": audio_lens,
    }
    return ours, theirs


if __name__ == "__main__":
    to_folder, vocab, seconds, rows, prompt_rows, *supervised = sys.argv[1:]
    prepare(
        Path(to_folder),
        vocab_size=int(vocab),
        audio_seconds=float(seconds),
        batch_size=int(rows),
        generation_rows=int(prompt_rows),
        shares=[float(share) for share in supervised],
    )
