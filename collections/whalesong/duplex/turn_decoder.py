"""From one text token a frame back to turns: who says what, and when."""

from collections.abc import Callable, Iterable
from typing import Any

from whalesong.data.text_channel import TextIds
from whalesong.data.turns import Turn, joined

_UNFINISHED = "\ufffd"
"""What a tokenizer gives for bytes that are no whole character."""


class TurnDecoder:
    """Reads the text channel of one row, token after token, as the model draws them.

    Step n draws the token of frame n + 1, so the n-th token pushed (from 0) has the time of frame
    n + 1. A turn is begun by BOS and ended by EOS, or by the BOS of the next one; where both are
    one id, whether a turn is open tells which of them it is.

    Args:
        tokenizer: NeMo's `AutoTokenizer` of the LLM.
        ids: BOS, EOS and PAD of the text channel.
        frame_length: seconds of a frame.
    """

    def __init__(self, tokenizer: Any, ids: TextIds, frame_length: float) -> None:
        self.num_stray = 0
        """Text tokens outside of any turn; they are not shown."""
        self._ids = ids
        self._frame_length = frame_length
        self._tokenizer = tokenizer.tokenizer
        self._special = frozenset((ids.pad, *tokenizer.tokenizer.all_special_ids))
        self._ended: list[Turn] = []
        self._open: _OpenTurn | None = None
        self._num_tokens = 0
        self._has_text = False

    @property
    def turns(self) -> list[Turn]:
        """All turns so far; the last one may not have ended."""
        if self._open is None:
            return list(self._ended)
        return [*self._ended, Turn(begin=self._open.begin, end=None, text=self._open.text)]

    @property
    def text(self) -> str:
        """What was said in all turns, a space between them: all that `push` gave out."""
        return joined(self.turns)

    def push(self, token: int) -> str:
        """Take the token of the next frame; returns the text that it makes known.

        A character whose bytes are spread over tokens comes with the last of them, blanks come
        with the word behind them.
        """
        self._num_tokens += 1
        if token == self._ids.eos and self._open is not None:
            return self._end()
        if token == self._ids.bos:
            rest = self._end()
            self._open = _OpenTurn(begin=self._time(), decode=self._decode)
            return rest
        if token == self._ids.eos or token in self._special:
            return ""
        if self._open is None:
            self.num_stray += 1
            return ""
        return self._spoken(self._open.push(token))

    def _end(self) -> str:
        """End the open turn, if there is one; returns the text that it has held back."""
        if self._open is None:
            return ""
        rest = self._spoken(self._open.finish())
        turn, self._open = self._open, None
        self._ended.append(Turn(begin=turn.begin, end=self._time(), text=turn.text))
        return rest

    def _time(self) -> float:
        """When the frame of the newest token begins, in seconds."""
        return round(self._num_tokens * self._frame_length, 6)

    def _spoken(self, new: str) -> str:
        """New text of the open turn, with a space where it is the first one behind others."""
        if not new:
            return ""
        is_first = self._open is not None and self._open.text == new
        space = " " if is_first and self._has_text else ""
        self._has_text = True
        return space + new

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False)


class _OpenTurn:
    """A turn whose text comes token after token, at the same cost for each.

    Blanks and characters depend on the tokens before, so a few of these are decoded again: what
    all kept tokens say, less what the known ones among them say, is new.
    """

    def __init__(self, *, begin: float, decode: Callable[[list[int]], str]) -> None:
        self.begin = begin
        self.text = ""
        self._decode = decode
        self._kept: list[int] = []
        self._num_known = 0
        self._held = ""
        self._blanks = ""

    def push(self, token: int) -> str:
        """Take a token; returns the text that is new."""
        known = self._decode(self._kept[: self._num_known])
        self._kept.append(token)
        self._held = self._decode(self._kept)[len(known) :]
        if not self._held or self._held.endswith(_UNFINISHED):
            return ""
        del self._kept[: self._num_known]
        self._num_known = len(self._kept)
        return self.finish()

    def finish(self) -> str:
        """Give out what was held back, but for blanks at either end of the turn."""
        new = self._blanks + self._held if self.text else self._held.lstrip()
        shown = new.rstrip()
        self._held, self._blanks = "", new[len(shown) :]
        self.text += shown
        return shown


def decode_turns(
    tokens: Iterable[int], *, tokenizer: Any, ids: TextIds, frame_length: float
) -> TurnDecoder:
    """Read a whole row of tokens, as `offline` gives them."""
    decoder = TurnDecoder(tokenizer, ids, frame_length)
    for token in tokens:
        decoder.push(int(token))
    return decoder
