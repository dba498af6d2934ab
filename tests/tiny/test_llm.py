import json
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from whalesong.core.errors import ConfigError, DataError
from whalesong.corpora.grammar import VOCABULARY, sample_sentences
from whalesong.tiny.llm import build_tiny_llm, copy_accuracy, train_tiny_llm

TEXTS = ["turn on the light", "set the heater to twenty degrees"]


@pytest.fixture(scope="module")
def llm_dir(tmp_path_factory):
    return build_tiny_llm(tmp_path_factory.mktemp("llm") / "llama", texts=TEXTS)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("tied", [False, True])
def test_folder_loads_and_generates(tmp_path, architecture, tied):
    folder = build_tiny_llm(
        tmp_path / "llm", texts=TEXTS, architecture=architecture, tie_word_embeddings=tied
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == architecture
    shared = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert shared == tied
    batch = tokenizer("turn on", return_tensors="pt")
    output = model.generate(batch["input_ids"], max_new_tokens=3, min_new_tokens=3)
    assert output.shape == (1, batch["input_ids"].shape[1] + 3)


def test_vocabulary_leaves_room_for_added_tokens(llm_dir):
    rows = AutoModelForCausalLM.from_pretrained(llm_dir).get_input_embeddings().num_embeddings
    assert rows == 1024 > len(AutoTokenizer.from_pretrained(llm_dir)) + 8


def test_generation_is_greedy_and_ends_at_eos(llm_dir):
    config = json.loads((llm_dir / "generation_config.json").read_text())
    assert config["do_sample"] is False
    assert config["eos_token_id"] == AutoTokenizer.from_pretrained(llm_dir).eos_token_id == 2


@pytest.mark.parametrize(
    "text", ["turn on the light", "Gr\u00f6\u00dfe, \u65e5\u672c \U0001f40b!", "a\tb\nc", ""]
)
def test_any_text_survives_the_tokenizer(llm_dir, text):
    tokenizer = AutoTokenizer.from_pretrained(llm_dir)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_a_word_has_the_same_token_wherever_it_stands(llm_dir):
    tokenizer = AutoTokenizer.from_pretrained(llm_dir)
    on = tokenizer.encode("on", add_special_tokens=False)
    turn_on = tokenizer.encode("turn on", add_special_tokens=False)
    assert turn_on[-len(on) :] == on


def test_chat_template_gives_the_ids_of_the_llama2_prompt_format(llm_dir):
    from nemo.collections.common.prompts import PromptFormatter
    from nemo.collections.common.tokenizers import AutoTokenizer as NemoTokenizer

    dialog = [
        {"role": "user", "content": "Repeat after me: turn on"},
        {"role": "assistant", "content": "turn on"},
    ]
    tokenizer = AutoTokenizer.from_pretrained(llm_dir)
    ours = tokenizer.encode(
        tokenizer.apply_chat_template(dialog, tokenize=False), add_special_tokens=False
    )
    formatter = PromptFormatter.resolve("llama2")(NemoTokenizer(str(llm_dir), use_fast=True))
    theirs = formatter.encode_dialog(
        [{"role": turn["role"], "slots": {"message": turn["content"]}} for turn in dialog]
    )
    assert ours == theirs["input_ids"].tolist()


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone(tmp_path):
    before = torch.get_rng_state()
    folders = [build_tiny_llm(tmp_path / f"{n}", texts=TEXTS, seed=n // 2) for n in range(3)]
    assert torch.equal(before, torch.get_rng_state())
    one, two, other = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert one == two != other


def test_training_is_deterministic_and_lowers_the_loss(tmp_path):
    arguments = {"max_steps": 12, "batch_size": 8, "hidden_size": 64, "num_layers": 1}
    one = train_tiny_llm(TEXTS, tmp_path / "one", **arguments)
    two = train_tiny_llm(TEXTS, tmp_path / "two", **arguments)
    untrained = build_tiny_llm(tmp_path / "untrained", texts=TEXTS)
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert answer_loss(one) < 0.8 * answer_loss(untrained)


def answer_loss(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode(TEXTS[0] + " </s>", add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids, labels=ids).loss.item()


def test_an_unknown_architecture_and_a_small_vocabulary_are_named(tmp_path):
    with pytest.raises(ConfigError, match="`architecture` must be .* but is 'rnn'"):
        build_tiny_llm(tmp_path / "a", texts=TEXTS, architecture="rnn")
    with pytest.raises(ConfigError, match="`vocab_size` must leave at least"):
        build_tiny_llm(tmp_path / "b", texts=TEXTS, vocab_size=128)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(llm_dir):
    with pytest.raises(DataError, match="must be new or empty"):
        build_tiny_llm(llm_dir, texts=TEXTS)


@pytest.mark.slow
def test_trained_llm_repeats_unseen_sentences_and_random_words(tmp_path):
    folder = train_tiny_llm(sample_sentences(0, 3000), tmp_path / "llm")
    rng = random.Random(0)
    rows = [" ".join(rng.choices(VOCABULARY, k=rng.randint(1, 12))) for _ in range(100)]
    unseen = sample_sentences(1, 100, split="test")
    assert copy_accuracy(folder, unseen, instruction="Repeat after me:") >= 0.95
    assert copy_accuracy(folder, rows, instruction="Transcribe the audio:") >= 0.8
