"""Dialogs to token ids: NeMo's prompt formats, or the tokenizer's own chat template.

Both are driven through one function, `render(messages, generation_prompt)`. Which tokens are the
answers is then found by rendering the dialog up to each answer: what the model would be given at
inference is context, what follows it up to the end-of-turn token is supervised, and no header is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from whalesong.core.errors import ConfigError, DataError

Message = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`"""
Render = Callable[[list[Message], bool], list[int]]


@dataclass(frozen=True)
class EncodedDialog:
    """Token ids of a dialog with one placeholder per audio frame.

    Attributes:
        input_ids: token ids; `placeholder` ids stand at audio frames and are never looked up.
        answer_mask: True at the tokens that the model has to produce.
        audio_mask: True at audio frames.
    """

    input_ids: list[int]
    answer_mask: list[bool]
    audio_mask: list[bool]

    def __len__(self) -> int:
        return len(self.input_ids)


class PromptEncoder:
    """Encodes dialogs for one tokenizer and one prompt format.

    Args:
        tokenizer: NeMo's `AutoTokenizer` around a Hugging Face tokenizer that knows
            `audio_locator_tag`.
        prompt_format: name of a NeMo prompt format; None for the tokenizer's own chat template.
        audio_locator_tag: stands for one audio in a text.

    Raises:
        ConfigError: there is no such format, or no chat template to fall back on.
    """

    def __init__(
        self, tokenizer: Any, *, prompt_format: str | None, audio_locator_tag: str
    ) -> None:
        self.audio_locator_tag = audio_locator_tag
        self.audio_locator_id = tokenizer.token_to_id(audio_locator_tag)
        self._reserved = sorted(set(tokenizer.tokenizer.all_special_tokens), key=len, reverse=True)
        self._special_ids = frozenset(tokenizer.tokenizer.all_special_ids)
        self._render = (
            _chat_template_renderer(tokenizer)
            if prompt_format is None
            else _nemo_renderer(tokenizer, prompt_format)
        )
        self._closing_ids: list[int] = []
        if not self.stop_ids:  # such as NeMo's 'plain': without an end the model would never stop
            self._closing_ids = [tokenizer.eos_id]

    def encode(
        self, messages: Sequence[Message], frames: Sequence[int], *, example_id: str
    ) -> EncodedDialog:
        """Encode a dialog; the last message may be an answer (training) or not (generation).

        Args:
            messages: turns, whose contents name each audio by the tag.
            frames: number of frames of each audio, in reading order.
            example_id: named in errors.

        Raises:
            DataError: tags and audios do not pair up.
        """
        ids = self._render(list(messages), messages[-1]["role"] != "assistant")
        answers = [False] * len(ids)
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                begin = _common_prefix(ids, self._before_answer(messages, index))
                end = _common_prefix(ids, self._render(list(messages[: index + 1]), False))
                end = self._end_of_turn(ids, begin, end)
                answers[begin:end] = [True] * (end - begin)
        if messages[-1]["role"] == "assistant":
            ids = ids + self._closing_ids
            answers += [True] * len(self._closing_ids)
        return self.expand(ids, frames, answer_mask=answers, example_id=example_id)

    def check_text(self, text: str, *, example_id: str) -> None:
        """Refuse text that the tokenizer would read as a tag or a special token.

        Raises:
            DataError: naming the example and the token.
        """
        for token in self._reserved:
            if token in text:
                raise DataError(
                    f"the text of '{example_id}' must hold no special token, but holds '{token}'."
                )

    @property
    def stop_ids(self) -> list[int]:
        """Ids of the special token that ends an answer in this format."""
        dialog = self.encode(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            [],
            example_id="stop",
        )
        last = [
            token
            for token, answer in zip(dialog.input_ids, dialog.answer_mask, strict=True)
            if answer
        ][-1]
        return [last] if last in self._special_ids else []

    def _before_answer(self, messages: Sequence[Message], index: int) -> list[int]:
        """Ids that share with the dialog exactly what stands before the answer at `index`."""
        if index:
            return self._render(list(messages[:index]), True)
        # Nothing precedes a text without a question: another text shares the head of the format.
        other = "0" if not messages[0]["content"].startswith("0") else "1"
        return self._render([{"role": "assistant", "content": other}], False)

    def _end_of_turn(self, ids: list[int], begin: int, end: int) -> int:
        """Position after an answer's first special token; what follows is not supervised."""
        for position in range(begin, end):
            if ids[position] in self._special_ids:
                return position + 1
        return end

    def expand(
        self,
        ids: list[int],
        frames: Sequence[int],
        *,
        answer_mask: list[bool] | None = None,
        example_id: str,
    ) -> EncodedDialog:
        """Repeat each audio tag once for each of its frames.

        Raises:
            DataError: tags and audios do not pair up.
        """
        answers = answer_mask or [False] * len(ids)
        tags = ids.count(self.audio_locator_id)
        if tags != len(frames):
            raise DataError(
                f"'{example_id}' must have one '{self.audio_locator_tag}' for each audio, "
                f"but has {tags} for {len(frames)} audios."
            )
        counts = iter(frames)
        out_ids, out_answers, out_audio = [], [], []
        for token, answer in zip(ids, answers, strict=True):
            is_audio = token == self.audio_locator_id
            repeat = next(counts) if is_audio else 1
            out_ids += [token] * repeat
            out_answers += [answer and not is_audio] * repeat
            out_audio += [is_audio] * repeat
        return EncodedDialog(out_ids, out_answers, out_audio)


def _common_prefix(left: list[int], right: list[int]) -> int:
    length = min(len(left), len(right))
    return next((i for i in range(length) if left[i] != right[i]), length)


def _chat_template_renderer(tokenizer: Any) -> Render:
    hf = tokenizer.tokenizer
    if not hf.chat_template:
        raise ConfigError(
            "`model.prompt_format` must name a prompt format, because the tokenizer of "
            "`model.pretrained_llm` has no chat template; 'plain' works with any LLM."
        )

    def render(messages: list[Message], generation_prompt: bool) -> list[int]:
        text = hf.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation_prompt
        )
        return hf(text, add_special_tokens=False).input_ids

    return render


def _nemo_renderer(tokenizer: Any, prompt_format: str) -> Render:
    from nemo.collections.common.prompts import PromptFormatter

    known = PromptFormatter._REGISTERED_FORMATTERS
    if prompt_format not in known:
        raise ConfigError(
            f"`model.prompt_format` must be one of {', '.join(sorted(known))} or null, "
            f"but is '{prompt_format}'."
        )
    formatter = known[prompt_format](tokenizer)

    def render(messages: list[Message], generation_prompt: bool) -> list[int]:
        del generation_prompt  # NeMo's formats add it by themselves when the last turn is no answer
        turns = _nemo_turns(messages, formatter)
        return formatter.encode_dialog(turns)["input_ids"].tolist()

    return render


def _nemo_turns(messages: list[Message], formatter: Any) -> list[dict[str, Any]]:
    """Messages as NeMo's turns; a system message goes where the format has room for it."""
    roles = formatter.get_roles()
    turns: list[dict[str, Any]] = []
    system = None
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "system" and "system" not in roles:
            system = content
            continue
        role = formatter.OUTPUT_ROLE if role == "assistant" else role
        slots = {slot: content for slot in formatter.get_slots(role)} if role in roles else {}
        if system is not None and role == "user" and "system_and_user" in roles:
            role, slots, system = "system_and_user", {"system": system, "message": content}, None
        turns.append({"role": role, "slots": slots})
    if system is not None:
        raise ConfigError(
            f"`model.prompt_format` '{formatter.NAME}' has no place for a system message."
        )
    return turns
