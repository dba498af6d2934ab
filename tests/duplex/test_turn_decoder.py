"""Reading turns from the text channel: any tokens, one at a time."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from whalesong.data.text_channel import TextIds, place_turns
from whalesong.data.turns import Turn
from whalesong.duplex.turn_decoder import TurnDecoder, decode_turns
from whalesong.tiny.tokenizer import train_tokenizer

TEXTS = [
    "three plus four is seven",
    "okay the lamp is on",
    "na\u00efve \u20ac caf\u00e9 \U0001f600!",
]
FRAME = 0.08
PAD, BOS, EOS = 3, 1, 2
IDS = TextIds(bos=BOS, eos=EOS, pad=PAD)
SAME = TextIds(bos=EOS, eos=EOS, pad=PAD)


def bytes_tokenizer() -> Any:
    """Byte-level BPE without merges: each byte is a token."""
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: index for index, piece in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="<pad>",
    )  # fmt: skip


TOKENIZERS = {
    "sentencepiece": lambda: train_tokenizer(TEXTS[:2], max_vocab_size=330),
    "bytes": bytes_tokenizer,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """With the attribute of NeMo's `AutoTokenizer` that counts."""
    return SimpleNamespace(tokenizer=TOKENIZERS[request.param]())


@pytest.fixture
def encode(tokenizer: Any) -> Callable[[str], list[int]]:
    return lambda text: tokenizer.tokenizer.encode(text, add_special_tokens=False)


def read(tokenizer: Any, tokens: Sequence[int], ids: TextIds = IDS) -> TurnDecoder:
    """Decode a row and check the law of all rows: the pieces are the text."""
    decoder = TurnDecoder(tokenizer, ids, FRAME)
    pieces = [decoder.push(token) for token in tokens]
    assert "".join(pieces) == decoder.text
    whole = decode_turns(tokens, tokenizer=tokenizer, ids=ids, frame_length=FRAME)
    assert (whole.turns, whole.num_stray) == (decoder.turns, decoder.num_stray)
    return decoder


@pytest.mark.parametrize("ids", [IDS, SAME], ids=["bos, eos", "bos is eos"])
def test_what_the_data_places_is_read_back(
    tokenizer: Any, encode: Callable[[str], list[int]], ids: TextIds
) -> None:
    turns = [Turn(0.4, 8.0, TEXTS[0]), Turn(8.8, 16.0, TEXTS[1]), Turn(20.0, 28.0, TEXTS[2])]
    channel = place_turns(
        turns, num_frames=400, frame_length=FRAME, encode=encode, ids=ids, name="row"
    )
    decoder = read(tokenizer, channel.tokens[1:], ids)
    assert decoder.turns == turns
    assert decoder.text == " ".join(TEXTS)
    assert decoder.num_stray == 0


def test_the_first_token_belongs_to_the_second_frame(tokenizer: Any) -> None:
    assert read(tokenizer, [BOS, PAD, EOS]).turns == [Turn(0.08, 0.24, "")]


def test_a_turn_that_has_not_ended_has_no_end(
    tokenizer: Any, encode: Callable[[str], list[int]]
) -> None:
    assert read(tokenizer, [PAD, BOS, *encode("lamp")]).turns == [Turn(0.16, None, "lamp")]


def test_a_begin_inside_a_turn_begins_another_one(
    tokenizer: Any, encode: Callable[[str], list[int]]
) -> None:
    first, second = encode("okay"), encode("lamp")
    decoder = read(tokenizer, [BOS, *first, BOS, *second, EOS])
    middle, end = (round((n + len(first)) * FRAME, 6) for n in (2, 3 + len(second)))
    assert decoder.turns == [Turn(FRAME, middle, "okay"), Turn(middle, end, "lamp")]
    assert decoder.text == "okay lamp"


def test_where_both_are_one_token_it_ends_what_is_open(
    tokenizer: Any, encode: Callable[[str], list[int]]
) -> None:
    tokens = [EOS, *encode("okay"), EOS, *encode("lamp"), EOS]
    decoder = read(tokenizer, tokens, SAME)
    assert [turn.text for turn in decoder.turns] == ["okay", ""]
    assert decoder.num_stray == len(encode("lamp"))


def test_what_is_outside_of_a_turn_is_not_shown(
    tokenizer: Any, encode: Callable[[str], list[int]]
) -> None:
    stray = encode("lamp")
    decoder = read(tokenizer, [EOS, *stray, BOS, *encode("okay"), EOS, EOS, *stray])
    assert decoder.text == "okay"
    assert len(decoder.turns) == 1
    assert decoder.num_stray == 2 * len(stray)


def test_empty_turns_leave_no_spaces(tokenizer: Any, encode: Callable[[str], list[int]]) -> None:
    okay, lamp = ([BOS, *encode(word), EOS] for word in ("okay", "lamp"))
    decoder = read(tokenizer, [BOS, EOS, *okay, BOS, EOS, *lamp, BOS])
    assert decoder.text == "okay lamp"
    assert len(decoder.turns) == 5


def test_pads_and_special_tokens_inside_a_turn_say_nothing(
    tokenizer: Any, encode: Callable[[str], list[int]]
) -> None:
    tokens = [0 if n % 2 else PAD for n in range(60)]
    for position, token in enumerate(encode("okay lamp")):
        tokens.insert(3 * position, token)
    assert read(tokenizer, [BOS, *tokens, EOS]).text == "okay lamp"


def test_a_character_comes_with_the_last_of_its_tokens(
    tokenizer: Any, encode: Callable[[str], list[int]]
) -> None:
    decoder = TurnDecoder(tokenizer, IDS, FRAME)
    pieces = [decoder.push(token) for token in [BOS, *encode("\u20ac1")]]
    assert [piece for piece in pieces if piece] == ["\u20ac", "1"]


def test_a_broken_character_is_shown_as_such(
    tokenizer: Any, encode: Callable[[str], list[int]]
) -> None:
    broken = encode("okay \u20ac")[:-1]
    decoder = read(tokenizer, [BOS, *broken, EOS, BOS, *encode("lamp"), EOS])
    assert decoder.turns[0].text.startswith("okay \ufffd")
    assert decoder.turns[1].text == "lamp"


def test_any_tokens_give_one_text_in_pieces_and_as_a_whole(tokenizer: Any) -> None:
    import torch

    size = len(tokenizer.tokenizer)
    for seed, ids in enumerate([IDS, SAME] * 10):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(size + 5, (200,), generator=generator)
        controls = torch.randint(8, (200,), generator=generator)
        read(tokenizer, torch.where(controls < 4, controls, tokens).tolist(), ids)


def test_a_token_costs_the_same_in_a_long_turn(tokenizer: Any) -> None:
    decoder = TurnDecoder(tokenizer, IDS, FRAME)
    lengths: list[int] = []
    decode = tokenizer.tokenizer.decode

    def counting(tokens: list[int], **options: Any) -> str:
        lengths.append(len(tokens))
        return decode(tokens, **options)

    decoder._tokenizer = SimpleNamespace(decode=counting)
    for token in [BOS, *tokenizer.tokenizer.encode(" ".join(TEXTS) * 40)]:
        decoder.push(token)
    assert max(lengths) < 12
