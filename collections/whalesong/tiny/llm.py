"""A small causal LM that repeats what it is told, saved as a plain Hugging Face folder."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import trange
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from whalesong.core.atomic import atomic_folder
from whalesong.core.errors import ConfigError
from whalesong.tiny.tokenizer import train_tokenizer

Architecture = Literal["llama", "qwen2", "gpt2"]

INSTRUCTIONS: tuple[str, ...] = (
    "Repeat after me:",
    "Transcribe the audio:",
    "Transcribe the speech:",
    "Write down what you hear:",
)
"""User texts after which the trained LM repeats the words that follow."""

DRAWLED_SHARE = 0.7
"""Share of lessons whose prompt holds each token for several positions; the answer never does."""

MAX_TOKENS = 4096
_SPARE_IDS = 16
_MAX_TOKENIZER_SIZE = 2000


def build_tiny_llm(
    output: str | Path,
    *,
    texts: Sequence[str],
    architecture: Architecture = "llama",
    tie_word_embeddings: bool = False,
    hidden_size: int = 64,
    num_layers: int = 2,
    vocab_size: int = 1024,
    seed: int = 0,
) -> Path:
    """Save an untrained LM with its tokenizer; for tests that need the real format.

    Args:
        output: a new or empty folder.
        texts: what the tokenizer is trained on.
        architecture: the layout of the published models that this one stands for.
        tie_word_embeddings: share the input and output embedding.
        hidden_size: width; a multiple of 8.
        num_layers: decoder layers.
        vocab_size: rows of the embedding, at least 16 more than the tokenizer fills.
        seed: of the initial weights.

    Raises:
        ConfigError: if `vocab_size` has no room for bytes and characters.
        DataError: if `output` is not empty.
    """
    with atomic_folder(output) as partial:
        tokenizer = train_tokenizer(_with_prompts(texts), max_vocab_size=vocab_size - _SPARE_IDS)
        model = _create_model(
            tokenizer,
            architecture=architecture,
            tie_word_embeddings=tie_word_embeddings,
            hidden_size=hidden_size,
            num_layers=num_layers,
            vocab_size=vocab_size,
            seed=seed,
        )
        _save(model, tokenizer, partial)
    return Path(output)


def train_tiny_llm(
    texts: Sequence[str],
    output: str | Path,
    *,
    max_steps: int = 800,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    hidden_size: int = 128,
    num_layers: int = 3,
    seed: int = 0,
) -> Path:
    """Train a Llama to repeat the words of the user turn, and save it with its tokenizer.

    The turns have the text of NeMo's `llama2` prompt format. Half of the lessons are `texts`, half
    are random rows of their words, so that the LM must copy and cannot guess. In most of them the
    words are drawled: an LM that can read those needs little training to read audio frames.

    Args:
        texts: sentences of words set apart by blanks.
        output: a new or empty folder.
        max_steps: optimizer steps.
        batch_size: lessons per step.
        learning_rate: peak of the warmed-up cosine schedule.
        hidden_size: width of the LM.
        num_layers: decoder layers.
        seed: of the initial weights and the lessons.

    Raises:
        DataError: if `output` is not empty.
    """
    with atomic_folder(output) as partial:
        tokenizer = train_tokenizer(_with_prompts(texts), max_vocab_size=_MAX_TOKENIZER_SIZE)
        model = _create_model(
            tokenizer,
            architecture="llama",
            tie_word_embeddings=False,
            hidden_size=hidden_size,
            num_layers=num_layers,
            vocab_size=-(-(len(tokenizer) + _SPARE_IDS) // 64) * 64,
            seed=seed,
        )
        draw = _LessonBook(texts, tokenizer, seed).draw
        _fit(model, draw, max_steps=max_steps, batch_size=batch_size, learning_rate=learning_rate)
        _save(model, tokenizer, partial)
    return Path(output)


def copy_accuracy(llm_dir: str | Path, texts: Sequence[str], *, instruction: str) -> float:
    """Return the share of `texts` that a saved LM repeats without any error."""
    tokenizer = AutoTokenizer.from_pretrained(llm_dir, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(llm_dir).eval()
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": f"{instruction} {text}"}], tokenize=False
        )
        for text in texts
    ]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    output = model.generate(
        batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=64
    )
    answers = tokenizer.batch_decode(
        output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
    )
    pairs = zip(answers, texts, strict=True)
    return sum(answer.strip() == text for answer, text in pairs) / len(texts)


class _LessonBook:
    """Draws batches of prompts and answers; only the answers are targets."""

    def __init__(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self.texts = texts
        self.words = sorted({word for text in texts for word in text.split()})
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)

    def draw(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return input ids and labels, both (B, T); labels are -100 where nothing is learned."""
        lessons = [self._lesson() for _ in range(batch_size)]
        num_tokens = max(len(prompt) + len(answer) for prompt, answer in lessons)
        input_ids = torch.full((batch_size, num_tokens), self.tokenizer.pad_token_id)
        labels = torch.full((batch_size, num_tokens), -100)
        for row, (prompt, answer) in enumerate(lessons):
            input_ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
        return input_ids, labels

    def _lesson(self) -> tuple[list[int], list[int]]:
        if self.rng.random() < 0.5:
            text = self.rng.choice(self.texts)
        else:
            text = " ".join(self.rng.choices(self.words, k=self.rng.randint(1, 12)))
        spoken = self._encode(text)
        if self.rng.random() < DRAWLED_SHARE:
            spoken = self._drawl(spoken)
        begin = self._encode(f"<s>[INST] {self.rng.choice(INSTRUCTIONS)}")
        return begin + spoken + self._encode("[/INST]"), self._encode(f"{text} </s>")

    def _drawl(self, ids: list[int]) -> list[int]:
        """Hold each token for a while and put a filler between, as the frames of slow speech do."""
        filler = self.rng.randrange(len(self.tokenizer))
        pauses = self.rng.random()
        drawled: list[int] = []
        for token in ids:
            drawled += [filler for _ in range(2) if self.rng.random() < pauses / 2]
            drawled += [token] * self.rng.randint(1, 4)
        return drawled

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


def _fit(
    model: PreTrainedModel,
    draw: Callable[[int], tuple[Tensor, Tensor]],
    *,
    max_steps: int,
    batch_size: int,
    learning_rate: float,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=max_steps, pct_start=0.1
    )
    model.train()
    progress = trange(max_steps, desc="Training the LLM", unit="step")
    for _ in progress:
        input_ids, labels = draw(batch_size)
        loss = model(input_ids=input_ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def _with_prompts(texts: Sequence[str]) -> list[str]:
    """Add the words around the texts often enough that the tokenizer merges them."""
    prompts = [f"[INST] {instruction} [/INST]" for instruction in INSTRUCTIONS]
    return [*texts, *prompts * 100]


def _create_model(
    tokenizer: PreTrainedTokenizerFast,
    *,
    architecture: Architecture,
    tie_word_embeddings: bool,
    hidden_size: int,
    num_layers: int,
    vocab_size: int,
    seed: int,
) -> PreTrainedModel:
    common = {
        "vocab_size": vocab_size,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": tie_word_embeddings,
    }
    rotary = {
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_TOKENS,
    }
    learned = {"n_embd": hidden_size, "n_layer": num_layers, "n_head": 4, "n_positions": MAX_TOKENS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if architecture == "llama":
            return LlamaForCausalLM(LlamaConfig(**rotary, **common))
        if architecture == "qwen2":
            return Qwen2ForCausalLM(Qwen2Config(**rotary, **common))
        if architecture == "gpt2":
            return GPT2LMHeadModel(GPT2Config(**learned, **common))
    raise ConfigError(
        f"`architecture` must be llama, qwen2 or gpt2, but is {architecture!r} instead."
    )


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
