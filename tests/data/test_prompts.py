"""Prompt formats: the answer is supervised, and nothing else is."""

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from whalesong.core.errors import ConfigError, DataError
from whalesong.data.prompts import PromptEncoder

TAG = "<audio>"
SPECIAL = [
    "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<start_of_turn>", "<end_of_turn>",
]  # fmt: skip
DIALOG = [
    {"role": "user", "content": f"Repeat after me: {TAG}"},
    {"role": "assistant", "content": "turn on the light"},
    {"role": "user", "content": f"And {TAG} and {TAG}"},
    {"role": "assistant", "content": "set the heating"},
]


@pytest.fixture(scope="module")
def tokenizer(tiny_llm: Callable[..., Path]) -> Any:
    from nemo.collections.common.tokenizers import AutoTokenizer

    tokenizer = AutoTokenizer(str(tiny_llm()), use_fast=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [TAG, *SPECIAL]})
    return tokenizer


def encoder(tokenizer: Any, prompt_format: str | None) -> PromptEncoder:
    return PromptEncoder(tokenizer, prompt_format=prompt_format, audio_locator_tag=TAG)


ENDS = {
    "llama2": "</s>",
    "llama3": "<|eot_id|>",
    "qwen": "<|im_end|>",
    "gemma": "<end_of_turn>",
    None: "</s>",
}


@pytest.mark.parametrize("prompt_format", list(ENDS))
def test_answers_and_their_ends_are_supervised(tokenizer: Any, prompt_format: str | None) -> None:
    prompts = encoder(tokenizer, prompt_format)
    dialog = prompts.encode(DIALOG, [3, 2, 4], example_id="x")
    supervised = [
        token for token, answer in zip(dialog.input_ids, dialog.answer_mask, strict=True) if answer
    ]
    text = tokenizer.tokenizer.decode(supervised).replace(" ", "")
    end = ENDS[prompt_format]
    assert text == f"turnonthelight{end}settheheating{end}"
    assert prompts.stop_ids == [tokenizer.token_to_id(end)]


@pytest.mark.parametrize("prompt_format", list(ENDS))
def test_prompt_is_the_beginning_of_the_dialog(tokenizer: Any, prompt_format: str | None) -> None:
    prompts = encoder(tokenizer, prompt_format)
    whole = prompts.encode(DIALOG, [3, 2, 4], example_id="x")
    prompt = prompts.encode(DIALOG[:-1], [3, 2, 4], example_id="x")
    assert whole.input_ids[: len(prompt)] == prompt.input_ids
    assert whole.answer_mask.index(True) < len(prompt)
    assert whole.answer_mask[len(prompt)]


def test_each_tag_becomes_its_frames_in_reading_order(tokenizer: Any) -> None:
    dialog = encoder(tokenizer, "llama2").encode(DIALOG, [3, 2, 4], example_id="x")
    runs = [len(list(run)) for is_audio, run in groupby(dialog.audio_mask) if is_audio]
    assert runs == [3, 2, 4]


def test_format_without_an_end_gets_the_tokenizers_eos(tokenizer: Any) -> None:
    dialog = encoder(tokenizer, "plain").encode(DIALOG[:2], [1], example_id="x")
    assert dialog.input_ids[-1] == tokenizer.eos_id and dialog.answer_mask[-1]


def test_system_message_goes_where_the_format_has_room(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *DIALOG[:2]]
    ids = encoder(tokenizer, "llama2").encode(messages, [1], example_id="x").input_ids
    assert "<<SYS>>" in tokenizer.tokenizer.decode(ids).replace(" ", "")
    with pytest.raises(ConfigError, match="'gemma' has no place for a system message"):
        encoder(tokenizer, "gemma").encode(messages, [1], example_id="x")


def test_tags_and_audios_must_pair_up(tokenizer: Any) -> None:
    with pytest.raises(
        DataError, match="'x' must have one '<audio>' for each audio, but has 3 for 2"
    ):
        encoder(tokenizer, "llama2").encode(DIALOG, [3, 2], example_id="x")


@pytest.mark.parametrize("text", [f"say {TAG} twice", "the end </s> of it"])
def test_special_tokens_in_a_text_are_refused(tokenizer: Any, text: str) -> None:
    with pytest.raises(
        DataError, match="the text of 'utt7' must hold no special token, but holds '<"
    ):
        encoder(tokenizer, "llama2").check_text(text, example_id="utt7")


def test_missing_chat_template_is_said_at_once(tokenizer: Any) -> None:
    template, tokenizer.tokenizer.chat_template = tokenizer.tokenizer.chat_template, None
    try:
        with pytest.raises(ConfigError, match="has no chat template; 'plain' works with any LLM"):
            encoder(tokenizer, None)
    finally:
        tokenizer.tokenizer.chat_template = template


@pytest.mark.parametrize("prompt_format", ["llama2", "plain", None])
def test_text_without_a_question_is_an_answer(tokenizer: Any, prompt_format: str | None) -> None:
    text = [{"role": "assistant", "content": "turn on the light"}]
    dialog = encoder(tokenizer, prompt_format).encode(text, [], example_id="x")
    supervised = [
        token for token, answer in zip(dialog.input_ids, dialog.answer_mask, strict=True) if answer
    ]
    assert tokenizer.tokenizer.decode(supervised).replace(" ", "") == "turnonthelight</s>"
